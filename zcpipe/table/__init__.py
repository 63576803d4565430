"""The table of scored architectures: a directory of Parquet files, written shard by shard and read by any reader."""

from __future__ import annotations

from zcpipe.table.summary import Status, status
from zcpipe.table.table import Table, open_table

__all__ = ["Status", "Table", "open_table", "status"]
