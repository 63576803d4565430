"""The table of scored architectures: a directory of Parquet files, written shard by shard and read by any reader."""

from __future__ import annotations

from zcpipe.table.compact import compact
from zcpipe.table.merge import merge
from zcpipe.table.rewrite import Rewritten
from zcpipe.table.summary import Status, status
from zcpipe.table.table import Table, open_table

__all__ = ["Rewritten", "Status", "Table", "compact", "merge", "open_table", "status"]
