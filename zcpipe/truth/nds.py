"""NDS (Radosavovic et al., ICCV 2019): the official JSON files, and how their numbers are named here.

A file or a directory of them is read; `zcpipe.spaces.nds_files` says what they are. The files hold the error on the
test images (ImageNet: the validation images) after each epoch. With ``<data set>`` the file's, ``cifar10`` or
``imagenet``, and ``<epochs>`` how many its networks were trained for, the columns are:

====================================  ==================================================================================
column                                what it is
====================================  ==================================================================================
``<data set>_test_<epochs>``          100 - error after the last epoch, percent; the mean where a network was trained
                                      more than once (``reruns`` files)
``<data set>_test_<epochs>_best``     100 - the smallest error after any epoch: chosen by the test images
``<data set>_test_<epochs>_runs``     how many trainings that is the mean of
``<data set>_params``, ``_flops``     as the file states them; `zcpipe.spaces.nds_verify` says what was counted
``file``                              the files that hold the architecture
====================================  ==================================================================================

In the ``lr-wd`` files every network was trained with a learning rate and weight decay of its own, which change an
error as much as the architecture does. Their columns begin with ``<data set>_test_<epochs>_lr-wd``, are followed by
``_base_lr`` and ``_wd``, and `zcpipe.truth.read_truth` refuses them. So it is for any file whose entries differ in
these. Where such a file has an architecture twice, its first training is kept: a mean would be of different things.
In the nine ImageNet files at hand no architecture is twice in a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from zcpipe.errors import DataError
from zcpipe.spaces.base import Entry
from zcpipe.spaces.nds import NDS
from zcpipe.spaces.nds_files import Title, count_of, dataset_of
from zcpipe.truth.open import NOT_FOR_RANKING
from zcpipe.truth.reader import Progress, Reader, stored_name
from zcpipe.untrusted.plain import shown

READER_VERSION = 1

_REASON = "each network was trained with a learning rate and weight decay of its own"


@dataclass(frozen=True, order=True)
class Kind:
    """What accuracies are of: the data set, the epochs, and whether learning rates and weight decays differ."""

    dataset: str
    epochs: int
    tuned: bool

    @property
    def prefix(self) -> str:
        """What the names of its columns begin with."""
        return f"{self.dataset}_test_{self.epochs}" + ("_lr-wd" if self.tuned else "")


@dataclass(frozen=True)
class Training:
    """One training of a network: errors in percent."""

    last: float
    best: float
    base_lr: float
    wd: float


@dataclass
class _Row:
    files: dict[str, None] = field(default_factory=dict)
    trainings: dict[Kind, list[Training]] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)  # by data set


def read_table(path: Path | str, progress: Progress | None = None) -> pa.Table:
    """Read an official file, or a directory of them, into the columns this module's documentation names.

    Raises:
        DataError: a file is missing, damaged or foreign; file and entry are named.
    """
    rows = _rows(NDS.entries(Path(path), progress))
    fields, arrays = [pa.field("arch", pa.string(), nullable=False)], [pa.array(list(rows), pa.string())]

    def add(name: str, kind: pa.DataType, values: Sequence[object], meaning: Mapping[str, str]) -> None:
        fields.append(pa.field(name, kind, metadata=dict(meaning)))
        arrays.append(pa.array(values, kind))

    for kind in sorted({kind for row in rows.values() for kind in row.trainings}):
        found = [row.trainings.get(kind, []) for row in rows.values()]
        about = {"dataset": kind.dataset, "split": "test", "epochs": str(kind.epochs)}
        accuracy = {**about, "unit": "%", "direction": "higher"}
        if kind.tuned:
            accuracy[NOT_FOR_RANKING] = _REASON
        for suffix, epoch in (("", "last"), ("_best", "best")):
            values = [_accuracy([getattr(one, epoch) for one in trainings]) for trainings in found]
            add(kind.prefix + suffix, pa.float64(), values, {**accuracy, "epoch": epoch})
        if kind.tuned:
            for name in ("base_lr", "wd"):
                values = [getattr(trainings[0], name) if trainings else None for trainings in found]
                add(f"{kind.prefix}_{name}", pa.float64(), values, about)
        add(f"{kind.prefix}_runs", pa.int32(), [len(one) for one in found], {**about, "unit": "trainings"})
    for dataset in sorted({dataset for row in rows.values() for dataset in row.sizes}):
        for name, unit in (("params", "parameters"), ("flops", "operations")):
            values = [row.sizes.get(dataset, {}).get(name) for row in rows.values()]
            meaning = {"dataset": dataset, "unit": unit, "source": "as the file states it"}
            add(f"{dataset}_{name}", pa.int64(), values, meaning)
    add("file", pa.string(), [", ".join(row.files) for row in rows.values()], {})
    about_file = {
        "benchmark": "NDS",
        "source": stored_name(Path(path).resolve()),
        "reader": f"zcpipe.truth.nds {READER_VERSION}",
        "licence": "NDS (Radosavovic et al., 2019) is published under the MIT licence",
    }
    return pa.table(arrays, schema=pa.schema(fields, metadata={"zcpipe.truth": json.dumps(about_file)}))


READER = Reader(name="nds", title="NDS: an official JSON file, or a directory of them", read=read_table)

READERS = (READER,)


def _rows(entries: Sequence[Entry]) -> dict[str, _Row]:
    """Gather what is known about each architecture, by its text."""
    rows: dict[str, _Row] = {}
    trainings = {(entry.file, entry.position): _training(entry) for entry in entries}
    first: dict[Path, tuple[float, float]] = {}  # recipe of each file
    mixed: set[Path] = set()
    for (file, _), (_, training) in trainings.items():
        recipe = (training.base_lr, training.wd)
        if first.setdefault(file, recipe) != recipe:
            mixed.add(file)
    for entry in entries:
        epochs, training = trainings[entry.file, entry.position]
        dataset = dataset_of(entry)
        row = rows.setdefault(str(entry.arch), _Row())
        row.files.setdefault(stored_name(entry.file))
        tuned = Title.of(entry.file).tuned or entry.file in mixed
        known = row.trainings.setdefault(Kind(dataset, epochs, tuned), [])
        if not (tuned and known):
            known.append(training)
        sizes = {name: count_of(entry, name) for name in ("params", "flops")}
        if row.sizes.setdefault(dataset, sizes) != sizes:
            raise DataError(f"{entry.where}: states other params or flops than an earlier entry of {entry.arch}")
    return rows


def _training(entry: Entry) -> tuple[int, Training]:
    """Return the epochs and the errors of an entry."""
    errors, recipe = entry.content.get("test_ep_top1"), entry.content.get("optim")
    if not isinstance(errors, list) or not errors or not isinstance(recipe, dict):
        raise DataError(f"{entry.where}: lacks the errors of a training ('test_ep_top1') or its recipe ('optim')")
    checked = [_number(error, entry, 100.0) for error in errors]
    if recipe.get("max_ep") != len(checked):
        due = shown(recipe.get("max_ep"))
        raise DataError(f"{entry.where}: has errors after {len(checked)} epochs, where its recipe says {due}")
    rate, decay = (_number(recipe.get(name), entry) for name in ("base_lr", "wd"))
    return len(checked), Training(checked[-1], min(checked), rate, decay)


def _number(value: Any, entry: Entry, most: float = 1e6) -> float:  # noqa: ANN401 - what the file holds
    if type(value) not in (int, float) or not 0 <= value <= most:  # NaN fails too
        raise DataError(f"{entry.where}: {shown(value)} is no error or part of a recipe")
    return float(value)


def _accuracy(errors: Sequence[float]) -> float | None:
    return 100.0 - math.fsum(errors) / len(errors) if errors else None
