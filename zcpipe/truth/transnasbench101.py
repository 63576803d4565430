"""TransNAS-Bench-101: the official file ``transnas-bench_v10141024.pth``, and how its numbers are named here.

Each row is one architecture, of the cell level (``space`` is micro) or of the macro level. For every task and every
validation or test metric that the file lists there are two columns, in the benchmark's own words:

- ``<task>_<metric>_<epochs>``, such as ``class_scene_valid_top1_25``: the value after the last epoch;
- ``<task>_<metric>_<epochs>_best``: the best of all epochs, the largest value but for losses (``neg_loss``, which is a
  loss with its sign changed, is the larger the better).

Values are what the file holds (``top1``, ``top5``, ``acc`` and ``mIoU`` in percent); what is not finite is null, and so
is what an architecture lacks. ``<task>_<info>``, such as ``class_scene_model_params``, is what the benchmark states of
the task's network.

The reader follows the published API; it was proved on files made in that format, not on the official one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from zcpipe.errors import DataError, UsageError
from zcpipe.spaces.transnasbench101_macro import TransNasBench101Macro
from zcpipe.spaces.transnasbench101_micro import TransNasBench101Micro
from zcpipe.truth.reader import Progress, Reader, stored_name
from zcpipe.untrusted.plain import shown
from zcpipe.untrusted.stream import size_of
from zcpipe.untrusted.torchfile import load_torch
from zcpipe.untrusted.unpickle import Limits

READER_VERSION = 1

_SPACES: Mapping[str, TransNasBench101Micro | TransNasBench101Macro] = {
    "micro": TransNasBench101Micro(),
    "macro": TransNasBench101Macro(),
}
_SPLITS = {"valid": "valid", "val": "valid", "test": "test"}  # by how a metric's name begins
_PERCENT = ("top1", "top5", "acc", "mIoU")
_NUMBERS = frozenset({int, float})
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,63}")
_MOST_COLUMNS = 2048

# 51,464 trainings of some ten curves of up to thirty numbers, which are cut down while they are read.
_LIMITS = Limits(content=2 << 30, objects=20_000_000, memo=50_000_000)


@dataclass(frozen=True)
class Kind:
    """What a column is of: a task's metric after so many epochs."""

    task: str
    metric: str
    epochs: int

    @property
    def column(self) -> str:
        """The column's name."""
        return f"{self.task}_{self.metric}_{self.epochs}"

    @property
    def meaning(self) -> dict[str, str]:
        """The column's metadata."""
        split, _, what = self.metric.partition("_")
        unit = "%" if what in _PERCENT else "as the benchmark states it"
        direction = "lower" if _is_loss(self.metric) else "higher"
        known = {"dataset": self.task, "split": _SPLITS[split], "epochs": str(self.epochs)}
        return {**known, "unit": unit, "direction": direction}


@dataclass(frozen=True)
class Trained:
    """One architecture's truth: for each kind the last and the best value, and what is stated of its networks."""

    space: str
    arch: str
    values: Mapping[Kind, tuple[float | None, float | None]]
    infos: Mapping[str, float | None]  # by column


def read_table(path: Path | str, progress: Progress | None = None) -> pa.Table:
    """Read the official file into the columns this module's documentation names, in the file's order.

    Args:
        path: the file; it may lack architectures and tasks.
        progress: told (bytes read so far, bytes in all).

    Raises:
        DataError: the file is missing, truncated, damaged, hostile or not of this format; it names file and entry.
    """
    place = Path(path)
    rows = list(_rows(_load(place, progress), place))
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.values))
    infos = list(dict.fromkeys(name for row in rows for name in row.infos))
    names = ["space", "arch", *(name for kind in kinds for name in (kind.column, f"{kind.column}_best")), *infos]
    if not rows or len(names) > _MOST_COLUMNS or len(set(names)) < len(names):
        raise DataError(f"{place}: holds no architectures, or more than seven tasks need; it is another kind of file")
    fields = [pa.field(name, pa.string(), nullable=False) for name in names[:2]]
    arrays = [pa.array([row.space for row in rows]), pa.array([row.arch for row in rows])]
    for kind in kinds:
        for which, (name, epoch) in enumerate(((kind.column, "last"), (f"{kind.column}_best", "best"))):
            fields.append(pa.field(name, pa.float64(), metadata={**kind.meaning, "epoch": epoch}))
            arrays.append(pa.array([row.values.get(kind, (None, None))[which] for row in rows], pa.float64()))
    for name in infos:
        fields.append(pa.field(name, pa.float64(), metadata={"source": "as the benchmark states it"}))
        arrays.append(pa.array([row.infos.get(name) for row in rows], pa.float64()))
    about = {
        "benchmark": "TransNAS-Bench-101",
        "source": stored_name(place.resolve()),
        "reader": f"zcpipe.truth.transnasbench101 {READER_VERSION}",
        "licence": "TransNAS-Bench-101 (Duan et al., 2021) is published under the MIT licence",
    }
    return pa.table(arrays, schema=pa.schema(fields, metadata={"zcpipe.truth": json.dumps(about)}))


