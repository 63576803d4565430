"""The synflow family's pass (being written on another branch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from zcpipe.proxies.base import Gradients


def absolute_gradients(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Sequence[Tensor], norm: str
) -> Gradients:
    raise NotImplementedError
