"""torch's own random numbers, from which forwards draw: dropout, stochastic depth, noise layers.

There is one generator for the CPU and one for each GPU. What they are set to is kept on the host: no GPU is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def restart() -> None:
    """Set all to one state, so that forwards that follow draw the same."""
    for generator in _all():
        generator.manual_seed(0)


def states() -> list[Tensor]:
    """Return the states of all that there are."""
    return [generator.get_state() for generator in _all()]


def put_back(found: Sequence[Tensor]) -> None:
    """Set them to states that were returned before; those of GPUs that were first used since are left alone."""
    for generator, state in zip(_all(), found, strict=False):
        generator.set_state(state)


def _all() -> list[torch.Generator]:
    # Asking for a GPU's before anything has used one would initialise CUDA, which takes seconds.
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.default_generator, *(torch.cuda.default_generators if used else ())]
