"""Blocks that run without autograd have no local Jacobian: trainability says so, and nothing else suffers."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import zcpipe
from zcpipe.errors import UnsupportedError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BLOCKS = ["a", "b", "c"]
WHERE = "runs without autograd, in torch.no_grad() or a reentrant checkpoint"


class Net(nn.Module):
    """Three blocks, of which some run in ``torch.no_grad`` or a checkpoint."""

    def __init__(self, frozen="", checkpointed="", reentrant=True):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b, self.c = (nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)) for _ in "bc")
        self.frozen, self.checkpointed, self.reentrant = frozen, checkpointed, reentrant

    def forward(self, x):
        for name in "abc":
            block = getattr(self, name)
            if name in self.checkpointed:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and name not in self.frozen):
                x = block(x)
        return x.mean((2, 3))


# The fused pass is one of its own only where a loss is asked for, too.
PASSES = {"paper": ["aznas"], "fused": ["aznas", "grad_norm"]}


def score(protocol, how, **options):
    labels = torch.tensor([0, 1, 2, 3])
    return zcpipe.score(
        Net(**how), X, proxies=PASSES[protocol], blocks=BLOCKS, targets=labels, protocol=protocol, **options
    )


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("protocol", PASSES)
@pytest.mark.parametrize(
    ("how", "blamed"),
    [
        ({"frozen": "ab"}, "b"),
        ({"frozen": "b"}, "b"),
        ({"frozen": "c"}, "c"),
        ({"checkpointed": "abc"}, "b"),
        ({"checkpointed": "a"}, "a"),  # b goes on from what knows nothing of a
        ({"checkpointed": "bc"}, "b"),
    ],
)
def test_a_block_without_autograd_costs_trainability_and_what_goes_through_it(how, blamed, protocol):
    expected = score(protocol, {})
    scores = score(protocol, how, unsupported="skip")
    loss = {"grad_norm": scores["grad_norm"]} if protocol == "fused" else {}
    assert dict(scores) == {**expected, **loss, "trainability": None}
    (failure,) = (failure for failure in scores.failures if failure.proxy not in loss)
    assert (failure.kind, failure.message) == ("unsupported", f"block {blamed!r} {WHERE}")
    with pytest.raises(UnsupportedError, match=f"block '{blamed}' runs without autograd"):
        score(protocol, how)


@pytest.mark.parametrize("protocol", PASSES)
@pytest.mark.parametrize("how", [{"frozen": "a"}, {"checkpointed": "abc", "reentrant": False}])
def test_what_autograd_knows_all_the_same_is_measured(how, protocol):
    expected, scores = score(protocol, {}), score(protocol, how)
    loss = {"grad_norm": scores["grad_norm"]} if "frozen" in how and protocol == "fused" else {}
    assert dict(scores) == {**expected, **loss}


@pytest.mark.parametrize("protocol", PASSES)
def test_a_loss_behind_a_block_without_autograd_has_no_gradient(protocol):
    scores = zcpipe.score(
        Net(frozen="c"),
        X,
        proxies=["grad_norm", "trainability"],
        blocks=BLOCKS,
        targets=torch.tensor([0, 1, 2, 3]),
        protocol=protocol,
        unsupported="skip",
    )
    assert scores["grad_norm"] is None
    assert "the loss does not depend on the weights" in {failure.message for failure in scores.failures}
