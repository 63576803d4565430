"""Features: the rows of a table as vectors of one length without gaps, by an encoder that a population was fitted on.

Two alignments give every architecture the same coordinates.

"slots": a coordinate is a column and a place in the network. Where the networks of a space differ in their slots, the
coordinates are all that some row has, in network order, and a slot that a row lacks is 0 before encoding, as dead ones
are in the table.

"packed", after ParZC's: of each statistic the live nodes first and in order, then zeros up to the length of the longest
architecture. The published lists hold layers that no gradient reaches as well, as 0 in their places; here they are left
out, so that a place counts live nodes. A layer is live where ``num_layers@layer`` says so, if the table has that column
when the encoder is fitted, and else where any of the chosen statistics is not exactly 0. All blocks are live. What is
behind the live nodes is 0 before encoding by "log", "zscore" and "rank", and after "minmax" and "live-rank".

A row is usable if it has a value of all that is asked for, and no place that no row of the population had: a table that
has grown since may hold such. The others are outside the population and get zeros.

Memory: 4 bytes for each row and coordinate, as much again where some rows are not usable; a few times 4 bytes for each
value of the largest list column, since columns are read one by one, and more than once; some arrays of 32 MiB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc import arrays
from zcpipe.parzc.encodings import Coding, fit_coding, of_proxies, restore_coding, scale_within
from zcpipe.parzc.places import (
    Coordinate,
    Integers,
    blocks_of,
    choices_of,
    graph_of,
    group_of,
    ranges,
    token_layout,
)
from zcpipe.parzc.rows import LIVE, Bools, Lists, Reals, Rows, count_live, is_layers
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.table import Table

__all__ = ["Coordinate", "Encoded", "Encoder", "token_layout"]

_LOGARITHMS = ("ln", "nat")  # units of what is a logarithm already


@dataclass(frozen=True)
class Encoded:
    """The features of a table's rows, in order of index."""

    x: Reals  # [n, d], finite
    usable: Bools  # [n]: whether the row has all that is asked for; ``x`` is 0 where it has not
    unknown: Mapping[int, str] = field(default_factory=dict)  # of each row with places that are new, the first of them

    @property
    def population(self) -> Reals:
        """The usable rows, a copy only where some are not usable."""
        return self.x if self.usable.all() else self.x[self.usable]


