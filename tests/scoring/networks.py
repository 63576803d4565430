"""Small random networks, and what must not change about them."""

import torch
from hypothesis import strategies as st
from torch import nn


class Residual(nn.Module):
    """A block with whatever may trip scoring: in-place activation, buffers, dropout, a shared convolution."""

    def __init__(self, channels, inplace, norm, dropout):
        super().__init__()
        norms = {"batch": nn.BatchNorm2d, "group": lambda c: nn.GroupNorm(1, c), "none": lambda c: nn.Identity()}
        self.norm, self.act = norms[norm](channels), nn.ReLU(inplace=inplace)
        self.conv, self.drop = nn.Conv2d(channels, channels, 3, padding=1), nn.Dropout(dropout)

    def forward(self, x):
        return x + self.drop(self.conv(self.act(self.norm(self.conv(x)))))


networks = st.builds(
    lambda *parts: parts,
    st.integers(1, 5),
    st.integers(2, 4),
    st.sampled_from(["batch", "group", "none"]),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
)


class Classifier(nn.Module):
    """Stem, residual blocks, classes."""

    def __init__(self, channels, blocks):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, channels, 3), nn.Sequential(*blocks)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 4)

    @property
    def names(self):
        return ["stem", *(f"blocks.{i}" for i in range(len(self.blocks)))]

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def small_network(parts, inplace):
    channels, depth, norm, dropout, train = parts
    torch.manual_seed(3)
    blocks = [Residual(channels, inplace, norm, dropout) for _ in range(depth)]
    return Classifier(channels, blocks).train(train)


def assert_untouched(model, before):
    after = fingerprint(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:-1] == before[1:-1]
    assert torch.equal(after[-1], before[-1])


def fingerprint(model):
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [sorted(vars(module)) for module in model.modules()],
        [getattr(module, "inplace", None) for module in model.modules()],
        [getattr(module, "track_running_stats", None) for module in model.modules()],
        [len(module._forward_hooks) for module in model.modules()],
        [(p.requires_grad, p.grad is None, p.data_ptr(), p.stride()) for p in model.parameters()],
        torch.get_rng_state(),
    )
