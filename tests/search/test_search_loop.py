"""Budgets, keys, failures: what is true of every search whatever its algorithm."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_problems import SPACE, Counting, macro_scores, quality

from zcpipe.errors import UsageError
from zcpipe.search import Budget, Evaluated, Trained, TrainingError
from zcpipe.search.algorithms import method
from zcpipe.search.candidates import TableCandidates
from zcpipe.search.loop import Search, run

ALL = TableCandidates(SPACE, macro_scores(), "cifar10")
NAMES = ("random", "evolution", "reinforce")


def made(name, budget, counting=None, candidates=ALL, direction="higher", seconds=None, parameters=None, **options):
    accuracy = Evaluated(counting or Counting(), direction)
    return Search(method(name, parameters), candidates, accuracy, Budget(budget, seconds), **options)


@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.integers(1, 150))
@settings(max_examples=25)
def test_the_budget_counts_models_and_those_of_one_key_once(name, seed, budget):
    counting = Counting()
    outcome = run(made(name, budget, counting), seed)
    assert [trial.arch for trial in outcome.trials] == counting.trained
    assert len({SPACE.key(SPACE.parse(text)) for text in counting.trained}) == len(counting.trained) == budget
    assert all(trial.key == SPACE.key(SPACE.parse(trial.arch)) for trial in outcome.trials)
    assert all(trial.accuracy == quality(SPACE.parse(trial.arch)) for trial in outcome.trials)
    assert outcome.ended == "budget"


@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.integers(2, 80), st.data())
@settings(max_examples=25)
def test_a_search_that_ends_anywhere_goes_on_as_if_it_had_not(name, seed, budget, data):
    whole = run(made(name, budget), seed)
    ended = data.draw(st.integers(0, budget))
    known = {trial.arch: trial for trial in whole.trials[:ended]}
    counting, recorded = Counting(), []
    again = run(made(name, budget, counting), seed, known, recorded.append)
    assert again == whole
    assert counting.trained == [trial.arch for trial in whole.trials[ended:]]
    assert recorded == list(whole.trials[ended:])


@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=20)
def test_a_larger_budget_begins_with_the_same(name, seed, one, other):
    small, large = sorted((one, other))
    assert run(made(name, large), seed).trials[:small] == run(made(name, small), seed).trials


def test_lower_may_be_better():
    up = run(made("evolution", 120), 1)
    down = run(made("evolution", 120, lambda arch: Trained(-quality(arch), -quality(arch), 2.0), direction="lower"), 1)
    assert [trial.arch for trial in up.trials] == [trial.arch for trial in down.trials]
    assert [trial.accuracy for trial in up.trials] == [-trial.accuracy for trial in down.trials]


def test_no_training_begins_once_the_seconds_are_spent():
    outcome = run(made("random", 100, seconds=7.0), 0)  # each takes 2
    assert (len(outcome.trials), outcome.ended) == (4, "seconds")
    assert len(run(made("random", 100, seconds=8.0), 0).trials) == 4


def test_seconds_are_measured_where_the_function_does_not_say():
    outcome = run(made("random", 2, quality), 0)
    assert all(trial.seconds > 0 and math.isnan(trial.report) for trial in outcome.trials)


def test_a_search_that_goes_in_circles_ends():
    # All neighbours of a table of four are soon trained, and the budget allows for more.
    texts = ("00000000", "00000001", "00000002", "11111111", "22222222")
    candidates = TableCandidates(SPACE, macro_scores(list(map(SPACE.parse, texts))), "cifar10")
    outcome = run(made("evolution", 5, candidates=candidates, parameters={"pool": 3, "tournament": 3}), 0)
    assert outcome.ended in ("repeats", "budget")
    outcome = run(made("evolution", 5, candidates=candidates, parameters={"pool": 1, "tournament": 1}), 7)
    assert outcome.ended == "repeats"
    assert len(outcome.trials) < 5


def test_a_search_without_candidates_left_ends():
    # 2 trained models of 3 candidates, of which two have one key; the budget is the number of keys.
    texts = ("00000000", "00000001", "00000010")
    candidates = TableCandidates(SPACE, macro_scores(list(map(SPACE.parse, texts))), "cifar10")
    assert candidates.models() == 2
    assert len(run(made("random", 2, candidates=candidates), 0).trials) == 2
    with pytest.raises(
        UsageError, match="a budget of 3 trained models is beyond the candidates, which are 2 different"
    ):
        made("random", 3, candidates=candidates)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_that_fails_ends_the_search_and_is_tried_again(name):
    whole = run(made(name, 80), 5)
    failing = whole.trials[70].arch
    recorded = []
    with pytest.raises(TrainingError, match=f"evaluate raised for {failing}: RuntimeError: out of luck"):
        run(made(name, 80, Counting({failing})), 5, record=recorded.append)
    assert tuple(recorded[:-1]) == whole.trials[:70]
    assert (recorded[-1].arch, "out of luck" in recorded[-1].failure) == (failing, True)
    counting = Counting()
    assert run(made(name, 80, counting), 5, {trial.arch: trial for trial in recorded}) == whole
    assert counting.trained[0] == failing


@pytest.mark.parametrize("name", NAMES)
def test_a_training_that_fails_can_be_passed_over(name):
    failing = run(made(name, 80), 5).trials[10].arch
    counting, recorded = Counting({failing}), []
    outcome = run(made(name, 80, counting, pass_over=True), 5, record=recorded.append)
    assert len(outcome.trials) == len(recorded) == 80
    assert math.isnan(outcome.trials[10].accuracy)
    assert "out of luck" in outcome.trials[10].failure
    assert counting.trained.count(failing) == 1
    again = Counting()
    later = run(made(name, 80, again, pass_over=True), 5, {trial.arch: trial for trial in recorded})
    assert [trial.arch for trial in later.trials] == [trial.arch for trial in outcome.trials]
    assert again.trained == []


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("good", "evaluate returned 'good' for"),
        (None, "evaluate returned None for"),
        (math.nan, "evaluate returned NaN"),
        (math.inf, "evaluate returned inf"),
        ("93.1", "evaluate returned '93.1' for"),
        (10**400, "return a number, or a zcpipe.search.Trained"),
        (torch.ones(2), "return a number, or a zcpipe.search.Trained"),
        (Trained(None), "return a number, or a zcpipe.search.Trained"),
        (Trained(1.0, report=None), "return a number, or a zcpipe.search.Trained"),
        (Trained(-math.inf), "evaluate returned -inf"),
        (Trained(1.0, seconds=math.nan), "took nan seconds; say how many, or nothing"),
        (Trained(1.0, seconds=-2.0), "took -2 seconds; say how many, or nothing"),
    ],
)
def test_what_is_no_accuracy(returned, said):
    with pytest.raises(TrainingError, match=said):
        run(made("random", 1, lambda arch: returned), 0)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(3), torch.tensor(0.5), True])
def test_any_kind_of_number_is_recorded_as_a_plain_one(number):
    recorded = []
    for said in (number, Trained(number, report=number, seconds=2)):
        (trial,) = run(made("random", 1, lambda arch, said=said: said), 0, record=recorded.append).trials
        assert (type(trial.accuracy), trial.accuracy) == (float, float(number))
    assert recorded[1].report == float(number) and recorded[1].seconds == 2
    assert {type(value) for trial in recorded for value in (trial.report, trial.seconds)} == {float}


def test_budgets_that_are_none():
    with pytest.raises(UsageError, match="a budget must be at least 1 trained model, got 0"):
        Budget(0)
    with pytest.raises(UsageError, match="a budget of seconds must be positive, got 0"):
        Budget(1, 0.0)
    with pytest.raises(UsageError, match="a whole number of models"):
        Budget(2.5)


def test_a_budget_may_be_a_number_of_numpy():
    budget = Budget(np.int64(3), np.float32(0.5))
    assert [(type(value), value) for value in (budget.trained, budget.seconds)] == [(int, 3), (float, 0.5)]


def test_progress_is_told_of_every_model():
    told = []
    run(made("random", 10), 0, progress=told.append)
    assert all(b - a == 1 for a, b in pairwise(told)) and told[-1] == 10