class Encoder:
    """Makes features of tables of one space, by what it took from the population that it was fitted on.

    The features of a row do not depend on the other rows of its table.

    Attributes:
        spec: what the features are made of.
        space: the name of the space.
        coordinates: what each feature is: the statistics in the order of the spec, the proxies, the graph.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        space: str,
        live: str,
        coordinates: Sequence[Coordinate],
        codings: Mapping[str, Coding],  # of "statistics", which "minmax" needs none of, and "proxies"
    ) -> None:
        self.spec = spec
        self.space = space
        self.coordinates = tuple(coordinates)
        self._live = live
        self._codings = dict(codings)
        counts = Counter(coordinate.column for coordinate in coordinates)
        self._parts: dict[str, slice] = {}
        start = 0
        for name in spec.statistics:
            self._parts[name] = slice(start, start := start + counts[name])
        self._statistics = slice(0, start)
        self._proxies = slice(start, start + len(spec.proxies))

    @classmethod
    def fit(cls, table: Table, spec: FeatureSpec) -> Self:
        """Take coordinates and encodings from the usable rows of a table.

        Raises:
            UsageError: the table lacks a column, or its space does not describe the cells that ``graph`` asks for.
            DataError: no row is usable, or a file is damaged.
        """
        encoder, rows = cls._begun(table, spec)
        encoder._fit(rows, encoder._aligned(rows)[0] if spec.encoding != "minmax" and spec.statistics else None)
        return encoder

    @classmethod
    def fit_encode(cls, table: Table, spec: FeatureSpec) -> tuple[Self, Encoded]:
        """Return what `fit` and then `encode` give of one table, which is read fewer times.

        Raises what `fit` raises.
        """
        encoder, rows = cls._begun(table, spec)
        x, counts, _ = encoder._aligned(rows)
        encoder._fit(rows, x)
        return encoder, encoder._encoded(rows, x, counts)

    @classmethod
    def _begun(cls, table: Table, spec: FeatureSpec) -> tuple[Self, Rows]:
        """Return an encoder that has coordinates alone, and the usable rows."""
        rows = Rows.of(table, spec)
        rows.require_some()
        coordinates = [coordinate for name in spec.statistics for coordinate in _coordinates(rows, name)]
        coordinates += [Coordinate(name, "", "") for name in spec.proxies]
        if spec.graph:
            coordinates += graph_of(table)[0]
        return cls(spec, table.identity["space"], rows.live, coordinates, {}), rows

    def _fit(self, rows: Rows, x: Reals | None) -> None:
        """Take encodings from aligned statistics, which "minmax" does not look at, and from proxies."""
        columns = [rows.columns[c.column] for c in self.coordinates if c.column in rows.columns]
        take_log = np.array([column.unit not in _LOGARITHMS for column in columns], bool)
        if self.spec.encoding != "minmax" and self.spec.statistics and x is not None:
            part = self._statistics
            self._codings["statistics"] = fit_coding(self.spec.encoding, x[:, part], take_log[part])
        if self.spec.proxies:
            values = _scalars(rows)
            self._codings["proxies"] = fit_coding(of_proxies(self.spec.encoding), values, take_log[self._proxies])

    def encode(self, table: Table) -> Encoded:
        """Make the features of every row.

        Raises:
            UsageError: the table lacks a column.
            DataError: it is of another space, or all of its architectures have places that no architecture of the
                population had; or a file is damaged.
        """
        if table.identity["space"] != self.space:
            raise DataError(
                f"the table is of the space {table.identity['space']}, the features are of {self.space}; "
                "fit on a table of the same space"
            )
        rows = Rows.of(table, self.spec, self._live)
        x, counts, unknown = self._aligned(rows)
        if not unknown:
            return self._encoded(rows, x, counts)
        if len(unknown) == len(x):
            raise DataError(
                f"{rows.arch(0)} has the slot {unknown[0]}, which no architecture had that the features were fitted "
                f"on, and all {len(x)} rows have such; train again on a table that holds them"
            )
        encoded, places = self._encoded(rows, x, counts), np.flatnonzero(rows.usable)
        usable, new = encoded.usable.copy(), places[list(unknown)]
        usable[new], encoded.x[new] = False, 0
        return Encoded(encoded.x, usable, dict(zip(new.tolist(), unknown.values(), strict=True)))

    def _encoded(self, rows: Rows, x: Reals, counts: Mapping[str, Integers]) -> Encoded:
        """Encode aligned statistics where they are, and what else there is of the rows."""
        if self.spec.encoding == "minmax":
            for name, part in self._parts.items():
                scale_within(x[:, part], counts.get(name))
        elif self.spec.statistics:
            self._codings["statistics"].encode(x[:, self._statistics], x[:, self._statistics])
        if self.spec.proxies:
            self._codings["proxies"].encode(_scalars(rows), x[:, self._proxies])
        if self.spec.graph:
            np.put_along_axis(x[:, self._proxies.stop :], graph_of(rows.table)[1][rows.usable], 1, axis=1)
        if not rows.usable.all():
            encoded, x = x, np.zeros((len(rows.usable), x.shape[1]), np.float32)
            x[rows.usable] = encoded
        return Encoded(x, rows.usable)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that it consists of."""
        return {
            f"{kind}.{name}": tensor
            for kind, coding in self._codings.items()
            for name, tensor in coding.tensors().items()
        }

    def record(self) -> dict[str, Any]:
        """Return the rest of it, as JSON can hold it."""
        return {
            "spec": self.spec.model_dump(mode="json"),
            "space": self.space,
            "live": self._live,
            "coordinates": [[c.column, c.slot, c.group] for c in self.coordinates],
        }

    @classmethod
    def restore(cls, record: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild an encoder from what `record` and `tensors` gave.

        Args:
            record: the description.
            tensors: the arrays; others beside them do not matter.

        Raises:
            DataError: something is missing there, or is not that of the features that it says.
        """
        try:
            held = _Record.model_validate(dict(record))
        except (ValidationError, UsageError) as error:
            raise DataError(f"this is no record of features ({_first(error)}); fit and save them anew") from error
        spec, coordinates = held.spec, [Coordinate(*described) for described in held.coordinates]
        _require_coordinates(coordinates, spec, held.space)
        if held.live not in ("", LIVE):
            raise DataError(f"{held.live!r} does not say which layers live; fit and save the features anew")
        arrays.require_codings(tensors, spec, Counter(coordinate.column for coordinate in coordinates))
        fitted = ["statistics"] * bool(spec.statistics and spec.encoding != "minmax")
        fitted += ["proxies"] * bool(spec.proxies)
        encodings = {"statistics": spec.encoding, "proxies": of_proxies(spec.encoding)}
        codings = {kind: restore_coding(encodings[kind], arrays.part(tensors, kind)) for kind in fitted}
        return cls(spec, held.space, held.live, coordinates, codings)

    def _aligned(self, rows: Rows) -> tuple[Reals, dict[str, Integers], dict[int, str]]:
        """Return raw statistics at their coordinates, with zeros in all others, and how many of each row count.

        Also of each row that has places which are no coordinates the first of these, by its name.
        """
        x = np.zeros((int(rows.usable.sum()), len(self.coordinates)), np.float32)
        packed = self.spec.alignment == "packed"
        counts: dict[str, Integers] = {}
        unknown: dict[int, str] = {}
        for name, part in self._parts.items():
            lists = rows.lists(name)
            if packed:
                counts[name], new = self._pack(rows, name, lists, x[:, part])
            else:
                new = self._place(rows, name, lists, x[:, part])
            unknown = new | unknown
        return x, counts, unknown

    def _place(self, rows: Rows, name: str, lists: Lists, out: Reals) -> dict[int, str]:
        places = rows.places(name, lists)
        position = {c.slot: at for at, c in enumerate(self.coordinates[self._parts[name]])}
        target = np.array([position.get(slot, -1) for slot in places.names], np.int64)
        starts = places.starts[places.of_row]
        for piece, held in lists.pieces():
            at = target[places.flat[ranges(starts[piece], lists.lengths[piece])]]
            owner = np.repeat(np.arange(piece.start, piece.stop), lists.lengths[piece])
            known = at >= 0
            out[owner[known], at[known]] = lists.values[held][known]
        used = np.unique(places.of_row)
        slots = places.flat[ranges(places.starts[used], places.lengths[used])]
        new = target[slots] < 0
        sequences, first = np.unique(np.repeat(used, places.lengths[used])[new], return_index=True)
        named = dict(zip(sequences.tolist(), (places.names[slot] for slot in slots[new][first]), strict=True))
        return {row: named[own] for row, own in enumerate(places.of_row.tolist()) if own in named} if named else {}

    def _pack(self, rows: Rows, name: str, lists: Lists, out: Reals) -> tuple[Integers, dict[int, str]]:
        live = rows.live_layers if is_layers(name) else None
        counts = count_live(lists, live)
        width = out.shape[1]
        for piece, held in lists.pieces():
            values = lists.values[held]
            if live is not None:
                values = values[live[held]]
            owner = np.repeat(np.arange(piece.start, piece.stop), counts[piece])
            at = ranges(np.zeros(piece.stop - piece.start, np.int64), counts[piece])
            known = at < width
            out[owner[known], at[known]] = values[known]
        return counts, dict.fromkeys(np.flatnonzero(counts > width).tolist(), _packed(name, width))


class _Record(BaseModel):
    """What `Encoder.record` gives."""

    model_config = ConfigDict(extra="forbid")

    spec: FeatureSpec
    space: str
    live: str
    coordinates: list[tuple[str, str, str]]


def _first(error: ValidationError | UsageError) -> str:
    """Say in a few words what is wrong with a record."""
    if isinstance(error, UsageError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(step) for step in first['loc'])}: {first['msg'].lower()}"


def _require_coordinates(coordinates: Sequence[Coordinate], spec: FeatureSpec, space: str) -> None:
    """Refuse coordinates that no table of a space can have by a spec.

    Raises:
        DataError: their columns, order or number are others.
    """
    statistics = [c for c in coordinates if c.column in spec.statistics]
    expected = [*sorted(statistics, key=lambda c: spec.statistics.index(c.column))]
    expected += [Coordinate(name, "", "") for name in spec.proxies]
    if spec.graph:
        expected += choices_of(space)
    nowhere = any(not (c.slot and c.group) for c in statistics)
    if list(coordinates) != expected or nowhere or len(set(coordinates)) < len(coordinates):
        raise DataError(f"the {len(coordinates)} coordinates are not those of the features; fit and save them anew")


def _coordinates(rows: Rows, name: str) -> Iterator[Coordinate]:
    """Yield the coordinates of a statistic over a population."""
    lists = rows.lists(name)
    if rows.spec.alignment == "packed":
        counts = count_live(lists, rows.live_layers if is_layers(name) else None)
        numbered = (_packed(name, i) for i in range(int(counts.max())))
        yield from (Coordinate(name, slot, slot) for slot in numbered)
        return
    places, blocks = rows.places(name, lists), blocks_of(rows.table)
    yield from (
        Coordinate(name, slot, group_of(slot, blocks)) for slot in map(places.names.__getitem__, places.in_order())
    )


def _packed(name: str, number: int) -> str:
    """Return what the slot of a packed statistic's value is called."""
    return f"{name.rpartition('@')[2]}.{number}"


def _scalars(rows: Rows) -> NDArray[np.float64]:  # [usable rows, proxies]
    values = rows.table.values(rows.spec.proxies)
    return np.stack([values[name][rows.usable] for name in rows.spec.proxies], axis=1)
