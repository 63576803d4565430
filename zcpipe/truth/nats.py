"""NATS-Bench, topology search space: the official files, and how their numbers are named here.

Two official forms are read, each file plain (``.pickle``) or bz2-compressed (``.pickle.pbz2``):

- the directory ``NATS-tss-v1_0-3ffb9-simple/`` with ``meta.pickle.pbz2`` and one ``{index:06d}.pickle.pbz2`` per
  architecture; architectures whose file is missing are absent rows;
- the single file ``NATS-tss-v1_0-3ffb9.pickle.pbz2`` that holds everything. It is cut down while it is read, so that
  it needs about a gigabyte and not the thirty of the unpickled whole.

An accuracy column is called ``<prefix>_<epochs>``. It is the mean over the trained seeds of the accuracy after the last
of those epochs, in percent; ``<prefix>_<epochs>_seeds`` counts the seeds. The prefix says which network was asked about
which images. Note that CIFAR-10 was trained twice, on half of the training images (``cifar10-valid``, the other half
being for validation) and on all of them (``cifar10``):

=========================  =====================  ==================  ==============================================
prefix                     benchmark's data set   benchmark's set     which is
=========================  =====================  ==================  ==============================================
``cifar10_val``            ``cifar10-valid``      ``x-valid``         trained on half, asked on the other half
``cifar10_test``           ``cifar10``            ``ori-test``        trained on all, asked on the test images
``cifar10valid_test``      ``cifar10-valid``      ``ori-test``        trained on half, asked on the test images
``cifar100_val``           ``cifar100``           ``x-valid``         one half of the official test images
``cifar100_test``          ``cifar100``           ``x-test``          the other half of them
``cifar100_valtest``       ``cifar100``           ``ori-test``        all of them
``imagenet16-120_val``     ``ImageNet16-120``     ``x-valid``         one half of the official validation images
``imagenet16-120_test``    ``ImageNet16-120``     ``x-test``          the other half of them
``imagenet16-120_valtest`` ``ImageNet16-120``     ``ori-test``        all of them
=========================  =====================  ==================  ==============================================

Any other pair is called ``<data set>_<set>`` in the benchmark's own words. ``benchmark_params_m`` and
``benchmark_flops_m`` are what the benchmark states (millions; its FLOPs are multiply-accumulates) for the CIFAR-10
network trained for 200 epochs; the entries for 12 epochs are known to differ for some architectures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from zcpipe.errors import DataError, UsageError
from zcpipe.spaces.nasbench201 import NasBench201
from zcpipe.truth.reader import Progress, Reader, stored_name
from zcpipe.untrusted.plain import shown
from zcpipe.untrusted.stream import reading, size_of
from zcpipe.untrusted.unpickle import Limits, load

READER_VERSION = 1

PREFIXES: Mapping[tuple[str, str], str] = {
    ("cifar10-valid", "x-valid"): "cifar10_val",
    ("cifar10", "ori-test"): "cifar10_test",
    ("cifar10-valid", "ori-test"): "cifar10valid_test",
    ("cifar100", "x-valid"): "cifar100_val",
    ("cifar100", "x-test"): "cifar100_test",
    ("cifar100", "ori-test"): "cifar100_valtest",
    ("ImageNet16-120", "x-valid"): "imagenet16-120_val",
    ("ImageNet16-120", "x-test"): "imagenet16-120_test",
    ("ImageNet16-120", "ori-test"): "imagenet16-120_valtest",
}

# The single file: 1.3 GB (5 GB of pickle), of which some twenty million objects stay after cutting down. A smaller file
# may cost as much less: see `_whole_limits`.
WHOLE = Limits(content=16 << 30, objects=50_000_000, memo=300_000_000)
WHOLE_SIZE = 1_000_000_000

SIZE_HP = "200"
MAX_KINDS = 256
_GIVE = "a NATS-Bench file or its unpacked directory"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CELL_FILE = re.compile(r"(\d{6})\.pickle(\.pbz2)?")


@dataclass(frozen=True, order=True)
class Kind:
    """What an accuracy is of: the benchmark's data set and set of images, the epochs, and the name of that training."""

    dataset: str
    split: str
    epochs: int
    hp: str

    @property
    def column(self) -> str:
        """The column's name."""
        prefix = PREFIXES.get((self.dataset, self.split), f"{self.dataset}_{self.split}")
        return f"{prefix}_{self.epochs}"


@dataclass(frozen=True)
class Cell:
    """One architecture's truth.

    Attributes:
        index: position in the benchmark.
        arch: the benchmark's text.
        accuracies: for each kind the final accuracies in percent, one per seed.
        params: millions of parameters, as the benchmark states them.
        flops: millions of multiply-accumulates, as the benchmark states them.
    """

    index: int
    arch: str
    accuracies: Mapping[Kind, list[float]]
    params: float | None
    flops: float | None


