"""ParZC's mixer architecture with Bayesian network (MABN), as its paper describes it and as its code computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from zcpipe.errors import UsageError
from zcpipe.parzc import bayesian
from zcpipe.parzc.bayesian import RHO, BayesianLinear

WIDTH = 16  # of a token, where it is not said

Layout = NDArray[np.int64]


def segments(
    features: int,
    width: int = WIDTH,
) -> Layout:  # [tokens, width]
    """Cut a vector into tokens of equal width, the last filled up with -1.

    Raises:
        UsageError: a size is less than 1.
    """
    if features < 1 or width < 1:
        raise UsageError(f"features and width: got {features} and {width}, expected at least 1 each")
    layout = np.full(-(-features // width) * width, -1, dtype=np.int64)
    layout[:features] = np.arange(features)
    return layout.reshape(-1, width)


def grouped(
    groups: Sequence[str],  # [features]
) -> Layout:  # [tokens, width]
    """Make one token of each group of coordinates, in the order in which they first come, filled up with -1.

    Raises:
        UsageError: there is no coordinate.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if not members:
        raise UsageError("groups: got none, expected a group for each coordinate")
    layout = np.full((len(members), max(map(len, members.values()))), -1, dtype=np.int64)
    for row, indices in zip(layout, members.values(), strict=True):
        row[: len(indices)] = indices
    return layout


class _Network(nn.Module):
    """What both forms share: tokens, a Bayesian input layer, blocks, the mean over the tokens and a head."""

    def __init__(self, features: int, enter: BayesianLinear, blocks: nn.Module, head: nn.Module, dim: int) -> None:
        super().__init__()
        self.features = features
        self.enter = enter
        self.blocks = blocks
        self.norm = nn.LayerNorm(dim)
        self.head = head

    def tokens(self, x: Tensor) -> Tensor:
        """Make tokens of vectors: [n, features] to [n, tokens, width]."""
        raise NotImplementedError

    def mixed(self, tokens: Tensor) -> Tensor:
        """Compute what the mean over the tokens is taken of: [n, tokens, width] to [n, tokens, dim]."""
        mixed: Tensor = self.norm(self.blocks(self.enter(tokens)))
        return mixed

    def kl(self, prior_sigma: float) -> Tensor:
        """Sum the divergences of the Bayesian layers from N(0, prior_sigma^2): a scalar."""
        return bayesian.kl(self, prior_sigma)

    def forward(self, x: Tensor) -> Tensor:
        """Predict: [n, features] to [n].

        Raises:
            UsageError: another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.features:
            raise UsageError(f"x: got shape {tuple(x.shape)}, expected [n, {self.features}]")
        predicted: Tensor = self.head(self.mixed(self.tokens(x)).mean(dim=1))
        return predicted.squeeze(-1)


class MABN(_Network):
    """The paper's form: an MLP-Mixer over segments of the node-wise vector, between two Bayesian layers.

    Each block mixes along the tokens, then along the channels; then LayerNorm, the mean over the tokens, and a Bayesian
    layer to the prediction.

    Args:
        features: length of the vectors.
        layout: [tokens, width], which coordinates make each token, -1 for none; by default the vector is cut into
            `segments`.
        dim: channels.
        depth: blocks.
        token_hidden: hidden size of the mixing along the tokens.
        channel_hidden: hidden size of the mixing along the channels.
        dropout: in the blocks.
        rho: where every rho of the Bayesian layers starts; at -30 their weights are plain numbers to float32.

    Raises:
        UsageError: the layout is not of that form, or names a coordinate that is not there.
    """

    layout: Tensor

    def __init__(
        self,
        features: int,
        layout: Layout | None = None,
        *,
        dim: int = 64,
        depth: int = 2,
        token_hidden: int = 32,
        channel_hidden: int = 64,
        dropout: float = 0.1,
        rho: float = RHO,
    ) -> None:
        layout = segments(features) if layout is None else _checked(layout, features)
        count, width = layout.shape
        blocks = (_MixerBlock(count, dim, token_hidden, channel_hidden, dropout) for _ in range(depth))
        enter, head = BayesianLinear(width, dim, rho=rho), BayesianLinear(dim, 1, rho=rho)
        super().__init__(features, enter, nn.Sequential(*blocks), head, dim)
        self.register_buffer("layout", torch.tensor(np.where(layout < 0, features, layout)))

    def tokens(self, x: Tensor) -> Tensor:
        """Gather the layout's coordinates, with 0 for none: [n, features] to [n, tokens, width]."""
        return F.pad(x, (0, 1))[:, self.layout]


