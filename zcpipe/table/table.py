"""Reading a table: whole, by architecture, or its best rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zcpipe.errors import CapabilityError, DataError, UsageError, unknown_name
from zcpipe.proxies import groups

# The one import upwards, for `Table.top`: these two modules are arithmetic over arrays, import no table themselves and
# must not begin to. The modules of rank/ that read tables are rank.population and what is above it.
from zcpipe.rank.aggregate import log_rank
from zcpipe.rank.selection import top
from zcpipe.scoring.columns import Column
from zcpipe.table.groups import count_rows, require_groups
from zcpipe.table.join import Part, join, joined_header, take, union
from zcpipe.table.place import Place, locate
from zcpipe.table.schema import EVERYTHING

if TYPE_CHECKING:
    import pandas as pd


def open_table(path: str | Place) -> Table:
    """Open the table in a directory for reading, with all groups of columns; what is committed later is not seen.

    Raises:
        DataError: there is no table, or one of its files is damaged or foreign.
    """
    base, *joined = (Part(group.header, count_rows(group)) for group in require_groups(locate(path)))
    return Table(base, joined)


class Table:
    """Rows of scored architectures, sorted by index.

    Columns that joined later may lack some rows, as those that were there before may lack rows of theirs: they are null
    there.
    """

    def __init__(self, base: Part, joined: Sequence[Part] = ()) -> None:
        self._parts = (base, *joined)
        self._header = joined_header([part.header for part in self._parts])

    @property
    def spec(self) -> dict[str, Any]:
        """The record of the run that made the table."""
        return dict(self._header.spec)

    @property
    def identity(self) -> dict[str, Any]:
        """Space, dataset, recipe and seed."""
        return dict(self._header.identity)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of all columns, with what is known about each in its metadata."""
        return self._header.schema

    @property
    def columns(self) -> tuple[Column, ...]:
        """Proxies, counts and statistics in table order."""
        return self._header.columns

    def __len__(self) -> int:
        return len(self._parts[0]) if len(self._parts) == 1 else len(union(self._parts))

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns, by default all of them, sorted by index.

        Raises:
            UsageError: the table has no such column.
            DataError: a file is damaged.
        """
        schema = self._header.schema
        names = schema.names if columns is None else list(columns)
        for name in names:
            if name not in schema.names:
                raise unknown_name("column", name, schema.names)
        return self._parts[0].read(names) if len(self._parts) == 1 else join(self._parts, names, schema)

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read columns as a pandas frame, sorted by index.

        Raises:
            CapabilityError: pandas is not installed.
        """
        try:
            frame: pd.DataFrame = self.to_arrow(columns).to_pandas()
        except ImportError as error:
            raise CapabilityError("to_pandas needs pandas; install it with `pip install pandas`") from error
        return frame

    def lookup(self, archs: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of architectures, in the order asked.

        Args:
            archs: canonical texts; repeats are allowed.
            columns: what to read, by default everything.

        Raises:
            DataError: some are not in the table; the first few are named.
            UsageError: the table has no such column.
        """
        import pyarrow.compute as pc  # slow to import, and every worker imports this module

        wanted = pa.array([str(arch) for arch in archs], pa.large_string())
        found = pc.index_in(wanted, value_set=self._archs)
        if found.null_count:
            absent = wanted.filter(pc.is_null(found)).unique().to_pylist()
            shown = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
            raise DataError(f"{len(absent)} architectures are not in the table: {shown}; score them with --archs")
        return take(self.to_arrow(columns), found.to_numpy())

    def top(self, k: int, by: str | None = None) -> pa.Table:
        """Return the best rows: index, arch, key, proxies and counts, best first.

        Args:
            k: how many at most; rows without a value are never returned, ties go to the smaller index.
            by: a proxy or count; by default the AZ-NAS aggregate, returned in a further column ``aznas``.

        Raises:
            UsageError: ``k`` is not positive, or ``by`` is unknown or has no direction.
        """
        if k < 1:
            raise UsageError(f"top needs a positive number of rows, got {k}")
        shown = ["index", "arch", "key", *(column.name for column in self.columns if column.kind != "statistic")]
        rows = self.to_arrow(shown)
        lacking = [name for name in groups()["aznas"] if name not in shown]
        if by is None and lacking:
            raise UsageError(f"the AZ-NAS aggregate needs the column {lacking[0]}, which the table lacks; pass by=")
        if by is not None:
            direction = self.directions([by])[by]
            return take(rows, top(self.values([by])[by], k, direction))
        names = groups()["aznas"]
        rows = rows.append_column("aznas", pa.array(log_rank(self.values(names), self.directions(names))))
        return take(rows, top(rows["aznas"].to_numpy(), k))

    def values(self, names: Sequence[str]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """Read proxies or counts as float64 in order of index, NaN where they failed.

        Raises:
            UsageError: the table has no such column.
        """
        columns = self.to_arrow(names)
        return {name: columns[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in names}

    def missing(self, values: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.bool_]]:
        """Say of what `values` gave which rows have neither a value nor a failure that says why: nobody scored them.

        What ended a process costs the columns of its own group, not those of groups that lack the row.
        """
        index = self._parts[0].index if len(self._parts) == 1 else union(self._parts)
        found = {name: np.isnan(of_column) for name, of_column in values.items()}
        for part in self._parts if any(rows.any() for rows in found.values()) else ():
            own = found.keys() & set(part.header.schema.names)
            if own:
                failed, proxies = _failures(part)
                rows = np.searchsorted(index, part.index)[failed]
                for name in own:
                    found[name][rows[np.isin(proxies, [name, EVERYTHING])]] = False
        return found

    def directions(self, names: Sequence[str]) -> dict[str, str]:
        """Return the direction of each proxy or count.

        Raises:
            UsageError: the table has no such column with a direction.
        """
        ranked = {column.name: column.direction for column in self.columns if column.direction != "none"}
        for name in names:
            if name not in ranked:
                raise unknown_name("proxy of the table", name, ranked)
        return {name: ranked[name] for name in names}

    @cached_property
    def _archs(self) -> pa.ChunkedArray:
        """The texts, in a type of which a dictionary may hold more than 2 GiB."""
        return self.to_arrow(["arch"])["arch"].cast("large_string")


def _failures(part: Part) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Return of each failure which row of a part it is of, and the proxy."""
    import pyarrow.compute as pc  # slow to import, and every worker imports this module

    rows, proxies, before = [np.empty(0, np.int64)], [np.empty(0, np.str_)], 0
    for chunk in part.read(["failures"])["failures"].chunks:
        rows.append(before + pc.list_parent_indices(chunk).to_numpy())
        names = pc.struct_field(pc.list_flatten(chunk), "proxy")
        proxies.append(names.to_numpy(zero_copy_only=False).astype(np.str_))
        before += len(chunk)
    return np.concatenate(rows), np.concatenate(proxies)
