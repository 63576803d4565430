"""How large an architecture may be that a search considers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

from zcpipe.errors import UsageError, asking
from zcpipe.spaces.asked import size_of
from zcpipe.spaces.base import Architecture, MovesFromNetwork, PublishedFlops, Size, Space

A = TypeVar("A", bound=Architecture)


@dataclass(frozen=True)
class Limits:
    """How large a candidate may be; None for any size.

    Attributes:
        max_macs: multiply-accumulates at most.
        max_params: parameters at most.
        min_params: parameters at least.
        max_layers: layers at most, as the space counts them (`zcpipe.spaces.base.MovesFromNetwork`).
        max_flops: FLOPs at most, as published searches of the space count them
            (`zcpipe.spaces.base.PublishedFlops`), which is what published budgets are of.

    Raises:
        UsageError: one is not positive, or the least parameters are more than the most.
    """

    max_macs: int | None = None
    max_params: int | None = None
    min_params: int | None = None
    max_layers: int | None = None
    max_flops: int | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and limit < 1:
                raise UsageError(f"{name} must be positive, got {limit}")
        if self.min_params is not None and self.max_params is not None and self.min_params > self.max_params:
            raise UsageError(f"min_params is {self.min_params}, more than max_params, which is {self.max_params}")

    def __str__(self) -> str:
        said = {
            "max_macs": "at most {:,} multiply-accumulates",
            "max_params": "at most {:,} parameters",
            "min_params": "at least {:,} parameters",
            "max_layers": "at most {:,} layers",
            "max_flops": "at most {:,} published FLOPs",
        }
        return " and ".join(text.format(vars(self)[name]) for name, text in said.items() if vars(self)[name])

    def __bool__(self) -> bool:
        return any(limit is not None for limit in vars(self).values())

    @property
    def of_space(self) -> bool:
        """Whether there are any of what a space alone counts: layers and published FLOPs."""
        return self.max_layers is not None or self.max_flops is not None

    def check(self, space: Space[A]) -> None:
        """Refuse a limit that the space cannot be held against.

        Raises:
            UsageError: the space does not count layers, or has no published FLOPs.
        """
        if self.max_layers is not None and not isinstance(space, MovesFromNetwork):
            raise UsageError(f"{space.name} does not say how many layers an architecture has; leave max_layers out")
        if self.max_flops is not None and not isinstance(space, PublishedFlops):
            raise UsageError(
                f"{space.name} has no published count of FLOPs; limit max_macs (--max-macs), which every space counts"
            )

    def allow(self, space: Space[A], arch: A, dataset: str) -> bool:
        """Whether an architecture is within them.

        Raises:
            ZcpipeError: the space raises.
        """
        if not self.allow_counts(space, arch, dataset):
            return False
        if self.max_macs is None and self.max_params is None and self.min_params is None:
            return True
        with asking(space.name, f"the size of {arch}"):
            return self.allow_size(size_of(space, arch, dataset))

    def allow_counts(self, space: Space[A], arch: A, dataset: str) -> bool:
        """Whether an architecture is within those `of_space`.

        Raises:
            ZcpipeError: the space raises.
        """
        if self.max_layers is not None:
            with asking(space.name, f"the layers of {arch}"):
                if cast(MovesFromNetwork[A], space).num_layers(arch) > self.max_layers:  # which `check` has seen
                    return False
        if self.max_flops is not None:
            with asking(space.name, f"the published FLOPs of {arch}"):
                if cast(PublishedFlops[A], space).published_flops(arch, dataset) > self.max_flops:  # seen by `check`
                    return False
        return True

    def allow_size(self, size: Size) -> bool:
        """Whether an architecture of this size is within the others."""
        return (
            (self.max_macs is None or size.macs <= self.max_macs)
            and (self.max_params is None or size.params <= self.max_params)
            and (self.min_params is None or size.params >= self.min_params)
        )


ANY_SIZE = Limits()
