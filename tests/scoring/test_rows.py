"""Rows of key classes: the function is scored once, sizes are each member's own, repeats give mean and spread."""

import math

import numpy as np
import pytest

from zcpipe import get_space
from zcpipe.proxies import resolve
from zcpipe.run import RunSpec
from zcpipe.scoring.rows import ClassScorer
from zcpipe.spaces.classes import key_classes

SPACE = get_space("nasbench201")
FOUR = tuple(proxy.name for proxy in resolve("aznas"))


def scorer(**fields):
    return ClassScorer(
        RunSpec.model_validate({"space": SPACE.name, "dataset": "cifar10", "proxies": FOUR, "batch_size": 2, **fields})
    )


def class_of(key):
    """Representative and members of a key."""
    members = [cell for cell in SPACE if SPACE.key(cell) == key]
    return SPACE[int(key_classes(SPACE).representative[key_classes(SPACE).class_of[SPACE.index(members[0])]])], members


def test_members_share_the_function_and_keep_their_own_sizes():
    representative, members = class_of("c3(x)")
    rows = scorer().score(representative, members)
    assert len({row["expressivity"] for row in rows}) == len({row["trainability"] for row in rows}) == 1
    for cell, row in zip(members, rows, strict=True):
        size = SPACE.size(cell, "cifar10")
        assert (row["params"], row["macs"], row["complexity"]) == (size.params, size.macs, size.macs)
    assert len({row["params"] for row in rows}) > 1
    assert {row["status"] for row in rows} == {"ok"}


def test_a_row_depends_on_seed_and_key_alone():
    representative, members = class_of("c1(x)+x")
    alone = scorer().score(representative, members[-1:])[0]
    again = scorer()
    again.score(SPACE[13714], [SPACE[13714]])  # whatever was scored before
    together = again.score(representative, members)[-1]
    for name in (*FOUR, "params", "macs"):
        assert alone[name] == together[name]
    assert np.array_equal(alone["expressivity@block"], together["expressivity@block"])
    assert scorer(seed=1).score(representative, members[-1:])[0]["trainability"] != alone["trainability"]


def test_repeats_store_mean_and_spread():
    cell = SPACE[13714]
    row = scorer(repeats=3).score(cell, [cell])[0]
    single = scorer().score(cell, [cell])[0]
    assert row["expressivity"] != single["expressivity"]
    assert row["expressivity"] == pytest.approx(single["expressivity"], rel=0.2)
    assert row["expressivity_sd"] > 0
    assert row["complexity"] == single["complexity"]
    assert row["complexity_sd"] == 0
    assert row["expressivity"] == pytest.approx(float(np.sum(row["expressivity@block"])), rel=1e-5)


def test_infinite_scores_have_no_spread():
    representative, members = class_of("x")
    row = scorer(repeats=2).score(representative, members[:1])[0]
    assert row["trainability"] == -math.inf
    assert row["trainability_sd"] is None
    assert row["status"] == "ok"


def test_columns_say_what_they_hold():
    columns = {column.name: column for column in scorer().columns}
    assert list(columns) == [*FOUR, "params", "macs", "expressivity@block", "trainability@block"]
    assert columns["expressivity@block"].slots == SPACE.common_slots("cifar10").blocks
    assert columns["trainability@block"].slots == SPACE.common_slots("cifar10").blocks[1:]
    assert columns["macs"].unit == "MAC"
    assert {columns[name].direction for name in FOUR} == {"higher"}


def test_scores_without_the_native_library_are_the_same(monkeypatch):
    """What is left is a ReLU that rounding flips now and then, which trainability sees."""
    cell = SPACE.parse("|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_3x3~2|")
    (native,) = scorer(batch_size=8).score(cell, [cell])
    monkeypatch.setenv("ZCPIPE_NO_NATIVE", "1")
    (twin,) = scorer(batch_size=8).score(cell, [cell])
    for name, tolerance in (("expressivity", 1e-6), ("progressivity", 1e-5), ("trainability", 1e-4)):
        assert native[name] == pytest.approx(twin[name], rel=tolerance)
    assert native["complexity"] == twin["complexity"]
