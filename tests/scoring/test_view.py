"""Networks that take a `view` of a map, as if it were contiguous: on the CPU images are scored in another layout."""

import pytest
import torch
from networks import assert_untouched, fingerprint
from plugin_spaces import package_installed, plugins_installed
from torch import nn

import zcpipe
from zcpipe.errors import UnsupportedError, UsageError
from zcpipe.run import RunSpec
from zcpipe.scoring.rows import ClassScorer

ALL = zcpipe.list_proxies()
LABELS = torch.arange(8) % 5


class LeNet(nn.Module):
    """Convolutions, of which some are fused where that may be, and rows of their maps."""

    def __init__(self, channels, flat):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(3, 1, 1))
        self.pool, self.flat = nn.AdaptiveAvgPool2d(2), flat
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x):
        maps = self.pool(self.third(self.second(self.first(x))))
        return self.head(maps.view(-1, 32) if self.flat == "view" else maps.reshape(-1, 32))


class Rows(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.flat, self.head = flat, nn.Linear(3 * 16 * 16, 5)

    def forward(self, x):
        return self.head(x.view(len(x), -1) if self.flat == "view" else x.flatten(1))


def images(channels=3):
    return torch.randn(8, channels, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def alike(views, flat, tolerance):
    assert views.keys() == flat.keys()
    for name in flat:
        assert views[name] == (None if flat[name] is None else pytest.approx(flat[name], rel=tolerance)), name


@pytest.mark.parametrize("protocol", ["paper", "fused"])
@pytest.mark.parametrize("channels", [1, 3])  # the images of one channel lie in both layouts
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-2), (torch.float64, 1e-7)])
def test_have_the_scores_of_those_that_flatten(channels, protocol, dtype, tolerance):
    found = []
    for flat in ("view", "reshape"):
        torch.manual_seed(0)
        model = LeNet(channels, flat).to(dtype)
        before = fingerprint(model)
        x, blocks = images(channels).to(dtype), ["first", "second", "third"]
        found.append(zcpipe.score(model, x, LABELS, ALL, blocks=blocks, unsupported="skip", protocol=protocol))
        assert_untouched(model, before)
    views, flat = found
    alike(views, flat, tolerance)
    missing = {"dss"}  # which is of transformers
    assert {name for name in ALL if views[name] is None} == missing == {f.proxy for f in views.failures}
    assert views.status == flat.status and views.statistics.keys() == flat.statistics.keys()
    assert views.nodes_by_name == flat.nodes_by_name
    assert zcpipe.score(LeNet(channels, "view"), images(channels).float(), LABELS, "snip").status == "ok"


def test_that_take_images_as_rows_have_macs_too():
    scores = zcpipe.score(Rows("view"), images().float(), LABELS, ["macs", "complexity", "params", "snip"])
    assert scores.status == "ok" and scores["macs"] == scores["complexity"] == 3 * 16 * 16 * 5


def test_that_need_the_layout_of_scoring_keep_it():
    """What could be scored as it was is scored so, to the last bit: contiguous images are the second choice."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.conv(x).permute(0, 2, 3, 1).view(len(x), -1, 4)).mean(1)

    model, x = Last(), images().float()
    assert zcpipe.score(model, x, LABELS, ["snip", "macs"]).status == "ok"


def test_that_fail_otherwise_hear_of_that():
    model = Rows("view")
    model.head = nn.Linear(7, 5)
    with pytest.raises(UsageError, match="the model fails on these inputs: RuntimeError: mat1 and mat2 shapes"):
        zcpipe.score(model, images().float(), LABELS, ["snip", "macs"])
    with pytest.raises(UnsupportedError, match="dss is of transformers"):
        zcpipe.score(Rows("view"), images().float(), LABELS, "dss")


def test_that_no_layout_helps_say_so():
    class Transposed(Rows):
        def forward(self, x):
            return self.head(x.transpose(2, 3).view(len(x), -1))

    with pytest.raises(UsageError, match="the model fails on these inputs: RuntimeError: view size is not compatible"):
        zcpipe.score(Transposed("view"), images().float(), LABELS, "snip")


SOURCE = """
import torch
from torch import nn
from zcpipe_hazards import Hazards

from zcpipe.spaces import Built, Slots


class Rows(nn.Module):
    flat = "view"

    def forward(self, x):
        return x.view(len(x), -1) if self.flat == "view" else x.flatten(1)


class Viewing(Hazards):
    name = "viewing"

    def common_slots(self, dataset):
        return Slots(("first", "second"), ("first", "second", "head"))

    def build(self, arch, dataset, *, full=False):
        with torch.device("meta"):
            built = super().build(arch, dataset, full=full)
            built.model.add_module("rows", Rows())
            built.model.add_module("head", nn.Linear(self._width(arch) * 4, 4))
        return built


OFFERED = Viewing()
"""


def test_of_a_space_have_rows(tmp_path):
    with plugins_installed(), package_installed(tmp_path, "zcpipe.spaces", SOURCE):
        space = zcpipe.get_space("viewing")
        fields = {"space": "viewing", "dataset": "tiny", "proxies": ("aznas", "snip", "synflow", "nwot", "zen")}
        scorer = ClassScorer(RunSpec.model_validate({**fields, "batch_size": 4}))
        rows = []
        for flat in ("view", "flatten"):
            __import__("my_nas").Rows.flat = flat
            (row,) = scorer.score(space[4], [space[4]])
            rows.append(row)
    views, flat = rows
    assert views["status"] == "partial" and [f["proxy"] for f in views["failures"]] == ["nwot"]  # has no ReLU
    for name in ("expressivity", "progressivity", "trainability", "snip", "synflow", "zen", "complexity"):
        assert views[name] == pytest.approx(flat[name], rel=1e-4)
    assert views["snip@layer"] == pytest.approx(flat["snip@layer"], rel=1e-4)
