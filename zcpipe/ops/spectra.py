"""Spectra of many small matrices at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops._check import check_float


def symmetric_eigenvalues(
    matrices: Sequence[Tensor],  # [C, C] each
) -> list[Tensor]:  # [C] each
    """Eigenvalues of symmetric matrices, ascending, by LAPACK.

    Matrices of one shape are computed together.

    Args:
        matrices: float32 or float64, of any sizes; only their lower triangles are read. One that is not finite gives
            NaN.

    Returns:
        The eigenvalues of each, of its dtype.

    Raises:
        UsageError: a matrix has another dtype or is not square.
    """
    for i, matrix in enumerate(matrices):
        _check_matrix(f"matrices[{i}]", matrix)
        if matrix.shape[0] != matrix.shape[1]:
            raise UsageError(f"matrices[{i}]: got shape {tuple(matrix.shape)}, expected a square matrix")
    return _by_shape(matrices, _eigenvalues)


def largest_singular_values(
    matrices: Sequence[Tensor],  # [A, B] each
) -> list[Tensor]:  # [] each
    """Largest singular value of each matrix, as the root of the largest eigenvalue of its smaller Gram matrix.

    Matrices of one shape are computed together.

    Args:
        matrices: float32 or float64, of any shapes. One that is not finite gives NaN.

    Returns:
        The singular values, of the matrices' dtypes.

    Raises:
        UsageError: a matrix has another dtype or not two dimensions.
    """
    for i, matrix in enumerate(matrices):
        _check_matrix(f"matrices[{i}]", matrix)
    return _by_shape(matrices, _largest)


def _check_matrix(name: str, matrix: Tensor) -> None:
    check_float(name, matrix)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise UsageError(f"{name}: got shape {tuple(matrix.shape)}, expected a matrix with at least one element")


def _by_shape(matrices: Sequence[Tensor], compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Compute all matrices of one kind together, and return the results in order."""
    groups: dict[object, list[int]] = {}
    for i, matrix in enumerate(matrices):
        groups.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(i)
    results: dict[int, Tensor] = {}
    for members in groups.values():
        stack = torch.stack([matrices[i] for i in members])
        finite = torch.isfinite(stack).flatten(1).all(1)
        if not bool(finite.all()):  # LAPACK would refuse the whole stack
            stack = torch.where(finite[:, None, None], stack, 0.0)
        computed = compute(stack)
        computed = torch.where(finite.view(-1, *[1] * (computed.ndim - 1)), computed, torch.nan)
        results.update(zip(members, computed.unbind(), strict=True))
    return [results[i] for i in range(len(matrices))]


def _eigenvalues(stack: Tensor) -> Tensor:  # [k, C, C] -> [k, C]
    result: Tensor = torch.linalg.eigvalsh(stack)
    return result


def _largest(stack: Tensor) -> Tensor:  # [k, A, B] -> [k]
    # The Gram matrix of a scaled matrix neither overflows nor underflows.
    scale = stack.abs().flatten(1).amax(1).clamp_min(torch.finfo(stack.dtype).tiny)
    stack = stack / scale[:, None, None]
    gram = stack @ stack.mT if stack.shape[1] <= stack.shape[2] else stack.mT @ stack
    result: Tensor = scale * torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0.0).sqrt()
    return result
