"""Small runs over the space `hazards`, and what of their tables must not depend on how they were made."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from zcpipe.run import RunSpec
from zcpipe.table import open_table


def spec(**fields: object) -> RunSpec:
    plain = {
        "space": "hazards",
        "dataset": "tiny",
        "proxies": ("expressivity", "trainability", "params"),
        "batch_size": 4,
        "classes_per_shard": 4,
    }
    return RunSpec.model_validate({**plain, **fields})


def content(out: str | Path) -> pa.Table:
    return open_table(out).to_arrow().drop_columns(["seconds"])


def outcomes(out: Path) -> dict[int, tuple[str, str]]:
    rows = open_table(out).to_arrow().to_pylist()
    return {
        row["index"]: (row["status"], row["failures"][0]["message"])
        for row in rows
        if row["status"] != "ok" or row["failures"]
    }


def assert_like(rows: pa.Table, undisturbed: pa.Table, indices: set[int]) -> None:
    """The rows but for those at ``indices`` are those of a run in which nothing happened."""
    kept = [index for index in range(24) if index not in indices]
    assert rows.take(kept).equals(undisturbed.take(kept))