class PublishedMABN(_Network):
    """The form that the published code trains on NDS and ViT. No operation of it mixes tokens: they meet in the mean.

    A linear layer makes tokens of 16 values, a Bayesian layer gives each its channels, blocks of two feed-forwards
    (4 and 1/2 times as wide) work along the channels; then LayerNorm, the mean over the tokens, and a head of a
    Bayesian layer and two linear ones. The sizes are the published ones, tuned on NDS and ViT.

    Args:
        features: length of the vectors.
        size: of what the first layer makes, a multiple of 16.
        dim: channels.
        depth: blocks.
        dropout: in the blocks and before the last layer.

    Raises:
        UsageError: size is no multiple of 16.
    """

    def __init__(
        self, features: int, *, size: int = 752, dim: int = 1600, depth: int = 5, dropout: float = 0.18
    ) -> None:
        if size < WIDTH or size % WIDTH:
            raise UsageError(f"size: got {size}, expected a multiple of {WIDTH}")
        blocks = (_ChannelBlock(dim, dropout) for _ in range(depth))
        head = nn.Sequential(
            BayesianLinear(dim, dim),
            nn.Linear(dim, dim // 2, bias=False),
            nn.Dropout(dropout),
            nn.Linear(dim // 2, 1, bias=False),
        )
        super().__init__(features, BayesianLinear(WIDTH, dim), nn.Sequential(*blocks), head, dim)
        self.cut = nn.Linear(features, size)

    def tokens(self, x: Tensor) -> Tensor:
        """Map each vector and cut the result: [n, features] to [n, size / 16, 16]."""
        return self.cut(x).unflatten(1, (-1, WIDTH))  # type: ignore[no-any-return]


class _MixerBlock(nn.Module):
    def __init__(self, tokens: int, dim: int, token_hidden: int, channel_hidden: int, dropout: float) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(dim)
        self.token_mixing = _feed_forward(tokens, token_hidden, dropout)
        self.channel_norm = nn.LayerNorm(dim)
        self.channel_mixing = _feed_forward(dim, channel_hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:  # [n, tokens, dim]
        x = x + self.token_mixing(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mixing(self.channel_norm(x))  # type: ignore[no-any-return]


class _ChannelBlock(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.wide_norm = nn.LayerNorm(dim)
        self.wide = _feed_forward(dim, 4 * dim, dropout)
        self.narrow_norm = nn.LayerNorm(dim)
        self.narrow = _feed_forward(dim, dim // 2, dropout)

    def forward(self, x: Tensor) -> Tensor:  # [n, tokens, dim]
        x = x + self.wide(self.wide_norm(x))
        return x + self.narrow(self.narrow_norm(x))  # type: ignore[no-any-return]


def _feed_forward(size: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, size), nn.Dropout(dropout)
    )


def _checked(layout: Layout, features: int) -> Layout:
    if layout.ndim != 2 or layout.size == 0 or not np.issubdtype(layout.dtype, np.integer):
        raise UsageError(f"layout: got {layout.dtype} of shape {layout.shape}, expected integers [tokens, width]")
    if layout.min() < -1 or layout.max() >= features:
        raise UsageError(
            f"layout: got coordinates from {layout.min()} to {layout.max()}, expected -1 (none) to {features - 1}"
        )
    return layout.astype(np.int64)
