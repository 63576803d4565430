"""What a search may choose from."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_problems import SPACE, macro_scores

from zcpipe.errors import DataError, UsageError
from zcpipe.search import Limits
from zcpipe.search.candidates import SpaceCandidates, TableCandidates, drawn
from zcpipe.search.scores import TableScores
from zcpipe.spaces import get_space

SCORES = macro_scores()
SOME = macro_scores([SPACE[index] for index in range(0, 6561, 97)])


@given(st.integers(0, 2**32), st.integers(0, 2**32))
@settings(max_examples=20)
def test_draws_are_all_candidates_each_once_in_an_order_of_the_seed(seed, other):
    candidates = TableCandidates(SPACE, SOME, "cifar10")
    order = [str(arch) for arch in candidates.draws(seed)]
    assert sorted(order) == sorted(SOME.texts)
    assert order == [str(arch) for arch in candidates.draws(seed)]
    assert (order == [str(arch) for arch in candidates.draws(other)]) == (seed == other)


@given(st.integers(1_000_000, 4_000_000), st.integers(10**6, 10**9), st.integers(0, 100))
@settings(max_examples=30)
def test_nothing_beyond_the_limits_is_a_candidate(params, macs, seed):
    limits = Limits(max_params=params, max_macs=macs)
    fit = (SCORES.columns["params"] <= params) & (SCORES.columns["macs"] <= macs)
    if not fit.any():
        with pytest.raises(DataError, match="none of all 6561 architectures of the table has at most"):
            TableCandidates(SPACE, SCORES, "cifar10", limits)
        return
    table, space = TableCandidates(SPACE, SCORES, "cifar10", limits), SpaceCandidates(SPACE, "cifar10", limits)
    assert len(table) == fit.sum()
    for candidates in (table, space):
        for arch in islice(candidates.draws(seed), 5):
            size = SPACE.size(arch, "cifar10")
            assert size.params <= params and size.macs <= macs and arch in candidates
    arch = next(table.draws(seed))
    assert table.neighbours(arch) == space.neighbours(arch)
    assert all(one in table for one in table.neighbours(arch))


def test_limits_that_nothing_meets_say_after_how_many_tries():
    with pytest.raises(DataError, match=r"none of 6561 random .* has at most 5 parameters; they had 387,882 to "):
        next(SpaceCandidates(SPACE, "cifar10", Limits(max_params=5)).draws(0))
    with pytest.raises(DataError, match=r"none of all 6561 .* has at most 5 multiply-accumulates; they have "):
        TableCandidates(SPACE, SCORES, "cifar10", Limits(max_macs=5))


def test_what_is_too_small_is_told_how_large_there_are():
    sizes = [SPACE.size(arch, "cifar10").params for arch in SPACE]
    with pytest.raises(DataError, match=f"at least 1,000,000,000 param.*; they had {min(sizes):,} to {max(sizes):,} "):
        next(SpaceCandidates(SPACE, "cifar10", Limits(min_params=10**9)).draws(0))
    failed = np.full(len(SPACE), np.nan)
    with pytest.raises(DataError, match="at most 5 parameters; they have no params, 7,713,280 to "):
        TableCandidates(SPACE, macro_scores(params=failed), "cifar10", Limits(max_params=5))


def test_draws_end_where_many_in_a_row_are_beyond_the_limits(monkeypatch):
    """What was found before them is not lost."""
    macs = sorted(SPACE.size(arch, "cifar10").macs for arch in SPACE)
    few = SpaceCandidates(SPACE, "cifar10", Limits(max_macs=macs[10]))
    first = next(i for i in range(len(SPACE)) if SPACE.sample(0, i) in few)
    monkeypatch.setattr("zcpipe.search.candidates.TRIES", first + 1)
    found = list(few.draws(0))
    assert 1 <= len(found) <= 11 and found[0] == SPACE.sample(0, first)
    monkeypatch.setattr("zcpipe.search.candidates.TRIES", first)
    with pytest.raises(DataError, match=f"none of {first} random architectures"):
        next(few.draws(0))


def test_limits_of_what_a_space_counts_hold_for_tables_and_spaces():
    mbv2 = get_space("mbv2")
    limits = Limits(max_flops=500_000_000, max_layers=12)
    archs = [mbv2.sample(0, i) for i in range(60)]
    fit = [mbv2.published_flops(a, "imagenet") <= 500e6 and mbv2.num_layers(a) <= 12 for a in archs]
    assert 1 < sum(fit) < 60
    sizes = [mbv2.size(a, "imagenet") for a in archs]
    columns = {name: np.array([float(getattr(size, name)) for size in sizes]) for name in ("params", "macs")}
    columns["params"][fit.index(True)] = np.nan  # its row failed
    scores = TableScores([*map(str, archs)], [*map(mbv2.key, archs)], columns, dict.fromkeys(columns, "higher"))
    table, space = TableCandidates(mbv2, scores, "imagenet", limits), SpaceCandidates(mbv2, "imagenet", limits)
    assert [arch in space for arch in archs] == fit
    assert len(table) == len({str(arch) for arch, good in zip(archs, fit, strict=True) if good}) - 1
    assert all(arch in space for arch in table.draws(0))
    with pytest.raises(UsageError, match="nasbenchmacro does not say how many layers an architecture has"):
        SpaceCandidates(SPACE, "cifar10", limits)


def test_a_limit_is_positive():
    with pytest.raises(UsageError, match="max_macs must be positive, got 0"):
        Limits(max_macs=0)


def test_models_are_counted_by_key():
    assert TableCandidates(SPACE, SCORES, "cifar10").models() == 3969


def test_keys_are_those_of_the_space():
    arch = SPACE.parse("00102000")
    assert (
        TableCandidates(SPACE, SCORES, "cifar10").key(arch)
        == SpaceCandidates(SPACE, "cifar10").key(arch)
        == SPACE.key(arch)
    )


def test_a_text_that_a_table_holds_twice_is_one_candidate():
    twice = macro_scores([SPACE[0], SPACE[1], SPACE[0]])
    assert len(TableCandidates(SPACE, twice, "cifar10")) == 2


def test_rows_that_may_not_be_candidates_are_none():
    among = np.zeros(len(SCORES.texts), dtype=bool)
    among[:3] = True
    candidates = TableCandidates(SPACE, SCORES, "cifar10", among=among)
    assert sorted(map(str, candidates.draws(0))) == SCORES.texts[:3]
    with pytest.raises(DataError, match="none of the table's 6561 architectures has a truth"):
        TableCandidates(SPACE, SCORES, "cifar10", among=np.zeros(len(SCORES.texts), dtype=bool))


def test_an_empty_table():
    with pytest.raises(DataError, match="the table has no rows"):
        TableCandidates(SPACE, macro_scores([]), "cifar10")


def test_too_few_to_draw():
    with pytest.raises(UsageError, match="100 random architectures were asked for, but there are only 68 candidates"):
        drawn(TableCandidates(SPACE, SOME, "cifar10"), 0, 100)


def test_an_unknown_data_set():
    with pytest.raises(UsageError, match="nasbenchmacro has no data set 'mnist'; it has cifar10"):
        SpaceCandidates(SPACE, "mnist")
