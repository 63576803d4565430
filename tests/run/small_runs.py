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
