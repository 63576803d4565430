"""Losses that a predictor learns an order from: DiffKendall, pairwise ranking, the squared error, and their sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from zcpipe.errors import UsageError, unknown_name

ALPHA = 0.5

Loss = Callable[[Tensor, Tensor], Tensor]


def diff_kendall(
    prediction: Tensor,  # [n]
    target: Tensor,  # [n]
    alpha: float = ALPHA,
) -> Tensor:
    """Kendall's tau with its signs softened to a difference of sigmoids, which is tanh(alpha d / 2), negated.

    As published the sum runs over the ordered pairs, each pair twice, and is divided by the number of pairs: the loss
    lies between -2 and 2 and tends to -2 tau-a as the gaps between the values grow.

    Returns:
        A scalar, differentiable in both.

    Raises:
        UsageError: the shapes differ or are not [n], n is less than 2, or alpha is not a positive number.
    """
    _check(prediction, target, least=2)
    if not 0 < alpha < math.inf:
        raise UsageError(f"alpha: got {alpha}, expected a positive number")
    agreement = torch.tanh(alpha / 2 * _gaps(prediction)) * torch.tanh(alpha / 2 * _gaps(target))
    return -agreement.sum() / math.comb(len(prediction), 2)


def pairwise(
    prediction: Tensor,  # [n]
    target: Tensor,  # [n]
) -> Tensor:
    """The mean over i != j of ln(1 + exp(-(prediction_i - prediction_j) sign(target_i - target_j))).

    A pair of equal targets counts ln 2 and asks for nothing.

    Returns:
        A scalar, differentiable in the prediction.

    Raises:
        UsageError: the shapes differ or are not [n], or n is less than 2.
    """
    _check(prediction, target, least=2)
    n = len(prediction)
    margins = _gaps(prediction) * _gaps(target).sign()
    # The diagonal of zeros, ln 2 each, is no pair.
    return (F.softplus(-margins).sum() - n * math.log(2)) / (n * (n - 1))


def mse(
    prediction: Tensor,  # [n]
    target: Tensor,  # [n]
) -> Tensor:
    """The mean squared error, a scalar.

    Raises:
        UsageError: the shapes differ or are not [n], or n is 0.
    """
    _check(prediction, target, least=1)
    return F.mse_loss(prediction, target)


def loss_named(name: str, alpha: float = ALPHA) -> Loss:
    """Find a loss by its name: ``mse``, ``pairwise``, ``diffkendall``, or some of them joined by "+".

    A sum is unweighted, as published.

    Args:
        name: of the loss.
        alpha: DiffKendall's.

    Returns:
        From prediction [n] and target [n] to a scalar.

    Raises:
        UsageError: a name is not known, or is there twice.
    """
    terms = _terms(name, alpha)
    return lambda prediction, target: torch.stack([term(prediction, target) for term in terms]).sum()


def fixes_scale(name: str) -> bool:
    """Whether a loss asks for the target's values; the others ask for its order and leave where it lies open."""
    return "mse" in name.split("+")


def _terms(name: str, alpha: float) -> list[Loss]:
    known: dict[str, Loss] = {"mse": mse, "pairwise": pairwise, "diffkendall": partial(diff_kendall, alpha=alpha)}
    names = name.split("+")
    for term in names:
        if term not in known:
            raise unknown_name("loss", term, known)
        if names.count(term) > 1:
            raise UsageError(f"loss {name!r} has {term} twice; a sum is unweighted, name it once")
    return [known[term] for term in names]


def _gaps(values: Tensor) -> Tensor:
    return values[:, None] - values[None, :]


def _check(prediction: Tensor, target: Tensor, least: int) -> None:
    if prediction.ndim != 1 or prediction.shape != target.shape or len(prediction) < least:
        raise UsageError(
            f"prediction and target: got shapes {tuple(prediction.shape)} and {tuple(target.shape)}, "
            f"expected [n] twice with n at least {least}"
        )
