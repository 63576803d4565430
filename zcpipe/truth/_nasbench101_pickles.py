"""The two pickled forms of NAS-Bench-101: NASLib's and that of the package nasbenchapi.

- NASLib's ``nasbench_only108.pkl`` is ``{hash: (fixed, {epochs: [computed, ...]})}`` with the names of the benchmark's
  own interface: ``module_adjacency`` and the like in ``fixed``, ``final_test_accuracy`` and the like in ``computed``.
- nasbenchapi's is ``{"benchmark": "nasbench101", "entries_by_arch": {hash: [record, ...]}, ...}``. Its records carry
  the benchmark's message as text, and the last evaluation, which is what is read here, in ``derived``.

Cells are added up and dropped while a file is being read, a thousand at a time as Python writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from zcpipe.errors import DataError
from zcpipe.truth._nasbench101_metrics import Metrics
from zcpipe.truth._nasbench101_tally import Run, Tally
from zcpipe.untrusted.plain import ARRAY_GLOBALS, Array, shown
from zcpipe.untrusted.unpickle import Limits, load

_HASH = re.compile(r"[0-9a-f]{32}")
_TEXT = 128  # bytes: longer are only messages


def read_pickle(
    file: BinaryIO, where: str, size: int, tally: Tally, progress: Callable[[int], None] | None = None
) -> None:
    """Add the trainings of a pickled file to a tally.

    Args:
        file: an open binary file at its beginning.
        where: the file's name, for messages.
        size: how many bytes it has.
        tally: what to add to.
        progress: told the number of bytes that were read since it was last told.

    Raises:
        DataError: the file is damaged, hostile or of another form.
    """
    collect = _Collector(where, tally)
    content = load(file, where, limits=_limits(size), on_dict=collect, names=ARRAY_GLOBALS, progress=progress)
    if not isinstance(content, dict) or content.get("benchmark", "nasbench101") != "nasbench101" or not collect.cells:
        raise DataError(f"{where}: is a pickle, but none of NAS-Bench-101's trainings")


def _limits(size: int) -> Limits:
    """Let a file cost in proportion to its size: few bytes may stand for many only in a large one."""
    few = Limits()
    return Limits(
        content=few.content + min(32 * size, 16 << 30),
        objects=few.objects + min(size // 2, 60_000_000),
        memo=few.memo + min(size // 2, 100_000_000),
        text=_TEXT,
    )


class _Collector:
    """Sees every dict of a file as it fills; takes those that go from hashes to cells and leaves them empty."""

    def __init__(self, where: str, tally: Tally) -> None:
        self._where = where
        self._tally = tally
        self.cells = 0

    def __call__(self, entries: dict[Any, Any]) -> int:
        first = next(iter(entries), None)
        if type(first) is not str or not _HASH.fullmatch(first):
            return 0
        freed = len(entries)
        runs: list[Run] = []
        for key, value in entries.items():
            if type(value) is dict and "derived" in value:  # a summary of the records of one cell
                freed += _cleared(value)
            else:
                self.cells += 1
                runs.extend(self._of_naslib(key, value) if type(value) is tuple else self._of_records(key, value))
        self._tally.add(runs)
        for value in entries.values():
            freed += sum(map(_cleared, value)) if type(value) is tuple else _cleared(value)
        entries.clear()
        return freed

    def _of_naslib(self, key: object, value: tuple[Any, ...]) -> Iterator[Run]:
        place = f"cell {shown(key)}"
        fixed, computed = value if len(value) == 2 else (None, None)
        adjacency = self._take(fixed, "module_adjacency", place)
        operations = self._take(fixed, "module_operations", place)
        if type(adjacency) is not Array or adjacency.value.dtype.kind not in "bui" or adjacency.value.size > 49:
            raise self._foreign(place)
        if type(operations) is not list or not all(type(operation) is str for operation in operations):
            raise self._foreign(place)
        matrix = "".join(map(str, adjacency.value.astype(np.int64).ravel().tolist()))
        for epochs, repeats in self._dict(computed, place).items():
            for repeat in self._list(repeats, place):
                metrics = Metrics(
                    self._take(fixed, "trainable_parameters", place),
                    self._take(repeat, "final_training_time", place),
                    self._take(repeat, "final_train_accuracy", place),
                    self._take(repeat, "final_validation_accuracy", place),
                    self._take(repeat, "final_test_accuracy", place),
                )
                yield Run(place, key, matrix, ",".join(operations), epochs, metrics)

    def _of_records(self, key: object, value: object) -> Iterator[Run]:
        place = f"cell {shown(key)}"
        for record in self._list(value, place):
            derived = self._take(record, "derived", place)
            metrics = Metrics(
                self._take(derived, "trainable_parameters", place),
                self._take(derived, "training_time", place),
                self._take(derived, "train_accuracy", place),
                self._take(derived, "validation_accuracy", place),
                self._take(derived, "test_accuracy", place),
            )
            adjacency = self._take(record, "adjacency_str", place)
            operations = self._take(record, "operations_str", place)
            yield Run(place, key, adjacency, operations, self._take(record, "epoch", place), metrics)

    def _take(self, holder: object, name: str, place: str) -> Any:  # noqa: ANN401 - the tally checks it
        entries = self._dict(holder, place)
        if name not in entries:
            raise DataError(f"{self._where}: {place} lacks {name}; the file is damaged or foreign")
        return entries[name]

    def _dict(self, value: object, place: str) -> dict[Any, Any]:
        if type(value) is not dict:
            raise self._foreign(place)
        return value

    def _list(self, value: object, place: str) -> list[Any]:
        if type(value) is not list:
            raise self._foreign(place)
        return value

    def _foreign(self, place: str) -> DataError:
        return DataError(f"{self._where}: {place} is not as NAS-Bench-101's cells are; the file is damaged or foreign")


def _cleared(value: object) -> int:
    """Empty a container and the ones in it, and say how many entries that lets go; what holds itself ends there."""
    if not isinstance(value, dict | list):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value[:]
    value.clear()
    return len(inner) + sum(map(_cleared, inner))
