"""NAS-Bench-Macro: the official file ``nas-bench-macro_cifar10.json``, and how its numbers are named here.

``cifar10_test_50`` is the mean over the trained seeds of the accuracy on CIFAR-10's test images, in percent;
``cifar10_test_50_seeds`` counts the seeds. The file does not say how long was trained: 50 epochs are the default of the
published training code. ``benchmark_params`` and ``benchmark_flops`` are what the file states; its FLOPs are
multiply-accumulates. Texts that differ in where a stage's identities stand share their numbers in the file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa

from zcpipe.errors import DataError, UsageError
from zcpipe.spaces.nasbenchmacro import NasBenchMacro
from zcpipe.truth.reader import Progress, Reader, stored_name
from zcpipe.untrusted.jsonfile import read_json
from zcpipe.untrusted.plain import shown

READER_VERSION = 1

_LARGEST = 64 << 20  # the official file has 1.2 MB
_COLUMN = "cifar10_test_50"


def read_table(path: Path | str, progress: Progress | None = None) -> pa.Table:
    """Read the official file into the columns this module's documentation names, in the order of the space.

    Args:
        path: the file; it may lack architectures.
        progress: told (bytes read so far, bytes in all).

    Raises:
        DataError: the file is missing, truncated, damaged or not of this format; it names file and architecture.
    """
    place = Path(path)
    entries = _entries(place, progress)
    space = NasBenchMacro()
    rows = []
    seen: set[int] = set()
    for text, entry in entries.items():
        where = f"{place}, {shown(text)}"
        try:
            arch = space.parse(text)
        except UsageError as error:
            raise DataError(f"{where}: {error}") from error
        index = space.index(arch)
        if index in seen:
            raise DataError(f"{where}: the file has the architecture {arch} twice; keep one entry each")
        seen.add(index)
        rows.append((index, str(arch), *_numbers(entry, where)))
    indices, texts, means, seeds, params, flops = zip(*sorted(rows), strict=True)
    meaning = {"dataset": "cifar10", "split": "test", "epochs": "50"}
    stated = {"dataset": "cifar10", "source": "as the benchmark states it"}
    schema = pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("arch", pa.string(), nullable=False),
            pa.field(_COLUMN, pa.float64(), metadata={**meaning, "unit": "%", "direction": "higher"}),
            pa.field(f"{_COLUMN}_seeds", pa.int32(), metadata={**meaning, "unit": "trained seeds"}),
            pa.field("benchmark_params", pa.int64(), metadata={**stated, "unit": "parameters"}),
            pa.field("benchmark_flops", pa.int64(), metadata={**stated, "unit": "multiply-accumulates"}),
        ],
        metadata={"zcpipe.truth": json.dumps(_about(place))},
    )
    return pa.table([indices, texts, means, seeds, params, flops], schema=schema)


READER = Reader(name="nasbenchmacro", title="NAS-Bench-Macro: official JSON file", read=read_table)

READERS = (READER,)


def _about(place: Path) -> dict[str, str]:
    return {
        "benchmark": "NAS-Bench-Macro",
        "source": stored_name(place.resolve()),
        "reader": f"zcpipe.truth.nasbenchmacro {READER_VERSION}",
        "licence": "NAS-Bench-Macro (Su et al., 2021) is published under the Apache-2.0 licence",
    }


def _entries(place: Path, progress: Progress | None) -> dict[str, Any]:
    content = read_json(place, "nas-bench-macro_cifar10.json", _LARGEST)
    if progress is not None:
        size = place.stat().st_size
        progress(size, size)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{place}: holds no architectures; it is no NAS-Bench-Macro file")
    return content


def _numbers(entry: object, where: str) -> tuple[float, int, int, int]:
    """Return the mean accuracy, the number of seeds, parameters and multiply-accumulates of one architecture."""
    known = entry if isinstance(entry, dict) else {}
    accuracies, mean = known.get("test_acc"), known.get("mean_acc")
    if not isinstance(accuracies, list) or not accuracies:
        raise DataError(f"{where}: lacks the accuracies (`test_acc`) that a NAS-Bench-Macro file holds")
    for value in (*accuracies, mean):
        if type(value) not in (int, float) or not 0 <= value <= 100:  # NaN fails, too
            raise DataError(f"{where}: {shown(value)} is no accuracy in percent")
    found = math.fsum(accuracies) / len(accuracies)
    if abs(found - mean) > 1e-6:  # type: ignore[operator]  # a number, as just checked
        raise DataError(f"{where}: states the mean {shown(mean)} of accuracies whose mean is {found}; it is damaged")
    sizes = known.get("params"), known.get("flops")
    for size in sizes:
        if type(size) is not int or not 0 < size < 1 << 63:
            raise DataError(f"{where}: {shown(size)} is no number of parameters or FLOPs")
    params, flops = sizes
    return found, len(accuracies), params, flops  # type: ignore[return-value]  # likewise
