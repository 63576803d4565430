"""How well scores order architectures as training does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from zcpipe.errors import DataError
from zcpipe.rank.ranking import Floats


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of raw scores with the truth, signed: a proxy whose small values are good comes out negative.

    Attributes:
        kendall: Kendall's tau-b; NaN if the scores are constant or fewer than two are there.
        spearman: Spearman's rho, NaN likewise.
        pair_accuracy: the share of the pairs of different truth that the scores order as the truth does; a tie in the
            scores counts a half. NaN likewise.
        n: architectures with both a score and a truth.
        failed: architectures with a truth but no score.
    """

    kendall: float
    spearman: float
    pair_accuracy: float
    n: int
    failed: int


def correlate(scores: Floats, truth: Floats, name: str = "target") -> Correlation:
    """Correlate scores with trained accuracies over the architectures that have both.

    Args:
        scores: [n], NaN where scoring failed; infinities are data.
        truth: [n], NaN where the truth is unknown.
        name: the truth's column, for messages.

    Raises:
        DataError: the lengths differ, no architecture has a truth, or the truth is constant, so that nothing can be
            said about any score.
    """
    values = np.asarray(scores, dtype=np.float64)
    target = np.asarray(truth, dtype=np.float64)
    if values.shape != target.shape or values.ndim != 1:
        raise DataError(f"{name}: {target.shape} values do not fit {values.shape} scores")
    known = ~np.isnan(target)
    values, target = values[known], target[known]
    if len(target) == 0:
        raise DataError(f"{name}: no architecture of the table has a value; is the truth of another space?")
    if _constant(target):
        raise DataError(
            f"target {name!r} is constant over all {len(target)} architectures: there is no order to compare"
        )
    scored = ~np.isnan(values)
    n, failed = int(scored.sum()), int((~scored).sum())
    values, target = values[scored], target[scored]
    if n < 2 or _constant(values) or _constant(target):
        return Correlation(float("nan"), float("nan"), float("nan"), n, failed)
    from scipy import stats  # here, as in aggregate.ranks: it imports slowly

    # Of the ranks, on which both depend alone: infinite scores are ordinary then.
    score_ranks, target_ranks = stats.rankdata(values), stats.rankdata(target)
    kendall = float(stats.kendalltau(score_ranks, target_ranks, variant="b").statistic)
    spearman = float(stats.spearmanr(score_ranks, target_ranks).statistic)
    scored_pairs, target_pairs = _untied(score_ranks), _untied(target_ranks)
    # Tau-b's numerator, a whole number: the pairs that agree less those that do not.
    agreement = round(kendall * math.sqrt(scored_pairs) * math.sqrt(target_pairs))
    return Correlation(kendall, spearman, (target_pairs + agreement) / (2 * target_pairs), n, failed)


def _untied(values: Floats) -> int:
    """Count the pairs of different values."""
    counts = np.unique(values, return_counts=True)[1].tolist()
    return math.comb(len(values), 2) - sum(math.comb(count, 2) for count in counts)


def _constant(values: Floats) -> bool:
    return bool(np.all(values == values[0])) if len(values) else True
