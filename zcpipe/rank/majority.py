"""A majority vote of proxies on every pair of architectures (Abdelfattah et al., ICLR 2021).

The relation "i beats j" need not be transitive, so it has two readings: the ranking by how many others each beats,
and, against the truth, the share of pairs that the relation itself decides rightly, which is the published figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from zcpipe.rank.ranking import Floats, ranked

_Bools = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
_Places = np.ndarray[tuple[int, int], np.dtype[np.unsignedinteger]]

_PAIRS_AT_ONCE = 1 << 19  # so that a block of pairs stays in the cache
_TRUTH = "the truth"  # a name that no proxy has


def vote(columns: Mapping[str, Floats], directions: Mapping[str, str]) -> Floats:
    """Rank by majority votes: how many others an architecture beats.

    i beats j if at least half of the proxies strictly prefer i. So of two that tie in some proxies neither or each may
    beat the other; both then count the same. Every pair is looked at, in memory that grows with the architectures only.

    Args:
        columns: for each proxy its values over the population, [n].
        directions: for each proxy "higher" or "lower".

    Returns:
        [n], higher is better, whole numbers from 0 to m - 1; NaN where any proxy is NaN, and the votes are among the
        other m alone.

    Raises:
        UsageError: no column, or one without a direction.
        DataError: columns of different lengths.
    """
    places = ranked(columns, directions)
    inside = ~np.isnan(places[0])
    beaten = [np.count_nonzero(beats, axis=1) for _, beats in _votes(_dense(places[:, inside]))]
    result = np.full(places.shape[1], np.nan)
    result[inside] = np.concatenate(beaten) if beaten else []
    return result


def vote_accuracy(columns: Mapping[str, Floats], directions: Mapping[str, str], truth: Floats) -> float:
    """Return the share of pairs that the majority decides as the truth does.

    As in the published notebook every ordered pair (i, j) of different truth counts once, and is right if "i beats j"
    is as true as "i is better". Of two that the vote cannot tell apart one order is right.

    Args:
        columns: for each proxy its values over the population, [n].
        directions: for each proxy "higher" or "lower".
        truth: [n], NaN where unknown.

    Returns:
        The share, over the architectures with truth and all proxies; NaN if all of those have the same truth.

    Raises:
        UsageError, DataError: as `vote`.
    """
    places = ranked({**columns, _TRUTH: truth}, {**directions, _TRUTH: "higher"})
    dense = _dense(places[:, ~np.isnan(places[0])])
    target = dense[-1]
    right = pairs = 0
    for start, beats in _votes(dense[:-1]):
        here = target[start : start + len(beats), None]
        differ = here != target
        right += int(np.count_nonzero((beats == (here > target)) & differ))
        pairs += int(np.count_nonzero(differ))
    return right / pairs if pairs else float("nan")


def _dense(
    places: np.ndarray[tuple[int, int], np.dtype[np.float64]],  # [proxies, m]
) -> _Places:
    """Number the distinct values of each row in their order, in as few bytes as hold them: they are only compared."""
    numbered = [np.unique(row, return_inverse=True)[1] for row in places]
    return np.array(numbered).astype(np.min_scalar_type(places.shape[1]))


def _votes(places: _Places) -> Iterator[tuple[int, _Bools]]:
    """Yield blocks of the relation: the first row's number, and for each row whom it beats, [rows, m]."""
    proxies, m = places.shape
    rows = max(1, _PAIRS_AT_ONCE // max(m, 1))
    for start in range(0, m, rows):
        block = places[:, start : start + rows, None]
        preferred = np.zeros((block.shape[1], m), dtype=np.min_scalar_type(proxies))
        for mine, others in zip(block, places, strict=True):
            preferred += mine > others
        yield start, preferred >= (proxies + 1) // 2
