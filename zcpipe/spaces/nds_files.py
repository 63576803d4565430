"""The official files of NDS: JSON lists of trained networks, of one sub-space and one data set each.

A file is a list of entries, or ``{"top": [...], "mid": [...]}``, whose lists follow one another. Its name says what it
holds: the sub-space, then words that each begin with ``_``, of which ``in`` means ImageNet (any other file is of
CIFAR-10) and ``lr-wd`` that every network was trained with a learning rate and weight decay of its own. A file with
another word than the benchmark's is refused, for it would be taken for what it may not be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zcpipe.errors import DataError, UsageError
from zcpipe.spaces.anynet_networks import AnyNet
from zcpipe.spaces.base import Architecture, Entry, Space
from zcpipe.untrusted.jsonfile import read_json
from zcpipe.untrusted.plain import shown
from zcpipe.untrusted.stream import reading, size_of

NAMES = {
    "Amoeba": "amoeba",
    "DARTS": "darts",
    "ENAS": "enas",
    "NASNet": "nasnet",
    "PNAS": "pnas",
    "ResNet": "resnet",
    "ResNeXt-A": "resnext-a",
    "ResNeXt-B": "resnext-b",
    "Vanilla": "vanilla",
}  # of the files -> families
WORDS = re.compile(r"in|lr-wd|fix-w-d|reruns|rng\d")  # that follow in the names

_LARGEST = 1 << 30  # bytes; the official files of 25,000 networks have some hundred million
_HELD = 32  # networks of cells at a file's beginning whose sizes are held against its name: a file is of one data set
_GIVE = "an official file of NDS, such as DARTS_in.json"

Progress = Callable[[int, int], None]


class Family(Space[Any], Protocol):
    """One of the spaces that NDS is made of."""

    family: str

    def sample(self, seed: int, i: int, dataset: str = ...) -> Any:  # noqa: ANN401 - the family's own architecture
        """Return the ``i``-th random architecture under ``seed``, of those that were drawn for a data set."""
        ...

    def from_entry(self, net: Mapping[str, Any]) -> Architecture:
        """Read the field ``net`` of an entry; ``UsageError`` says what is wrong with it."""
        ...

    def published_flops(self, arch: Any, dataset: str) -> int:  # noqa: ANN401
        """Return what the files call ``flops``."""
        ...


@dataclass(frozen=True)
class Title:
    """What a file's name says; nothing where it is none of the benchmark's."""

    family: str | None
    dataset: str | None
    tuned: bool  # learning rates and weight decays differ

    @classmethod
    def of(cls, file: Path) -> Title:
        """Read a file's name.

        Raises:
            DataError: it begins as the benchmark's do, and goes on otherwise.
        """
        name, *words = file.name.removesuffix(".json").split("_")
        if name not in NAMES:
            return cls(None, None, "lr-wd" in words)
        foreign = [word for word in words if not WORDS.fullmatch(word)]
        if foreign:
            raise DataError(
                f"{file}: {shown(foreign[0])} in its name says nothing that NDS has; call it as the benchmark does, "
                f"{name}_in.json if it is of ImageNet, {name}.json if of CIFAR-10"
            )
        return cls(NAMES[name], "imagenet" if "in" in words else "cifar10", "lr-wd" in words)


def read(path: Path, families: Mapping[str, Family], progress: Progress | None = None) -> list[Entry]:
    """Read an official file, or all files of a directory that are of the families asked for.

    Args:
        path: the file or directory. A file of another name is read, too, where one family alone is asked for.
        families: by their names.
        progress: told (bytes read so far, bytes in all).

    Returns:
        The entries in the order of the files' names, each with its architecture.

    Raises:
        DataError: a file is missing, damaged or foreign, or not what its name says; file and entry are named.
    """
    files = _files(path, families)
    sizes = [size_of(file, _GIVE) for file in files]
    entries: list[Entry] = []
    for number, file in enumerate(files, start=1):
        title = Title.of(file)
        family = next(iter(families.values())) if title.family is None else families[title.family]
        entries += [_entry(file, at, content, family, title) for at, content in enumerate(_contents(file))]
        if progress is not None:
            progress(sum(sizes[:number]), sum(sizes))
    return entries


def _files(path: Path, families: Mapping[str, Family]) -> list[Path]:
    with reading(path):
        path.stat()  # a file that is absent is told so, whatever its name
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: holds no JSON files; give the directory that has DARTS_in.json and the others")
    titles = {file: Title.of(file).family for file in files}
    for file, family in titles.items():
        if family is None and len(families) > 1:
            known = ", ".join(NAMES)
            raise DataError(
                f"{file}: its name tells no sub-space; call it as the benchmark does, beginning with {known}"
            )
    wanted = [file for file, family in titles.items() if family is None or family in families]
    if not wanted:
        held = ", ".join(f"nds/{family}" for family in sorted({str(family) for family in titles.values()}))
        raise DataError(f"{path}: holds networks of {held}, not of {', '.join(f'nds/{name}' for name in families)}")
    return wanted


def _contents(file: Path) -> list[Any]:
    content = read_json(file, _GIVE, _LARGEST)
    if isinstance(content, dict) and content.keys() == {"top", "mid"}:
        lists = [content["top"], content["mid"]]
    else:
        lists = [content]
    if not all(isinstance(part, list) for part in lists):
        raise DataError(f"{file}: holds no list of entries, nor two named 'top' and 'mid'; it is no file of NDS")
    entries = [entry for part in lists for entry in part]
    if not entries:
        raise DataError(f"{file}: holds no entries")
    return entries


def _entry(file: Path, position: int, content: object, family: Family, title: Title) -> Entry:
    where = f"{file}, entry {position}"
    if not isinstance(content, dict) or not isinstance(content.get("net"), dict):
        raise DataError(f"{where}: has no network ('net'); it is no file of NDS")
    net = content["net"]
    try:
        arch = family.from_entry(net)
    except UsageError as error:
        raise DataError(f"{where}: is no network of nds/{family.family}: {error}") from error
    dataset = title.dataset
    if isinstance(arch, AnyNet):  # the stride of its stem, which `from_entry` checked
        dataset = "cifar10" if net["ss"][0] == 1 else "imagenet"
        if title.dataset not in (None, dataset):
            raise DataError(f"{where}: is a network for {dataset}, where the file's name says {title.dataset}")
    elif dataset is not None and position < _HELD:
        _hold_against_size(where, content.get("params"), family, arch, dataset)
    return Entry(file, position, arch, dataset, content)


def _hold_against_size(where: str, params: object, family: Family, arch: Architecture, dataset: str) -> None:
    """Refuse a network that is as large as that of another data set: a cell does not say which it is of.

    One that is as large as none stays for `zcpipe.spaces.nds_verify`.
    """
    if family.size(arch, dataset).params == params:
        return
    others = [name for name in family.datasets if family.size(arch, name).params == params]
    if others:
        raise DataError(
            f"{where}: has the {params} parameters of a network for {others[0]}, where the file's name says {dataset}; "
            "call the file as the benchmark does, with _in if it is of ImageNet"
        )


def count_of(entry: Entry, field: str) -> int:
    """Return ``params`` or ``flops`` of an entry.

    Raises:
        DataError: it has none.
    """
    value = entry.content.get(field)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise DataError(f"{entry.where}: {field} is {shown(value)}, no count")
    return value


def dataset_of(entry: Entry) -> str:
    """Return the data set of an entry.

    Raises:
        DataError: nothing says which.
    """
    if entry.dataset is None:
        raise DataError(
            f"{entry.file}: its name does not say which data set; call it as the benchmark does, such as DARTS_in.json"
        )
    return entry.dataset