def read_nats(path: Path | str, progress: Progress | None = None) -> Iterator[Cell]:
    """Read the cells of an official NATS-Bench topology directory or file, in the order of their index.

    Args:
        path: the directory or the single file.
        progress: told (bytes read so far, bytes in all).

    Yields:
        One cell after the other.

    Raises:
        DataError: a file is missing, damaged, hostile or not of this format.
    """
    place = Path(path)
    with reading(place):
        many = place.is_dir()
    yield from (_read_directory if many else _read_whole)(place, progress)


def read_table(path: Path | str, progress: Progress | None = None) -> pa.Table:
    """Read an official directory or file into the columns this module's documentation names."""
    cells = list(read_nats(path, progress))
    fields = [pa.field("index", pa.int64(), nullable=False), pa.field("arch", pa.string(), nullable=False)]
    arrays = [
        pa.array([cell.index for cell in cells], pa.int64()),
        pa.array([cell.arch for cell in cells], pa.string()),
    ]
    for kind in _kinds(cells):
        seeds = [cell.accuracies.get(kind, []) for cell in cells]
        means = [sum(values) / len(values) if values else None for values in seeds]
        meaning = {"dataset": kind.dataset, "split": kind.split, "epochs": str(kind.epochs), "hp": kind.hp}
        fields.append(_field(kind.column, pa.float64(), {**meaning, "unit": "%", "direction": "higher"}))
        arrays.append(pa.array(means, pa.float64()))
        fields.append(_field(f"{kind.column}_seeds", pa.int32(), {**meaning, "unit": "trained seeds"}))
        arrays.append(pa.array([len(values) for values in seeds], pa.int32()))
    for name, unit, sizes in (
        ("benchmark_params_m", "million parameters", [cell.params for cell in cells]),
        ("benchmark_flops_m", "million multiply-accumulates", [cell.flops for cell in cells]),
    ):
        meaning = {"dataset": "cifar10", "hp": SIZE_HP, "unit": unit, "source": "as the benchmark states it"}
        fields.append(_field(name, pa.float64(), meaning))
        arrays.append(pa.array(sizes, pa.float64()))
    about = {
        "benchmark": "NATS-Bench, topology search space",
        "source": stored_name(Path(path).resolve()),
        "reader": f"zcpipe.truth.nats {READER_VERSION}",
        "licence": "NATS-Bench (Dong et al., 2021) is published under the MIT licence",
    }
    return pa.table(arrays, schema=pa.schema(fields, metadata={"zcpipe.truth": json.dumps(about)}))


READER = Reader(
    name="nats", title="NATS-Bench topology search space: official directory or single file", read=read_table
)

READERS = (READER,)


def import_nats(path: Path | str, out: Path | str, progress: Progress | None = None) -> pa.Table:
    """Read an official directory or file and write it as one Parquet file; see `Reader.import_file`."""
    return READER.import_file(path, out, progress)


def _field(name: str, kind: pa.DataType, metadata: dict[str, str]) -> pa.Field:
    return pa.field(name, kind, metadata=metadata)


def _kinds(cells: Iterable[Cell]) -> list[Kind]:
    """List every kind that occurs: those of the documented table in its order, longest training first, then others."""
    known = list(PREFIXES)

    def place(kind: Kind) -> tuple[int, int, Kind]:
        pair = (kind.dataset, kind.split)
        return (known.index(pair) if pair in PREFIXES else len(known), -kind.epochs, kind)

    kinds = sorted({kind for cell in cells for kind in cell.accuracies}, key=place)
    if len(kinds) > MAX_KINDS or len({kind.column for kind in kinds}) < len(kinds):
        raise DataError("the files disagree about what their accuracies are of; they are not of one release")
    return kinds


def _read_directory(place: Path, progress: Progress | None) -> Iterator[Cell]:
    files: dict[int, Path] = {}
    with reading(place):
        listed = sorted(place.iterdir())
    for path in listed:
        match = _CELL_FILE.fullmatch(path.name)
        if match and files.setdefault(int(match[1]), path) != path:
            raise DataError(f"{place}: holds cell {int(match[1])} twice, plain and compressed; remove one of them")
    meta = next((place / name for name in ("meta.pickle.pbz2", "meta.pickle") if (place / name).is_file()), None)
    if meta is None or not files:
        lacks = "meta.pickle.pbz2" if meta is None else "files such as 000000.pickle.pbz2"
        raise DataError(f"{place}: holds no {lacks}; give the directory that NATS-tss-v1_0-3ffb9-simple.tar unpacks to")
    meter = _Meter([meta, *files.values()], progress)
    archs = _archs(_load(meta, meter, Limits()), meta)
    for index, path in sorted(files.items()):
        yield _cell(index, _load(path, meter, Limits()), archs, str(path))


def _read_whole(path: Path, progress: Progress | None) -> Iterator[Cell]:
    meter = _Meter([path], progress)
    content = _load(path, meter, _whole_limits(meter.total))
    archs = _archs(content, path)
    cells = content.get("arch2infos")
    if not isinstance(cells, dict) or not all(type(index) is int for index in cells):
        raise DataError(f"{path}: holds no architectures (`arch2infos`); for the directory form give the directory")
    for index in sorted(cells):
        yield _cell(index, cells[index], archs, f"{path}, cell {index}")


