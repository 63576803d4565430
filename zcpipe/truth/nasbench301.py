"""NAS-Bench-301: the trained networks that its surrogates rest on, from one pickled file.

The file is ``{"entries": [{"path": ..., "parsed": ...}], ...}``, ``parsed`` being what the benchmark published for one
training (``results_*.json``): the architecture in ``optimized_hyperparamater_config``, the accuracy on the validation
images after every epoch, and that on the test images at the end.

``cifar10_val_<epochs>`` and ``cifar10_test_<epochs>`` are accuracies in percent at the end of training for that many
epochs, the mean over all entries of an architecture; ``_seeds`` counts them. They are of networks of 8 cells and 32
channels; accuracies of others are in columns ``..._<cells>x<channels>``. ``arch`` is the text of the space
``nasbench301``, whatever the size of the network that was trained.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from zcpipe.errors import DataError, UsageError
from zcpipe.spaces.nasbench301 import NASBENCH301
from zcpipe.truth.reader import Progress, Reader, stored_name
from zcpipe.untrusted.plain import shown
from zcpipe.untrusted.stream import reading, size_of
from zcpipe.untrusted.unpickle import Limits, load

READER_VERSION = 1
MAX_KINDS = 64

_PREFIX = "NetworkSelectorDatasetInfo:darts:"
_CONFIG, _CURVE = "optimized_hyperparamater_config", "Train/val_accuracy"  # as the benchmark spells them
_EDGE = re.compile(r"edge_(normal|reduce)_(\d{1,2})", re.ASCII)
_PUBLISHED = (8, 32)

_Kind = tuple[int, int, int]
"""Cells, channels, epochs."""


def read_table(path: Path | str, progress: Progress | None = None) -> pa.Table:
    """Read the file into the columns this module's documentation names, in ascending order of the texts.

    Raises:
        DataError: the file is missing, damaged, hostile or not of this format; the message names the entry.
    """
    place = Path(path)
    accuracies: dict[str, dict[tuple[_Kind, str], list[float]]] = {}
    met: set[tuple[_Kind, str]] = set()
    for number, entry in enumerate(_entries(place, progress)):
        where = f"{place}, entry {number}"
        arch, kind, values = _entry(entry, where)
        for split, value in values.items():
            accuracies.setdefault(arch, {}).setdefault((kind, split), []).append(value)
            met.add((kind, split))
        if len(met) > 2 * MAX_KINDS:
            raise DataError(
                f"{place}: its networks are of more than {MAX_KINDS} sizes and durations; it is not one release"
            )
    kinds = sorted(met)
    fields = [pa.field("arch", pa.string(), nullable=False)]
    arrays = [pa.array(sorted(accuracies), pa.string())]
    for (cells, channels, epochs), split in kinds:
        name = f"cifar10_{split}_{epochs}" + ("" if (cells, channels) == _PUBLISHED else f"_{cells}x{channels}")
        found = [accuracies[arch].get(((cells, channels, epochs), split), []) for arch in sorted(accuracies)]
        about = {"dataset": "cifar10", "split": split, "epochs": str(epochs), "cells": str(cells)}
        meaning = {**about, "channels": str(channels), "unit": "%", "direction": "higher"}
        fields += [pa.field(name, pa.float64(), metadata=meaning)]
        fields += [pa.field(f"{name}_seeds", pa.int32(), metadata={**about, "unit": "trained networks"})]
        means = [statistics.fmean(values) if values else None for values in found]
        arrays += [pa.array(means, pa.float64()), pa.array(list(map(len, found)), pa.int32())]
    about = {
        "benchmark": "NAS-Bench-301",
        "source": stored_name(place.resolve()),
        "reader": f"zcpipe.truth.nasbench301 {READER_VERSION}",
        "licence": "NAS-Bench-301 (Zela et al., 2022) is published under the Apache-2.0 licence",
    }
    return pa.table(arrays, schema=pa.schema(fields, metadata={"zcpipe.truth": json.dumps(about)}))


READER = Reader(name="nasbench301", title="NAS-Bench-301: the pickled file of all trained networks", read=read_table)

READERS = (READER,)


def _entries(place: Path, progress: Progress | None) -> list[Any]:
    size, done = size_of(place, "the pickled file of NAS-Bench-301"), 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, size)

    few = Limits()  # and what a file is made of takes, at the least, so many of its bytes
    limits = Limits(few.content + 64 * size, few.objects + size // 16, few.memo + size // 4)
    with reading(place), place.open("rb") as file:
        content = load(file, str(place), limits=limits, on_dict=_slim, progress=add)
    entries = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{place}: lists no trained networks (`entries`); it is no file of NAS-Bench-301")
    return entries


def _slim(record: dict[Any, Any]) -> int:
    """Cut what is known of one training down to what is read; anything else passes untouched."""
    config, curves = record.get(_CONFIG), record.get("learning_curves")
    if type(config) is not dict or type(curves) is not dict:
        return 0
    curve = curves.get(_CURVE)
    last = curve[-1] if type(curve) is list and curve else None
    before = len(record) + len(config) + sum(1 + len(c) for c in curves.values() if type(c) is list)
    slim = {"budget": record.get("budget"), "val": last, "test": record.get("test_accuracy"), _CONFIG: config}
    for name in [name for name in config if not (type(name) is str and name.startswith(_PREFIX))]:
        del config[name]
    record.clear()
    record.update(slim)
    return before - len(slim) - len(config)


def _entry(entry: object, where: str) -> tuple[str, _Kind, dict[str, float]]:
    """Check one entry: its architecture's text, the size and length of its training, accuracy by split."""
    parsed = entry.get("parsed") if isinstance(entry, dict) else None
    config = parsed.get(_CONFIG) if isinstance(parsed, dict) else None
    if not isinstance(parsed, dict) or not isinstance(config, dict) or "val" not in parsed:
        raise DataError(f"{where}: lacks `parsed` with `{_CONFIG}` and `learning_curves`")
    cells, channels = (_whole(config.get(_PREFIX + name), name, where) for name in ("layers", "init_channels"))
    kind = (cells, channels, _whole(parsed.get("budget"), "budget", where))
    values = {split: _accuracy(parsed[split], split, where) for split in ("val", "test")}
    try:
        net = {"width": 16, "depth": 8, "genotype": _genotype(config)}
        return str(NASBENCH301.from_entry(net)), kind, values
    except UsageError as error:
        raise DataError(f"{where}: {error}") from error


