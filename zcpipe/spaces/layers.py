"""Layers for builders: ordinary torch layers that neither draw weights nor touch the global random state.

Their weights are zero until a recipe fills them (`zcpipe.initialise`). torch's own constructors would spend more time
on default weights that nobody uses than the network's passes take at small batches.
"""

from __future__ import annotations

from torch import nn


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
