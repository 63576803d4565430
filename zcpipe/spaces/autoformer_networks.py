"""The networks of AutoFormer (Chen et al., ICCV 2021): vision transformers that are parts of one super-network.

Patches of 16 x 16 pixels and a class token, with learned absolute positions, go through blocks of two halves, each with
layer norm before it and a shortcut around it: attention with heads of 64 channels and relative positions, then a
perceptron. The mean of the patches' tokens (not the class token's) is classified. There is no dropout.

Relative positions are learned vectors for the distance in rows and for that in columns between two patches, up to 14
each, and for pairs with the class token; their sum is added to the key and, another one, to the value that a token sees
of another one.

Every weight is the first part, in each dimension, of the super-network's: the first channels in, the first channels
out. That is how AZ-NAS, TF-TAS and others score them, all with the same random super-network: normals of standard
deviation 0.02, the patches' convolution as torch draws it, biases of linear layers 0. (The published normals are cut
off beyond 100 standard deviations, which cuts nothing off.) Rows of the layer for queries, keys and values alternate
between the three, as in the published super-network, so that its first rows are those of the first heads.

At another resolution than 224 x 224 absolute positions are those of the upper left corner, as if images were cropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcpipe.errors import UsageError
from zcpipe.spaces.base import Dataset
from zcpipe.spaces.layers import Conv2d, Embedding, Linear, Shared

PATCH = 16  # pixels on a side
GRID = 14  # patches on a side at 224 x 224 pixels, and the largest distance that relative positions tell apart
HEAD = 64  # channels
STD = 0.02


@dataclass(frozen=True)
class Layer:
    """One block: the heads of its attention, and how many times wider than the tokens its perceptron is."""

    heads: int
    ratio: float


@dataclass(frozen=True)
class SuperNetwork:
    """The largest network of a space, of which all others are parts."""

    embedding: int
    depth: int
    heads: int
    ratio: float = 4.0


def hidden(embedding: int, ratio: float) -> int:
    """Return the width of a perceptron."""
    return int(embedding * ratio)


class Transformer(nn.Module):
    """One network.

    Args:
        embedding: channels of a token.
        layers: its blocks.
        whole: the super-network.
        dataset: the shape of the task.
    """

    def __init__(self, embedding: int, layers: Sequence[Layer], whole: SuperNetwork, dataset: Dataset) -> None:
        super().__init__()
        image = dataset.input_shape[0]
        self.patch = Conv2d(image, embedding, PATCH, PATCH)
        bound = 1 / math.sqrt(image * PATCH * PATCH)
        self.patch.shared = {
            "weight": Shared((whole.embedding, image, PATCH, PATCH), "uniform", bound),
            "bias": Shared((whole.embedding,), "uniform", bound),
        }
        self.token = _embedding(1, embedding, whole.embedding)
        self.position = _embedding(1 + GRID * GRID, embedding, whole.embedding)
        self.blocks = nn.ModuleList(_Block(embedding, layer, whole) for layer in layers)
        self.norm = nn.LayerNorm(embedding)
        self.head = _linear(embedding, dataset.classes, whole.embedding, dataset.classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        """Classify images.

        Raises:
            UsageError: they cannot be cut into patches, or have more than there are positions for.
        """
        grid = grid_of(*x.shape[2:])
        places = torch.arange(grid, device=x.device)
        corner = 1 + (GRID * places[:, None] + places).flatten()
        patches = self.patch(x).flatten(2).transpose(1, 2) + self.position(corner)
        token = self.token.weight + self.position(torch.zeros_like(corner[:1]))
        x = torch.cat([token.expand(len(patches), 1, -1), patches], 1)
        distances = _distances(places)
        for block in self.blocks:
            x = block(x, distances)
        result: Tensor = self.head(self.norm(x)[:, 1:].mean(1))
        return result


class _Block(nn.Module):
    def __init__(self, embedding: int, layer: Layer, whole: SuperNetwork) -> None:
        super().__init__()
        self.attention = _Attention(embedding, layer.heads, whole)
        self.mlp = _Perceptron(embedding, hidden(embedding, layer.ratio), whole)

    def forward(self, x: Tensor, distances: tuple[Tensor, Tensor]) -> Tensor:  # [N, T, E] -> [N, T, E]
        result: Tensor = self.mlp(self.attention(x, distances))
        return result


class _Attention(nn.Module):
    """Layer norm, attention with relative positions, shortcut."""

    def __init__(self, embedding: int, heads: int, whole: SuperNetwork) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embedding)
        self.heads = heads
        self.qkv = _linear(embedding, 3 * HEAD * heads, whole.embedding, 3 * HEAD * whole.heads)
        self.proj = _linear(HEAD * heads, embedding, HEAD * whole.heads, whole.embedding)
        self.keys = _RelativePositions()
        self.values = _RelativePositions()

    def forward(self, x: Tensor, distances: tuple[Tensor, Tensor]) -> Tensor:  # [N, T, E] -> [N, T, E]
        qkv = self.qkv(self.norm(x)).reshape(*x.shape[:2], self.heads, HEAD, 3)
        q, k, v = qkv.permute(4, 0, 2, 1, 3).unbind()  # [N, heads, T, 64] each
        scores = q @ k.transpose(2, 3) + _by_query(q, self.keys(distances).transpose(1, 2))
        weights = (scores * HEAD**-0.5).softmax(3)  # [N, heads, T, T]
        z = weights @ v + _by_query(weights, self.values(distances))
        result: Tensor = x + self.proj(z.transpose(1, 2).flatten(2))
        return result


class _Perceptron(nn.Module):
    """Layer norm, two linear layers with GELU between them, shortcut."""

    def __init__(self, embedding: int, width: int, whole: SuperNetwork) -> None:
        super().__init__()
        widest = hidden(whole.embedding, whole.ratio)
        self.norm = nn.LayerNorm(embedding)
        self.fc1 = _linear(embedding, width, whole.embedding, widest)
        self.activation = nn.GELU()
        self.fc2 = _linear(width, embedding, widest, whole.embedding)

    def forward(self, x: Tensor) -> Tensor:  # [N, T, E] -> [N, T, E]
        result: Tensor = x + self.fc2(self.activation(self.fc1(self.norm(x))))
        return result


class _RelativePositions(nn.Module):
    """A vector for each pair of tokens: that of their distance in rows plus that of their distance in columns."""

    def __init__(self) -> None:
        super().__init__()
        self.vertical = _embedding(2 * GRID + 2, HEAD, HEAD)
        self.horizontal = _embedding(2 * GRID + 2, HEAD, HEAD)

    def forward(self, distances: tuple[Tensor, Tensor]) -> Tensor:  # [T, T] each -> [T, T, 64]
        vertical, horizontal = distances
        result: Tensor = self.vertical(vertical) + self.horizontal(horizontal)
        return result


def _by_query(x: Tensor, tables: Tensor) -> Tensor:  # [N, heads, T, A], [T, A, B] -> [N, heads, T, B]
    """Multiply what belongs to each query by the query's own matrix."""
    samples, heads, tokens, _ = x.shape
    products = x.permute(2, 0, 1, 3).flatten(1, 2) @ tables  # [T, N * heads, B]
    return products.reshape(tokens, samples, heads, -1).permute(1, 2, 0, 3)


