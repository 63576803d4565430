"""Tables made by hand, of rows that are given, and what a table of some of their rows is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from zcpipe.scoring.columns import Column
from zcpipe.table import Table
from zcpipe.table.schema import Header


class Held:
    """Rows in memory, as the part of a table that files hold."""

    def __init__(self, header: Header, rows: pa.Table) -> None:
        self.header = header
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, names: Sequence[str]) -> pa.Table:
        return self.rows.select(names)


def statistic(name: str, slots: Sequence[str] = (), unit: str = "") -> Column:
    return Column(name, "statistic", unit, "none", "function", "", tuple(slots))


def proxy(name: str, unit: str = "") -> Column:
    return Column(name, "proxy", unit, "higher", "function", "")


def table(
    values: Mapping[Column, Sequence[object]],
    space: str = "nasbench201",
    archs: Sequence[str] | None = None,
    dataset: str = "cifar10",
) -> Table:
    """Make a table of columns and their values, of any architectures unless it matters which."""
    n = len(next(iter(values.values())))
    recipe = {"protocol": "paper", "batch_size": 2, "inputs": "noise", "repeats": 1}
    header = Header(tuple(values), {}, {"space": space, "dataset": dataset, "recipe": recipe, "seed": 0})
    texts = [f"arch {i}" for i in range(n)] if archs is None else list(archs)
    columns: dict[str, object] = {
        "index": np.arange(n),
        "arch": texts,
        "key": texts,
        "space": [space] * n,
        **{column.name: of_column for column, of_column in values.items()},
        "seconds": np.zeros(n),
        "status": ["ok"] * n,
        "failures": [[]] * n,
    }
    arrays = [pa.array(columns[field.name], field.type, from_pandas=False) for field in header.schema]
    return Table(Held(header, pa.Table.from_arrays(arrays, schema=header.schema)))  # type: ignore[arg-type]


def some(whole: Table, rows: Sequence[int]) -> Table:
    """Return a table of some of the rows, in the order given."""
    held = whole._parts[0]
    assert isinstance(held, Held)
    taken = held.rows.take(pa.array(rows, pa.int64()))
    return Table(Held(held.header, pa.concat_tables([taken.slice(0, 1), taken.slice(1)])))  # type: ignore[arg-type]
