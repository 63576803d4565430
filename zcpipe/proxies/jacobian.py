"""Proxies of the input's gradient: jacob_cov (ICLR 2021; NASLib's jacov) and epe_nas (Lopes et al., 2021).

Both read J, the gradient of the sum of all logits at each image of a batch, [N, D], train mode.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import NonfiniteError, UnsupportedError
from zcpipe.proxies.base import InputGradient, InputGradientStatistic, Proxy, Recipe
from zcpipe.proxies.saliency import PAPER as ICLR2021
from zcpipe.proxies.saliency import RECIPE as _RECIPE

RECIPE: Recipe = _RECIPE
_EPSILON = 1e-5
_MANY_CLASSES = 100


def jacobian_covariance(gradient: InputGradient) -> float:
    """Score -sum(ln(v + k) + 1/(v + k)) over the eigenvalues v of the correlation matrix of J's rows, k = 1e-5.

    Raises:
        UnsupportedError: fewer than two samples.
        NonfiniteError: there are no such correlations.
    """
    if len(gradient.rows) < 2:
        raise UnsupportedError(f"jacob_cov needs two samples or more, got {len(gradient.rows)}")
    rows = _rows(gradient)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.corrcoef(rows)
    if not np.isfinite(correlations).all():
        raise NonfiniteError(_why_none(rows))
    # The published code asks a solver for general matrices; the symmetric one gives the same values in another order.
    shifted = np.linalg.eigvalsh(correlations) + _EPSILON
    return float(-(np.log(shifted) + 1.0 / shifted).sum())


def class_correlations(gradient: InputGradient) -> float:
    """Score of EPE-NAS: how the rows of J correlate within each class.

    s_c = sum(ln(|C_c| + 1e-5)) over the correlation matrix of class c's rows. Up to 100 classes the score is the sum of
    |s_c|. Above it s_c is divided by the number of rows, classes of a single row are left out, and the score is the sum
    over pairs of |s_c - s_c'| divided by the number of classes left.

    Raises:
        UnsupportedError: there are no class numbers.
        NonfiniteError: there are no such correlations.
    """
    if gradient.targets is None or gradient.targets.ndim != 1:
        raise UnsupportedError("epe_nas needs one class number per sample as targets")
    rows, labels = _rows(gradient), gradient.targets.cpu().numpy()
    many = gradient.outputs > _MANY_CLASSES
    classes = [rows[labels == label] for label in np.unique(labels)]
    if not many:
        score = float(sum(abs(_log_correlations(of_class)) for of_class in classes))
    else:
        scores = np.array([_log_correlations(of_class) / len(of_class) for of_class in classes if len(of_class) > 1])
        score = float(np.abs(scores[:, None] - scores[None, :]).sum() / len(scores)) if len(scores) else 0.0
    if np.isnan(score):
        raise NonfiniteError(_why_none(rows))
    return score


def _log_correlations(rows: NDArray[np.float64]) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.log(np.abs(np.corrcoef(rows)) + _EPSILON).sum())


def _why_none(rows: NDArray[np.float64]) -> str:
    """Say why rows have no correlations."""
    if not np.isfinite(rows).all():
        return "the gradient at the input holds non-finite values"
    if not rows.any():
        return "the gradient at the input is zero: the output does not depend on the input"
    constant = np.count_nonzero(rows.max(1) == rows.min(1))
    return f"the gradient at the input is constant over {constant} of {len(rows)} samples: it correlates with nothing"


def _rows(gradient: InputGradient) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = gradient.rows.double().cpu().numpy()
    return rows


PROXIES = (
    Proxy.of(
        InputGradientStatistic("jacob_cov", "", jacobian_covariance),
        recipe=RECIPE,
        formula="-sum(ln(v + 1e-5) + 1/(v + 1e-5)), v the eigenvalues of the images' gradients' correlation matrix",
        paper="Mellor et al., Neural Architecture Search without Training (first version, 2020); as a proxy: "
        + ICLR2021,
    ),
    Proxy.of(
        InputGradientStatistic("epe_nas", "", class_correlations),
        recipe=RECIPE,
        formula="sum over classes of |sum(ln(|C_c| + 1e-5))|, C_c the correlation matrix of the class's gradients",
        paper="Lopes et al., EPE-NAS: Efficient Performance Estimation Without Training for NAS, ICANN 2021",
        targets=True,
    ),
)
