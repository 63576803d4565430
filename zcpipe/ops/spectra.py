"""Spectra of many small matrices at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops._check import check_float, use_native
from zcpipe.ops._library import on_load

_MOST_ROWS = 64  # of the matrices that the CUDA kernels take (kMostSpectrum in csrc/cuda/spectra.cuh)
_LANCZOS_ROWS = 128  # from which the largest eigenvalue alone is found sooner than all of them


def symmetric_eigenvalues(
    matrices: Sequence[Tensor],  # [C, C] each
) -> list[Tensor]:  # [C] each
    """Eigenvalues of symmetric matrices, ascending.

    By LAPACK, matrices of one shape together. On a CUDA device those of up to 64 rows are computed in one launch, by
    reflections and bisection in double precision, to the rounding of the largest, and without waiting for the device;
    larger ones, and those that require gradients, go to torch.linalg there too.

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
    return _spectra(matrices, "symmetric_eigenvalues", _eigenvalues)


def largest_singular_values(
    matrices: Sequence[Tensor],  # [A, B] each
) -> list[Tensor]:  # [] each
    """Largest singular value of each matrix, as the root of the largest eigenvalue of its smaller Gram matrix.

    By LAPACK, matrices of one shape together; on the CPU those whose smaller side is 128 or more by ARPACK, to the last
    digits. On a CUDA device those whose smaller side is up to 64 are computed in one launch, in double precision and
    without waiting for the device; larger ones, and those that require gradients, go to torch.linalg there too.

    Args:
        matrices: float32 or float64, of any shapes. One that is not finite gives NaN.

    Returns:
        The singular values, of the matrices' dtypes.

    Raises:
        UsageError: a matrix has another dtype or not two dimensions.
    """
    for i, matrix in enumerate(matrices):
        _check_matrix(f"matrices[{i}]", matrix)
    return _spectra(matrices, "largest_singular_values", _largest)


def _check_matrix(name: str, matrix: Tensor) -> None:
    check_float(name, matrix)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise UsageError(f"{name}: got shape {tuple(matrix.shape)}, expected a matrix with at least one element")


def _spectra(
    matrices: Sequence[Tensor],
    op: str,
    compute: Callable[[Tensor], Tensor],  # [k, A, B] -> [k, C] or [k]
) -> list[Tensor]:
    """Compute small CUDA matrices in a launch for each device, and all others by shape."""
    results: dict[int, Tensor] = {}
    launches: dict[torch.device, list[int]] = {}
    for i, matrix in enumerate(matrices):
        if _for_kernel(op, matrix):
            launches.setdefault(matrix.device, []).append(i)
    for members in launches.values():
        flat = getattr(torch.ops.zcpipe, op)([matrices[i].detach() for i in members])
        of_dtype = {dtype: flat.to(dtype) for dtype in {matrices[i].dtype for i in members}}
        parts = {dtype: _parts(op, values, [matrices[i] for i in members]) for dtype, values in of_dtype.items()}
        results.update((i, parts[matrices[i].dtype][k]) for k, i in enumerate(members))
    others = [i for i in range(len(matrices)) if i not in results]
    results.update(zip(others, _by_shape([matrices[i] for i in others], compute), strict=True))
    return [results[i] for i in range(len(matrices))]


def _parts(op: str, values: Tensor, matrices: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Divide what a launch gave among its matrices."""
    if op == "largest_singular_values":
        return values.unbind()
    parts: tuple[Tensor, ...] = torch.split(values, [matrix.shape[0] for matrix in matrices])
    return parts


def _for_kernel(op: str, matrix: Tensor) -> bool:
    differentiated = matrix.requires_grad and torch.is_grad_enabled()
    return matrix.is_cuda and min(matrix.shape) <= _MOST_ROWS and not differentiated and use_native(op, matrix)


def _by_shape(matrices: Sequence[Tensor], compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Compute all matrices of one kind together, and return the results in order."""
    groups: dict[object, list[int]] = {}
    for i, matrix in enumerate(matrices):
        groups.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(i)
    results: dict[int, Tensor] = {}
    for members in groups.values():
        stack = torch.stack([matrices[i] for i in members])
        # A sum is finite only if all its terms are, and cheaper to ask than each of them.
        computed = compute(stack) if math.isfinite(stack.sum().item()) else _of_finite(stack, compute)
        results.update(zip(members, computed.unbind(), strict=True))
    return [results[i] for i in range(len(matrices))]


def _of_finite(stack: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:  # [k, A, B]
    """Compute the finite matrices and give NaN for the others, for which LAPACK would refuse the whole stack."""
    finite = torch.isfinite(stack).flatten(1).all(1)
    computed = compute(torch.where(finite[:, None, None], stack, 0.0))
    return torch.where(finite.view(-1, *[1] * (computed.ndim - 1)), computed, torch.nan)


def _eigenvalues(stack: Tensor) -> Tensor:  # [k, C, C] -> [k, C]
    result: Tensor = torch.linalg.eigvalsh(stack)
    return result


def _largest(stack: Tensor) -> Tensor:  # [k, A, B] -> [k]
    # The Gram matrix of a scaled matrix neither overflows nor underflows.
    scale = stack.abs().flatten(1).amax(1).clamp_min(torch.finfo(stack.dtype).tiny)
    stack = stack / scale[:, None, None]
    gram = stack @ stack.mT if stack.shape[1] <= stack.shape[2] else stack.mT @ stack
    differentiated = gram.requires_grad and torch.is_grad_enabled()
    if gram.device.type == "cpu" and gram.shape[1] >= _LANCZOS_ROWS and not differentiated:
        largest = torch.stack([_largest_eigenvalue(matrix) for matrix in gram.detach()])
    else:
        largest = torch.linalg.eigvalsh(gram)[:, -1]
    result: Tensor = scale * largest.clamp_min(0.0).sqrt()
    return result


def _largest_eigenvalue(gram: Tensor) -> Tensor:  # [C, C] -> []
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh  # here, because it imports slowly

    # From a vector that is always the same, and of no matrix an eigenvector: results are, too.
    start = np.random.default_rng(0).standard_normal(len(gram)).astype(gram.numpy().dtype)
    try:
        if not gram.any():
            return gram.new_zeros(())
        (value,) = eigsh(gram.numpy(), k=1, which="LA", v0=start, tol=0, return_eigenvectors=False)
        return gram.new_tensor(value)
    except ArpackNoConvergence:  # of large eigenvalues that lie very close together
        everything: Tensor = torch.linalg.eigvalsh(gram)
        return everything[-1]


def _fake_eigenvalues(matrices: Sequence[Tensor]) -> Tensor:
    return matrices[0].new_empty(sum(matrix.shape[0] for matrix in matrices), dtype=torch.float64)


def _fake_largest(matrices: Sequence[Tensor]) -> Tensor:
    return matrices[0].new_empty(len(matrices), dtype=torch.float64)


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::symmetric_eigenvalues", _fake_eigenvalues)
    torch.library.register_fake("zcpipe::largest_singular_values", _fake_largest)
