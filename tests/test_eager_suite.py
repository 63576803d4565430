"""The benchmark's eager baseline gives the published values, so that speed is measured against the right thing."""

import json

import numpy as np
import pytest
import torch

from benchmarks.eager_suite import MEASURES, SuiteNetwork, measured
from zcpipe.spaces import get_space

SPACE = get_space("nasbench201")


@pytest.fixture(scope="module", params=["arch00", "arch06", "arch20"])
def published(request, data):
    """A small network with its published weights, and its values."""
    values = json.loads(data("reference/values.json").read_text())["values"][request.param]
    weights = {key: torch.from_numpy(array) for key, array in np.load(data(f"reference/{request.param}.npz")).items()}
    network = SuiteNetwork(SPACE.parse(values["arch_str"]), cells_per_stage=1)
    return network.take(weights).train(), values["naslib_f32"]


@pytest.mark.parametrize("name", sorted(MEASURES.keys() - {"zen"}))
def test_measure_equals_the_published_value(published, data, name):
    network, values = published
    batch = np.load(data("reference/batch16.npz"))
    value = measured(name, network, torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"]))
    assert value == pytest.approx(values[name], rel=1e-4, nan_ok=True)


def test_zen_equals_the_published_value_from_the_same_draw(published, data):
    network, values = published
    batch = np.load(data("reference/batch16.npz"))
    torch.manual_seed(123)
    value = measured("zen", network, torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"]))
    assert value == pytest.approx(values["zen"], rel=1e-4)
