"""Networks that compute in place on what a pass still needs: torch allows more of that than the passes do at first."""

from __future__ import annotations

from torch import Tensor

_MODIFIED = "modified by an inplace operation"  # torch's words, where what was saved for a backward has changed


class FusedOverwrittenError(RuntimeError):
    """What entered a fused step was changed in place before its backward, which layers by themselves may not need."""

    def __init__(self) -> None:
        super().__init__(f"what entered a fused layer has been {_MODIFIED}")


def version_of(tensor: Tensor) -> int:
    """Return a number that changes with whatever is computed in place on a tensor."""
    return 0 if tensor.is_inference() else tensor._version  # those of inference mode have none


def is_of_saved(error: RuntimeError) -> bool:
    """Whether something was changed in place that autograd, or a fused step, had kept for a backward."""
    return _MODIFIED in str(error)


def is_of_leaf(error: RuntimeError) -> bool:
    """Whether somebody computes in place on what a graph begins with."""
    return "leaf Variable" in str(error)
