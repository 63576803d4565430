"""What is wrong with a space that an installed package offers, found before anything is planned."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from zcpipe.declared import bad_name, bad_text, lacking_methods
from zcpipe.errors import reason_of
from zcpipe.spaces.base import Dataset, EnumerableSpace, Space

_ENUMERATION = ("__len__", "__getitem__", "index")


def faults(space: Any) -> Iterator[str]:  # noqa: ANN401
    """Find fault with a space, as `zcpipe.registry.Check` does."""
    if isinstance(space, type):
        yield f"a space must be an instance; write {space.__name__}()"
        return
    yield from bad_name(getattr(space, "name", None), parts=True)
    yield from _bad_datasets(getattr(space, "datasets", None))
    yield from bad_text(space, "paper")
    yield from lacking_methods(space, Space)
    yield from _bad_hash(space)
    has = [name for name in _ENUMERATION if callable(getattr(type(space), name, None))]
    if has and not isinstance(space, EnumerableSpace):
        lacking = next(name for name in _ENUMERATION if name not in has)
        yield f"it must have all of {', '.join(_ENUMERATION)} to be enumerated, or none, and lacks {lacking}"


def _bad_datasets(datasets: object) -> Iterator[str]:
    if not isinstance(datasets, Mapping) or not datasets:
        yield f"its datasets must map names to zcpipe.spaces.Dataset, at least one, got {reprlib.repr(datasets)}"
        return
    for name, dataset in datasets.items():
        yield from bad_name(name, "the name of a data set")
        if not isinstance(dataset, Dataset):
            yield f"its datasets[{name!r}] must be a zcpipe.spaces.Dataset, got {reprlib.repr(dataset)}"
        shape = dataset.input_shape
        if not isinstance(shape, tuple) or len(shape) != 3 or not all(map(_counts, shape)):
            yield f"its datasets[{name!r}].input_shape must be (channels, height, width), got {reprlib.repr(shape)}"
        if not _counts(dataset.classes):
            yield f"its datasets[{name!r}].classes must be a number of classes, got {reprlib.repr(dataset.classes)}"


def _bad_hash(space: object) -> Iterator[str]:
    """Find fault with a space that caches cannot hold: without a hash it would pass for one without enumeration."""
    try:
        hash(space)
    except Exception as error:
        yield f"it must be hashable, got {reason_of(error)}; a dataclass needs frozen=True and fields with a hash"


def _counts(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0
