"""Arrays of a file that nobody vouches for: taken by name, and only with the type and shape that they must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError
from zcpipe.parzc.encodings import Scores, arrays_of, of_proxies
from zcpipe.parzc.spec import FeatureSpec

Tensors = dict[str, NDArray[Any]]


def part(tensors: Mapping[str, NDArray[Any]], prefix: str) -> Tensors:
    """Return the arrays under a prefix, by what is left of their names."""
    return {name.removeprefix(f"{prefix}."): array for name, array in tensors.items() if name.startswith(f"{prefix}.")}


def prefixed(tensors: Mapping[str, NDArray[Any]], prefix: str) -> Tensors:
    """Return arrays with a prefix before their names."""
    return {f"{prefix}.{name}": array for name, array in tensors.items()}


def array_of(
    tensors: Mapping[str, NDArray[Any]], name: str, dtype: type[np.generic], shape: tuple[int | None, ...]
) -> NDArray[Any]:
    """Return an array of a file that has the dtype and shape it must have; None is any size.

    Raises:
        DataError: it is missing, or another.
    """
    if name not in tensors:
        raise DataError(f"the array {name} is missing")
    array = tensors[name]
    fits = len(shape) == array.ndim and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(
            f"the array {name}: got {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} [{wanted}]"
        )
    if np.issubdtype(dtype, np.floating) and not np.isfinite(array).all():
        raise DataError(f"the array {name} holds a value that is not finite")
    return array


def scores_of(tensors: Mapping[str, NDArray[Any]], width: int) -> Scores:
    """Rebuild normal scores of ``width`` coordinates.

    Raises:
        DataError: the arrays are not those of such scores.
    """
    values = array_of(tensors, "values", np.float64, (None,))
    offsets = array_of(tensors, "offsets", np.int64, (width + 1,))
    if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 1).any():
        raise DataError(f"the points of the normal scores are not those of {width} coordinates")
    low, high = (array_of(tensors, name, np.float32, (width,)) for name in ("low", "high"))
    return Scores(values, array_of(tensors, "scores", np.float32, values.shape), offsets, low, high)


def require_codings(tensors: Mapping[str, NDArray[Any]], spec: FeatureSpec, columns: Mapping[str, int]) -> None:
    """Refuse arrays that are not those of the encodings that a spec asks for.

    Args:
        tensors: what `Encoder.tensors` gave, perhaps.
        spec: the features.
        columns: how many coordinates each column has.

    Raises:
        DataError: one is missing, or of another type or shape.
    """
    names = {"statistics": spec.statistics if spec.encoding != "minmax" else (), "proxies": spec.proxies}
    encodings = {"statistics": spec.encoding, "proxies": of_proxies(spec.encoding)}
    for kind, of_kind in names.items():
        if not of_kind:
            continue
        width = sum(columns.get(name, 0) for name in of_kind)
        held = part(tensors, kind)
        if encodings[kind] in ("rank", "live-rank"):
            scores_of(held, width)
            continue
        for name in arrays_of(encodings[kind]):
            array_of(held, name, np.float64, (width,))