def _distances(places: Tensor) -> tuple[Tensor, Tensor]:  # [grid] -> [T, T] each
    """Number the distances in rows and columns between tokens from 1; 0 is for pairs with the class token."""
    grid = len(places)
    rows, columns = places.repeat_interleave(grid), places.repeat(grid)
    numbered = []
    for place in (rows, columns):
        distance = (place[None, :] - place[:, None]).clamp(-GRID, GRID) + GRID + 1
        numbered.append(nn.functional.pad(distance, (1, 0, 1, 0)))
    return numbered[0], numbered[1]


def grid_of(height: int, width: int) -> int:
    """Return how many patches an image has on a side.

    Raises:
        UsageError: it cannot be cut into patches, or has more than there are positions for.
    """
    if height != width or height % PATCH or not 1 <= height // PATCH <= GRID:
        raise UsageError(
            f"images must be square, with a side that is a multiple of {PATCH} up to {GRID * PATCH} pixels, "
            f"got {height} x {width}; give another --resolution"
        )
    return height // PATCH


def _linear(inputs: int, outputs: int, most_inputs: int, most_outputs: int) -> Linear:
    layer = Linear(inputs, outputs)
    layer.shared = {"weight": Shared((most_outputs, most_inputs), "normal", STD), "bias": 0.0}
    return layer


def _embedding(vectors: int, channels: int, most_channels: int) -> Embedding:
    table = Embedding(vectors, channels)
    table.shared = {"weight": Shared((vectors, most_channels), "normal", STD)}
    return table
