"""Layers for builders: ordinary torch layers that neither draw weights nor touch the global random state.

Their weights are zero until a recipe fills them (`zcpipe.initialise`). torch's own constructors would spend more time
on default weights that nobody uses than the network's passes take at small batches.
"""

from __future__ import annotations

from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """A convolution whose weights are zero until they are initialised."""

    def reset_parameters(self) -> None:
        """Fill with zeros."""
        self.weight.data.zero_()
        if self.bias is not None:
            self.bias.data.zero_()


class Linear(nn.Linear):
    """A linear layer whose weights are zero until they are initialised."""

    def reset_parameters(self) -> None:
        """Fill with zeros."""
        self.weight.data.zero_()
        if self.bias is not None:
            self.bias.data.zero_()


def add_to(total: Tensor | None, layer: nn.Module, x: Tensor) -> Tensor:
    """Return ``total + layer(x)``, or ``layer(x)`` for None.

    A layer may know how to do both in one go: it then has a method ``forward_onto(x, total)``, which the scoring's fast
    passes give to layers for a while. Layers with hooks are called as always.
    """
    onto = None if layer._forward_hooks or layer._forward_pre_hooks else getattr(layer, "forward_onto", None)
    if onto is not None:
        result: Tensor = onto(x, total)
        return result
    y: Tensor = layer(x)
    return y if total is None else total + y
