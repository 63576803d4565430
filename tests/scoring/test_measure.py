"""Measurements: names mean one thing, failures stay where they happened, outcomes have one word."""

import dataclasses
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from zcpipe.errors import UsageError
from zcpipe.ops.philox import Stream
from zcpipe.proxies import get_proxy, resolve
from zcpipe.scoring.measure import Batch, Failure, measure, philox_probes, status_of
from zcpipe.spaces import Size

MODEL = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))


class Subject:
    """The model as it is."""

    blocks = ("0", "1")
    loss = None
    pruned = True
    probe = staticmethod(philox_probes(0, "", "", 0))

    def network(self, recipe, full):
        return nullcontext(MODEL)

    def batch(self, recipe):
        return Batch([torch.randn(2, 3, 8, 8)])

    def stream(self, purpose):
        return Stream.of(0, purpose)

    def size(self):
        return Size(1, 2)


def run(proxies):
    return measure(Subject(), proxies)


def test_two_statistics_of_one_name_are_refused():
    other = dataclasses.replace(get_proxy("expressivity").statistics[0], moments=lambda feature: feature)
    third = dataclasses.replace(get_proxy("expressivity"), name="third", statistics=(other,))
    with pytest.raises(UsageError, match="another statistic named 'expressivity'"):
        run([get_proxy("expressivity"), third])


def test_a_reduction_that_raises_fails_alone():
    def broken(statistics):
        raise ZeroDivisionError("no")

    third = dataclasses.replace(get_proxy("expressivity"), name="third", reduce=broken)
    result = run([*resolve("aznas"), third])
    assert result.scores["third"] is None
    assert all(result.scores[proxy.name] is not None for proxy in resolve("aznas"))
    assert [(f.proxy, f.kind, f.message) for f in result.failures] == [("third", "error", "ZeroDivisionError: no")]


def test_non_finite_wins_over_dead_in_progressivity():
    assert math.isnan(get_proxy("progressivity").reduce({"expressivity": np.array([1.0, -math.inf, math.nan])}))


@pytest.mark.parametrize(
    ("missing", "kind", "status"),
    [
        ((), "error", "ok"),
        (("trainability",), "error", "partial"),
        (("expressivity", "progressivity", "trainability"), "error", "error"),
        (("expressivity", "progressivity", "trainability"), "memory", "memory"),
    ],
)
def test_status_is_decided_by_the_proxies_that_need_a_pass(missing, kind, status):
    proxies = resolve("aznas")
    scores = {proxy.name: None if proxy.name in missing else 1.0 for proxy in proxies}
    assert status_of(proxies, scores, [Failure(name, kind, "") for name in missing]) == status
