"""NAS-Bench-101: the official files, and how their numbers are named here.

Three forms are read, told apart by their content, the pickled ones plain or bz2-compressed:

- the benchmark's ``nasbench_only108.tfrecord`` and ``nasbench_full.tfrecord``;
- NASLib's ``nasbench_only108.pkl``;
- the pickle of the package nasbenchapi.

Each member of the space that a file has trainings of is a row; ``index``, ``arch`` and ``key``, the benchmark's
hash, are the space's own. The benchmark trained each cell several times for 108 epochs, and in the full file also for
36, 12 and 4. For each of them there are, as means over those repeats:

=========================  ======================================================
column                     which is
=========================  ======================================================
``cifar10_val_108``        accuracy on the 10,000 held-out training images, in percent
``cifar10_test_108``       accuracy on the test images, in percent
``cifar10_train_108``      accuracy on 10,000 of the images it was trained on, in percent
``train_seconds_108``      time of the training, without evaluations
``repeats_108``            how many trainings these are means of
=========================  ======================================================

``benchmark_params`` is the number of trainable parameters as the benchmark states it. Evaluations in the middle of
training are not read.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from zcpipe.errors import DataError
from zcpipe.spaces.graphs import nasbench101_hashes
from zcpipe.spaces.nasbench101 import Cell
from zcpipe.truth._nasbench101_metrics import model_metrics
from zcpipe.truth._nasbench101_pickles import read_pickle
from zcpipe.truth._nasbench101_tally import EPOCHS, VALUES, Run, Tally
from zcpipe.truth._tfrecord import is_tfrecord, records
from zcpipe.truth.reader import Progress, Reader, stored_name
from zcpipe.untrusted.stream import reading, size_of

READER_VERSION = 1

_COLUMNS = {"validation": "cifar10_val", "test": "cifar10_test", "train": "cifar10_train", "seconds": "train_seconds"}


def read_table(path: Path | str, progress: Progress | None = None) -> pa.Table:
    """Read a file of NAS-Bench-101 into the columns this module's documentation names.

    A TFRecord file is read in pieces; what is kept is a place for each cell, however many its trainings.

    Args:
        path: the file.
        progress: told (bytes read so far, bytes in all).

    Raises:
        DataError: the file is missing, damaged, hostile or of another form; the message names the record or the cell.
    """
    place = Path(path)
    where = str(place)
    size = size_of(place, "nasbench_only108.tfrecord or another file of NAS-Bench-101")
    tally, done = Tally(where), 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, size)

    with reading(place), place.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        if is_tfrecord(head):
            for number, payloads in records(file, where, read):
                tally.add(list(_runs(number, payloads, where)))
        else:
            read_pickle(file, where, size, tally, read)
    if not tally.counts.any():
        raise DataError(f"{place}: holds no trainings")
    return _table(tally, place)


READER = Reader(
    name="nasbench101", title="NAS-Bench-101: official TFRecord, or NASLib's or nasbenchapi's pickle", read=read_table
)

READERS = (READER,)


def _runs(first: int, payloads: list[bytes], where: str) -> Iterator[Run]:
    """Read records: JSON of hash, epochs, adjacency, operations and the metrics' message in base64."""
    for number, payload in enumerate(payloads, start=first):
        place = f"record {number}"
        try:
            module_hash, epochs, adjacency, operations, message = json.loads(payload)
            metrics = model_metrics(base64.b64decode(message, validate=True))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{where}: {place} is none of NAS-Bench-101 ({str(error) or type(error).__name__:.120}); "
                "the file is damaged or foreign"
            ) from error
        yield Run(place, module_hash, adjacency, operations, epochs, metrics)


def _table(tally: Tally, path: Path) -> pa.Table:
    cells = np.flatnonzero(tally.counts.any(1))
    codes = tally.codes[cells]
    fields = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("arch", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False, metadata={"source": "the benchmark's hash"}),
    ]
    arrays = [
        pa.array(cells, pa.int64()),
        pa.array([str(Cell(code)) for code in codes.tolist()], pa.string()),
        pa.array(nasbench101_hashes(codes), pa.string()),
    ]
    for place, epochs in enumerate(EPOCHS):
        counts = tally.counts[cells, place]
        if not counts.any():
            continue
        for value, name in enumerate(VALUES):
            scale = 1.0 if name == "seconds" else 100.0
            means = scale * tally.sums[cells, place, value] / np.maximum(counts, 1)
            fields.append(pa.field(f"{_COLUMNS[name]}_{epochs}", pa.float64(), metadata=_meaning(name, epochs)))
            arrays.append(pa.array(means, pa.float64(), mask=counts == 0))
        meaning = {"dataset": "cifar10", "epochs": str(epochs), "unit": "trainings"}
        fields.append(pa.field(f"repeats_{epochs}", pa.int32(), metadata=meaning))
        arrays.append(pa.array(counts, pa.int32()))
    meaning = {"dataset": "cifar10", "unit": "parameters", "source": "as the benchmark states it"}
    fields.append(pa.field("benchmark_params", pa.int64(), metadata=meaning))
    arrays.append(pa.array(tally.params[cells], pa.int64()))
    about = {
        "benchmark": "NAS-Bench-101",
        "source": stored_name(path.resolve()),
        "reader": f"zcpipe.truth.nasbench101 {READER_VERSION}",
        "licence": "NAS-Bench-101 (Ying et al., 2019) is published under the Apache License 2.0",
    }
    return pa.table(arrays, schema=pa.schema(fields, metadata={"zcpipe.truth": json.dumps(about)}))


def _meaning(name: str, epochs: int) -> dict[str, str]:
    meaning = {"dataset": "cifar10", "epochs": str(epochs)}
    if name == "seconds":
        return {**meaning, "unit": "s", "direction": "lower"}
    return {**meaning, "split": name, "unit": "%", "direction": "higher"}