READER = Reader(name="transnasbench101", title="TransNAS-Bench-101, both levels: official .pth file", read=read_table)

READERS = (READER,)


def _load(place: Path, progress: Progress | None) -> object:
    size = size_of(place, "transnas-bench_v10141024.pth")
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, size), size)

    content = load_torch(place, limits=_LIMITS, on_dict=_slim, progress=told)
    told(size)
    return content


def _slim(record: dict[Any, Any]) -> int:
    """Cut a training's curves down to (epochs, last, best), and to those of validation and test.

    Curves that are none stay for the checks; any other dict passes untouched.
    """
    metrics = record.get("metrics")
    if type(metrics) is not dict or "total_epochs" not in record:
        return 0
    let_go = 0
    for name, curve in list(metrics.items()):
        if type(name) is not str or type(curve) is not list:
            continue
        if not _is_told(name):
            del metrics[name]
        elif curve and _NUMBERS.issuperset(map(type, curve)):
            metrics[name] = (len(curve), _finite(curve[-1]), _best(name, curve))
            let_go -= 4
        else:
            continue
        let_go += len(curve)
        curve.clear()  # the reader of the pickle holds on to the list
    return let_go


def _best(metric: str, curve: Iterable[float]) -> float | None:
    finite = (value for value in curve if math.isfinite(value))
    return min(finite, default=None) if _is_loss(metric) else max(finite, default=None)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _is_told(metric: str) -> bool:
    """Whether a metric is one of validation or test."""
    return metric.partition("_")[0] in _SPLITS


def _is_loss(metric: str) -> bool:
    return metric.endswith("loss") and not metric.endswith("neg_loss")


def _rows(content: object, place: Path) -> Iterator[Trained]:
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict) or not data:
        raise DataError(f"{place}: holds no trained architectures (`data`); it is no TransNAS-Bench-101 file")
    for level, archs in data.items():
        if level not in _SPACES or not isinstance(archs, dict):
            raise DataError(f"{place}: {shown(level)} is neither of the levels micro and macro")
        seen: set[str] = set()
        for text, tasks in archs.items():
            where = f"{place}, {shown(text)}"
            try:
                arch = str(_SPACES[level].parse(text if isinstance(text, str) else ""))
            except UsageError as error:
                raise DataError(f"{where}: {error}") from error
            if arch in seen:  # under another spelling
                raise DataError(f"{where}: the file has the architecture {arch} twice; keep one entry each")
            seen.add(arch)
            yield Trained(level, arch, *_trained(tasks, where))


def _trained(
    tasks: object, where: str
) -> tuple[dict[Kind, tuple[float | None, float | None]], dict[str, float | None]]:
    """Check what one architecture's networks were trained to, and what is stated of them."""
    values: dict[Kind, tuple[float | None, float | None]] = {}
    infos: dict[str, float | None] = {}
    for task, record in _items(tasks, where):
        known = record if isinstance(record, dict) else {}
        for metric, found in _items(known.get("metrics"), f"{where}, {task}"):
            if not _is_told(metric):
                continue
            if type(found) is not tuple or len(found) != 3 or type(found[0]) is not int:
                raise DataError(f"{where}, {task}: {metric} is no curve of numbers over epochs")
            last, best = (_value(value, f"{where}, {task}") for value in found[1:])
            values[Kind(task, metric, found[0])] = (last, best)
        for info, stated in _items(known.get("model_info"), f"{where}, {task}"):
            infos[f"{task}_{info}"] = _value(stated, f"{where}, {task}")
    return values, infos


def _items(value: object, where: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: lacks the results that a TransNAS-Bench-101 file holds")
    for name in value:
        if not isinstance(name, str) or not _WORD.fullmatch(name):
            raise DataError(f"{where}: {shown(name)} cannot be the name of a task, metric or property")
    return list(value.items())


def _value(value: object, where: str) -> float | None:
    if value is None or value == "":  # the published script leaves what it did not measure empty
        return None
    if type(value) not in (int, float):
        raise DataError(f"{where}: {shown(value)} is no number")
    return _finite(value)  # type: ignore[arg-type]  # as just checked
