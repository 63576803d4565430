"""JSON that others wrote: files of a bounded size, and no object that has a name twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from zcpipe.errors import DataError
from zcpipe.untrusted.plain import shown
from zcpipe.untrusted.stream import reading, size_of


def loads(text: str | bytes) -> Any:  # noqa: ANN401 - the text decides; callers check every type they use
    """Read JSON of which nothing is lost: Python's reader keeps the last of what one object has under one name.

    Raises:
        ValueError: it is no JSON, or an object has a name twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_once)


def read_json(path: Path, give: str, most: int) -> Any:  # noqa: ANN401 - likewise
    """Read a JSON file.

    Args:
        path: the file.
        give: what the user should have given, for messages.
        most: bytes that such a file may have.

    Raises:
        DataError: it is missing, no regular file, too large, cannot be read or is no JSON; the message names it.
    """
    size = size_of(path, give)
    if size > most:
        raise DataError(f"{path}: has {size} bytes, more than any such file needs; give {give}")
    with reading(path):
        data = path.read_bytes()
    try:
        return loads(data)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: is no JSON ({reason:.120}); the file is truncated or foreign, fetch it again"
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        again, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"an object has the name {shown(again)} twice")
    return found
