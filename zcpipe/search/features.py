"""Features of a table's architectures, for searches that learn from what they have trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zcpipe.errors import UsageError
from zcpipe.parzc.choice import choose_spec
from zcpipe.parzc.features import Coordinate, Encoder
from zcpipe.parzc.predictors.base import Vectors
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.spaces.base import Architecture
from zcpipe.table import Table


@dataclass(frozen=True)
class Features:
    """The architectures of a table as vectors, by an encoder that was fitted on all of them, without labels.

    Attributes:
        space: the name of theirs.
        texts: of the architectures that have all features, in the order of the table, each once.
        x: their features, [n, d] float32.
        coordinates: what each feature is, [d].
        spec: what they are made of.
    """

    space: str
    texts: Sequence[str]
    x: Vectors
    coordinates: tuple[Coordinate, ...]
    spec: FeatureSpec

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {text: row for row, text in enumerate(self.texts)})

    @classmethod
    def of(cls, table: Table, spec: FeatureSpec | None = None) -> Features:
        """Make the features of a table.

        Args:
            table: whose architectures are encoded.
            spec: what of; by default what `zcpipe.parzc.choice.choose_spec` takes, of a table without statistics its
                proxies and counts.

        Raises:
            UsageError: the table lacks a column.
            DataError: no row has all features, or a file is damaged.
        """
        if spec is None:
            held = any(column.kind == "statistic" for column in table.columns)
            spec = choose_spec(table, None if held else ())[0]
        encoder, encoded = Encoder.fit_encode(table, spec)
        first: dict[str, int] = {}
        for row, text in enumerate(table.to_arrow(["arch"])["arch"].to_pylist()):
            if encoded.usable[row]:
                first.setdefault(text, row)  # random draws may hold one architecture twice
        rows = list(first.values())
        x = encoded.x if len(rows) == len(encoded.x) else encoded.x[rows]
        return cls(table.identity["space"], list(first), x, encoder.coordinates, spec)

    def row(self, arch: Architecture) -> int | None:
        """Return the row of an architecture, None where it has no features."""
        rows: dict[str, int] = self._rows  # type: ignore[attr-defined]
        return rows.get(str(arch))

    def require(self, space: str) -> None:
        """Refuse features of another space.

        Raises:
            UsageError: they are of another one.
        """
        if self.space != space:
            raise UsageError(f"the features are of {self.space}, not of {space}")

    def identity(self) -> dict[str, Any]:
        """Return what decides them, as JSON can hold it."""
        digest = hashlib.blake2b("\n".join(self.texts).encode(), digest_size=8)
        digest.update(self.x.astype("<f4").tobytes())
        return {"spec": self.spec.model_dump(mode="json"), "digest": digest.hexdigest()}