def _whole_limits(size: int) -> Limits:
    """Give a single file the limits of any file, and of those for the official one the share its size has of that."""
    share = min(1.0, size / WHOLE_SIZE)
    few = Limits()
    return Limits(
        content=few.content + int(share * WHOLE.content),
        objects=few.objects + int(share * WHOLE.objects),
        memo=few.memo + int(share * WHOLE.memo),
    )


class _Meter:
    """Adds up the bytes read over several files."""

    def __init__(self, files: list[Path], progress: Progress | None) -> None:
        self.progress = progress
        self.total = sum(size_of(file, _GIVE) for file in files)
        self.done = 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def _load(path: Path, meter: _Meter, limits: Limits) -> Any:  # noqa: ANN401 - checked where used
    with reading(path), path.open("rb") as file:
        return load(file, str(path), limits=limits, on_dict=_slim, progress=meter.add)


def _archs(content: object, path: Path) -> list[str]:
    archs = content.get("meta_archs") if isinstance(content, dict) else None
    if not isinstance(archs, list) or not all(isinstance(arch, str) for arch in archs):
        raise DataError(f"{path}: lists no architectures (`meta_archs`); it is no NATS-Bench file")
    space, seen = NasBench201(), set[str]()
    for arch in archs:
        try:
            known = str(space.parse(arch))
        except UsageError as error:
            raise DataError(
                f"{path}: lists {shown(arch)}, no cell of NAS-Bench-201; give NATS-Bench's topology search space "
                "(NATS-tss-v1_0-3ffb9), not the size search space or another benchmark"
            ) from error
        if arch != known or arch in seen:
            raise DataError(f"{path}: lists the cell {known} twice or with blanks; it is damaged or foreign")
        seen.add(arch)
    return archs


def _slim(record: dict[Any, Any]) -> int:
    """Cut the record of one training down to its sizes and final accuracies; anything else passes untouched.

    A record carries some four thousand per-epoch numbers, which together are what makes the whole file large.
    """
    curves, epochs = record.get("eval_acc1es"), record.get("epochs")
    if type(curves) is not dict or type(epochs) is not int:
        return 0
    last = f"@{epochs - 1}"
    final = {key[: -len(last)]: value for key, value in curves.items() if type(key) is str and key.endswith(last)}
    before = len(record)
    for value in list(record.values()):
        if (type(value) is dict or type(value) is list) and value is not record:
            before += len(value)
            value.clear()
    slim = {"epochs": epochs, "params": record.get("params"), "flop": record.get("flop"), "final": final}
    record.clear()
    record.update(slim)
    return before - len(slim) - len(final)


def _cell(index: int, content: object, archs: list[str], where: str) -> Cell:
    """Check one architecture's content and bring it into the form of a cell."""
    if not 0 <= index < len(archs):
        raise DataError(f"{where}: the benchmark lists {len(archs)} architectures, none with index {index}")
    accuracies: dict[Kind, list[float]] = {}
    sizes: dict[str, tuple[float, float]] = {}
    for hp, trained in _items(content, where):
        if not isinstance(trained, dict) or trained.get("arch_str") != archs[index]:
            raise DataError(
                f"{where}: is of another architecture than the benchmark's list says ({shown(archs[index])})"
            )
        for key, record in sorted(_items(trained.get("all_results"), where), key=lambda item: str(item[0])):
            dataset = key[0] if isinstance(key, tuple) and len(key) == 2 else None
            for split, value in _items(record, where, "final"):
                kind = Kind(_word(dataset, where), _word(split, where), _epochs(hp, record, where), str(hp))
                accuracies.setdefault(kind, []).append(_number(value, where, top=100.0))
            if hp == SIZE_HP and dataset in ("cifar10", "cifar10-valid"):
                size = (_number(record.get("params"), where), _number(record.get("flop"), where))
                sizes.setdefault(dataset, size)
    params, flops = sizes.get("cifar10", sizes.get("cifar10-valid", (None, None)))
    return Cell(index, archs[index], accuracies, params, flops)


def _items(value: object, where: str, inner: str | None = None) -> list[tuple[Any, Any]]:
    if inner is not None:
        value = value.get(inner) if isinstance(value, dict) else None
    if not isinstance(value, dict) or (inner is not None and not value):
        raise DataError(f"{where}: lacks the trained results a NATS-Bench file holds")
    return list(value.items())


def _word(value: object, where: str) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise DataError(f"{where}: {shown(value)} cannot be the name of a data set or of a set of images")
    return value


def _epochs(hp: object, record: dict[str, Any], where: str) -> int:
    epochs = record.get("epochs")
    if not isinstance(hp, str) or not re.fullmatch(r"\d{1,4}", hp) or type(epochs) is not int or int(hp) != epochs:
        raise DataError(f"{where}: says {shown(epochs)} epochs where training {shown(hp)} is due")
    return epochs


def _number(value: object, where: str, top: float = float("inf")) -> float:
    if type(value) not in (int, float) or not 0 <= value <= top:  # type: ignore[operator]  # NaN fails too
        raise DataError(f"{where}: {shown(value)} is no accuracy or size")
    return float(value)  # type: ignore[arg-type]
