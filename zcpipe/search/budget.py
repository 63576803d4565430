"""How much a search may spend."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from zcpipe.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """Trained models, of which those of one key count once, and seconds.

    Attributes:
        trained: models at most; a training that failed and was passed over counts.
        seconds: no training begins once so many are spent on trainings; None for any number.

    Raises:
        UsageError: one that is not positive, or models that are no whole number.
    """

    trained: int
    seconds: float | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "trained", operator.index(self.trained))  # numpy's whole numbers are some, too
        except TypeError:
            raise UsageError(f"a budget must be a whole number of models, got {self.trained!r}") from None
        if self.trained < 1:
            raise UsageError(f"a budget must be at least 1 trained model, got {self.trained}")
        if self.seconds is not None:
            object.__setattr__(self, "seconds", float(self.seconds))
            if not self.seconds > 0:
                raise UsageError(f"a budget of seconds must be positive, got {self.seconds:g}")

    def allows(self, trained: int, seconds: float) -> bool:
        """Whether another model may be trained after so many and so much time."""
        return trained < self.trained and (self.seconds is None or seconds < self.seconds)