def _genotype(config: Mapping[object, object]) -> dict[str, list[object]]:
    """Gather the edges of both cells: edge i of a cell is that from node i to node 2 if i < 2, and so on in a row."""
    first = [0, 2, 5, 9, 14]  # the number of the first edge into nodes 2, 3, 4, 5 and no more
    found: dict[tuple[str, int], object] = {}
    for name, operation in config.items():
        match = _EDGE.fullmatch(str(name).removeprefix(_PREFIX))
        if match:
            found[match[1], int(match[2])] = operation
    genotype: dict[str, list[object]] = {"normal_concat": [2, 3, 4, 5], "reduce_concat": [2, 3, 4, 5]}
    for kind in ("normal", "reduce"):
        edges: list[object] = []
        for node, (start, stop) in enumerate(pairwise(first), start=2):
            numbers = [number for number in range(start, stop) if (kind, number) in found]
            if len(numbers) != 2:
                raise UsageError(f"{kind}: node {node} has {len(numbers)} edges, expected 2")
            edges += [[found[kind, number], number - start] for number in numbers]
        genotype[kind] = edges
    return genotype


def _whole(value: object, name: str, where: str) -> int:
    if type(value) not in (int, float) or not 0 < value < 1e6 or value != int(value):  # type: ignore[operator,call-overload]
        raise DataError(f"{where}: {name} is {shown(value)}, which is no number of cells, channels or epochs")
    return int(value)  # type: ignore[call-overload,no-any-return]


def _accuracy(value: object, split: str, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 100:  # type: ignore[operator]  # NaN fails too
        raise DataError(f"{where}: {shown(value)} is no accuracy in percent on the {split} images")
    return float(value)  # type: ignore[arg-type]
