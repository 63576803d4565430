"""MeCo against its definition in plain torch: a hook on every module, correlations, general eigenvalues."""

import math

import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.errors import UnsupportedError
from zcpipe.ops.philox import Stream
from zcpipe.proxies.meco import correlations, meco
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.init import initialise
from zcpipe.scoring.network import ScoredNetwork
from zcpipe.spaces import get_space


def stream(purpose):
    return Stream.of(3, "", "", 0, purpose)


def score(model, x):
    with untouched(dict(model.named_modules())):
        return meco(ScoredNetwork(model, [x], None, None, stream))[0]


def by_definition(model, x):
    """The published measure, in double precision from the outputs on."""
    found = []

    def hook(module, arguments, output):
        rows = output[0].double()
        matrix = torch.atleast_2d(torch.corrcoef(rows.reshape(len(rows), -1)))
        found.append(float(torch.linalg.eigvals(matrix.nan_to_num(0.0, 0.0, 0.0)).real.min()))

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    with torch.no_grad():
        model.train()(stream("meco:0").normal_(torch.empty_like(x)))
    for handle in handles:
        handle.remove()
    return sum(found)


@pytest.mark.parametrize("unsupported", ["error", "skip"])
def test_a_network_of_one_size_of_images_has_none_unless_it_is_mecos(unsupported):
    def flat(size):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 4)), torch.randn(2, 3, size, size)

    message = "meco feeds images of 64 x 64 pixels, which this network does not take"
    if unsupported == "error":
        with pytest.raises(UnsupportedError, match=message):
            zcpipe.score(*flat(16), None, "meco")
    else:
        failure = zcpipe.score(*flat(16), None, "meco", unsupported=unsupported).failures[0]
        assert (failure.kind, failure.message) == ("unsupported", message)
    assert zcpipe.score(*flat(64), None, "meco")["meco"] is not None


def image(channels=3):
    return torch.empty(1, channels, 64, 64)


def network(affine=True):
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(6, affine=affine)
    if affine:
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.normal_(norm.bias)
    shared = nn.ReLU()
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm, shared, nn.Sequential(nn.Conv2d(6, 4, 1), shared))
    return nn.Sequential(body, nn.Identity(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_meco_is_its_definition(affine):
    """Containers count, shared modules with each call, and vectors for nothing."""
    expected = by_definition(network(affine), image())
    assert expected > 1
    assert score(network(affine), torch.randn(5, 3, 8, 8)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_meco_of_a_cell_is_its_definition():
    space = get_space("nasbench201")
    arch = space.parse("|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|")
    model = initialise(space.build(arch, "cifar10", cells_per_stage=1).model)
    assert score(model, torch.randn(2, 3, 32, 32)) == pytest.approx(by_definition(model, image()), rel=1e-4)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_norm_with_an_activation_in_it_is_measured(patched):
    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return nn.functional.relu6(super().forward(x))

    model = network()
    if patched:
        forward = model[0][1].forward
        model[0][1].forward = lambda x: nn.functional.relu6(forward(x))
    else:
        model[0][1].__class__ = Activated
    assert score(model, torch.randn(2, 3, 8, 8)) == pytest.approx(by_definition(model, image()), rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_norm_that_silences_a_channel_counts_for_itself():
    model = network()
    nn.init.zeros_(model[0][1].weight[:1])
    assert score(model, torch.randn(2, 3, 8, 8)) == pytest.approx(by_definition(model, image()), rel=1e-6, abs=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_tokens_are_the_rows():
    model = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.LayerNorm(9))
    x = torch.randn(3, 4, 9)
    assert score(model, x) == pytest.approx(by_definition(model, x[:1]), rel=1e-5)


def test_more_channels_than_positions_are_dependent():
    assert score(nn.Conv2d(3, 20, 16, stride=16), torch.randn(2, 3, 8, 8)) == 0.0


def test_one_channel_depends_on_nothing():
    assert score(nn.Conv2d(3, 1, 1), torch.randn(2, 3, 8, 8)) == pytest.approx(1.0)


def test_a_constant_channel_correlates_with_nothing():
    covariances = torch.tensor([[4.0, 0.0, 3.0], [0.0, 0.0, 0.0], [3.0, 0.0, 9.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.5, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(correlations(covariances), expected)


@pytest.mark.parametrize("head", [[], [nn.AdaptiveAvgPool2d(1)]])
def test_overflow_is_not_a_number(head):
    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(40)), *head)
    for layer in model[:40]:
        nn.init.constant_(layer.weight, 1e3)
    assert math.isnan(score(model, torch.randn(2, 3, 8, 8)))


class Block(nn.Module):
    def __init__(self, inplace, norm):
        super().__init__()
        self.conv, self.norm, self.writes = nn.Conv2d(3, 6, 3, padding=1), norm, inplace

    def forward(self, x):
        return nn.functional.leaky_relu(self.norm(self.conv(x)), 0.2, inplace=self.writes)


@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.BatchNorm2d(6)])
def test_functions_in_place_change_nothing(norm):
    """A container may return the very tensor that its last module gave, after somebody computed in it."""
    scores = []
    for inplace in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(Block(inplace, norm()), nn.Identity(), nn.AdaptiveAvgPool2d(1))
        scores.append(score(model, torch.randn(2, 3, 8, 8)))
    assert scores[1] == scores[0] > 0


def test_a_norm_of_an_input_that_is_changed_afterwards_is_measured_again():
    class Changing(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.conv, self.norm, self.writes = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), inplace

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x.abs_() if self.writes else x.abs())

    scores = []
    for inplace in (False, True):
        torch.manual_seed(1)
        scores.append(score(Changing(inplace), torch.randn(2, 3, 8, 8)))
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)


def test_several_outputs_are_measured_by_the_first():
    class Two(nn.Module):
        def forward(self, x):
            return x, x.flatten(1)

    one, two = score(nn.Identity(), torch.randn(2, 3, 8, 8)), score(Two(), torch.randn(2, 3, 8, 8))
    assert two == one > 0


def test_integers_are_unsupported():
    with pytest.raises(UnsupportedError, match="integers"):
        score(nn.Embedding(5, 3), torch.zeros(4, 2, dtype=torch.int64))


def test_no_hook_stays():
    model = network()
    score(model, torch.randn(2, 3, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())
