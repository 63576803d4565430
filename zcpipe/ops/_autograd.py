"""Derivatives of native ops at the price of a plain autograd function.

What `torch.library.register_autograd` puts on an op costs two to three times the plain function, which is more than
small kernels take. So the public functions go through a plain one; the registration, made of the same two functions,
serves those who call ``torch.ops.zcpipe`` themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Given the context, the op's inputs and its outputs: keeps what the backward needs.
Save = Callable[[Any, tuple[Any, ...], Any], None]


def differentiable(
    op: str, backward: Callable[..., Tensor | tuple[Tensor | None, ...]], save: Save | None = None
) -> Callable[..., Tensor]:
    """Return a function that computes a native op's first output, and that autograd knows.

    Args:
        op: the op's name in ``torch.ops.zcpipe``.
        backward: takes the context and the gradient of the first output.
        save: what `torch.library.register_autograd` calls ``setup_context``; None if the backward needs nothing.
    """

    def forward(ctx: Any, *inputs: Any) -> Tensor:  # noqa: ANN401
        with torch._C._AutoDispatchBelowAutograd():  # past the registration
            outputs = getattr(torch.ops.zcpipe, op)(*inputs)
        if save is not None:
            save(ctx, inputs, outputs)
        first: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return first

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    apply: Callable[..., Tensor] = type(op, (torch.autograd.Function,), members).apply  # type: ignore[attr-defined]
    return apply
