"""What AZ-NAS's searches propose, with scores that cost nothing."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.errors import DataError, UsageError, ZcpipeError
from zcpipe.ops.philox import Stream
from zcpipe.rank import log_rank, top
from zcpipe.search.algorithms import aznas
from zcpipe.search.algorithms.aznas import AzNas
from zcpipe.search.limits import Limits
from zcpipe.spaces import get_space
from zcpipe.spaces.base import Dataset, Size

MACRO = get_space("nasbenchmacro")
WAYS = {"params": "higher", "macs": "lower"}


@dataclass(frozen=True)
class Point:
    """A pair of numbers, which remembers from whom it came and in how many places it was changed."""

    pair: tuple[int, int]
    parent: tuple[int, int] | None = None
    places: int = 0

    def __str__(self) -> str:
        return f"{self.pair[0]},{self.pair[1]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.pair == other.pair

    def __hash__(self) -> int:
        return hash(self.pair)


class Plane:
    """An endless space with a published start."""

    name = "plane"
    paper = "none"
    datasets: ClassVar = {"tiny": Dataset("tiny", (3, 6, 6), 4)}

    def parse(self, text: str) -> Point:
        x, y = text.split(",")
        return Point((int(x), int(y)))

    def _unused(self, *_: object) -> None:
        raise NotImplementedError("nothing is scored here")

    neighbours = key = slots = common_slots = correspondence = build = _unused

    def initial(self) -> Point:
        return Point((500, 500))

    def mutate(self, arch: Point, seed: int, i: int, places: int = 1) -> Point:
        moves = Stream.of(seed, self.name, str(arch), i, "mutate").integers(2, 200).tolist()
        x, y = arch.pair
        return Point((x + moves[0], y + moves[1]) if places > 1 else (x + 1 + moves[0], y), arch.pair, places)

    def sample(self, seed: int, i: int) -> Point:
        return Point((*Stream.of(seed, self.name, "", i, "sample").integers(2, 1000).tolist(),))

    def num_layers(self, arch: Point) -> int:
        return arch.pair[0] // 100

    def size(self, arch: Point, dataset: str) -> Size:
        return Size(params=arch.pair[0], macs=arch.pair[1])


def scores_of(archs):
    pairs = np.array([arch.pair for arch in archs], np.float64).reshape(-1, 2)
    return {"params": pairs[:, 0], "macs": pairs[:, 1]}


def plane(**settings):
    return AzNas(Plane(), "tiny", WAYS, **settings)


def searched(algorithm, sizes, scores=scores_of):
    for size in sizes:
        algorithm.tell(scores(algorithm.propose(size)))
    return algorithm.archs


def test_parents_are_the_start_then_any_candidate_then_the_best():
    """METHODS A.8 with batches of one, which is the published loop."""
    population, archs = 30, []
    algorithm = plane(population=population, seed=3)
    from_worse = 0
    for number in range(200):
        (arch,) = algorithm.propose(1)
        if number <= 10:
            assert (arch.parent, arch.places) == ((500, 500), 1)
        else:
            assert arch.places == 2
            parents = [one.pair for one in archs]
            best = {parents[i] for i in top(log_rank(scores_of(archs), WAYS), population - 1)}
            assert arch.parent in (parents if number < population - 1 else best)
            from_worse += number < population - 1 and arch.parent not in list(best)[:5]
        archs.append(arch)
        algorithm.tell(scores_of([arch]))
    assert from_worse, "candidates of the second phase come from anybody"
    late = {arch.parent for arch in archs[100:]}
    assert len(late) > 15, "parents are taken uniformly from all of the best"


def test_the_best_are_those_when_the_batch_began():
    algorithm = plane(population=10)
    searched(algorithm, [40])
    before = {algorithm.archs[i].pair for i in algorithm.history.best(9)}
    assert {arch.parent for arch in algorithm.propose(60)} <= before


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_before_the_best_are_asked_for_batches_change_nothing(sizes):
    whole = searched(plane(population=1000), [1] * sum(sizes))
    assert searched(plane(population=1000), sizes) == whole


def test_what_is_proposed_depends_on_the_seed_and_on_what_was_told_alone():
    sizes = [16] * 8
    assert searched(plane(population=20), sizes) == searched(plane(population=20), sizes)
    assert searched(plane(population=20, seed=1), sizes) != searched(plane(population=20), sizes)
    reversed_scores = searched(plane(population=20), sizes, lambda archs: scores_of(archs[::-1]))
    assert reversed_scores != searched(plane(population=20), sizes)


def test_failed_candidates_stay_and_are_no_parents_among_the_best():
    def scores(archs):
        columns = scores_of(archs)
        columns["macs"][columns["params"] % 2 == 0] = np.nan
        return columns

    algorithm = plane(population=12)
    searched(algorithm, [40], scores)
    assert algorithm.history.population < len(algorithm.archs) == 40
    assert all(arch.parent[0] % 2 for arch in algorithm.propose(30))
    nobody = plane(population=12)
    searched(nobody, [16] * 4, lambda archs: {name: np.full(len(archs), np.nan) for name in WAYS})
    assert len(nobody.archs) == 64, "without any best, parents are any candidates"


def test_an_architecture_is_a_candidate_once():
    algorithm = AzNas(MACRO, "cifar10", WAYS, population=8)
    archs = searched(algorithm, [50] * 8, lambda archs: {name: np.zeros(len(archs)) for name in WAYS})
    assert len(set(archs)) == len(archs) == 400 < algorithm.tries


@pytest.mark.parametrize("proposals", ["evolution", "random"])
def test_candidates_are_within_the_limits(proposals):
    limits = Limits(max_macs=900, max_params=799, min_params=300, max_layers=6)
    algorithm = plane(proposals=proposals, limits=limits)
    archs = searched(algorithm, [30] * 3)
    assert all(arch.pair[1] <= 900 and 300 <= arch.pair[0] < 700 for arch in archs)
    assert algorithm.tries > len(archs) == 90


def test_random_sampling_takes_the_draws_in_a_window():
    """METHODS A.9."""
    algorithm = plane(proposals="random", seed=5, limits=Limits(min_params=400, max_params=600))
    archs = searched(algorithm, [7] * 3)
    draws = [Plane().sample(5, i) for i in range(algorithm.tries)]
    assert archs == list(dict.fromkeys(draw for draw in draws if 400 <= draw.pair[0] <= 600))


def test_a_constraint_that_nothing_meets_says_after_how_many_tries(monkeypatch):
    monkeypatch.setattr(aznas, "TRIES", 200)
    for proposals in ("evolution", "random"):
        algorithm = AzNas(MACRO, "cifar10", WAYS, proposals=proposals, limits=Limits(max_macs=1000))
        with pytest.raises(DataError, match="none of 200 proposals in nasbenchmacro has at most 1,000 multiply"):
            algorithm.propose(4)


def test_a_search_ends_where_nothing_new_is_found(monkeypatch):
    monkeypatch.setattr(aznas, "TRIES", 300)
    smallest = min(MACRO.size(arch, "cifar10").macs for arch in MACRO)
    algorithm = AzNas(MACRO, "cifar10", WAYS, proposals="random", limits=Limits(max_macs=smallest))
    monkeypatch.setattr(aznas, "TRIES", len(MACRO))
    assert len(algorithm.propose(4)) == 1 and algorithm.tries == len(MACRO)
    algorithm.tell({name: np.zeros(1) for name in WAYS})
    assert algorithm.propose(4) == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_macs": 0}, "max_macs must be positive, got 0"),
        ({"min_params": 5, "max_params": 4}, "min_params is 5, more than max_params, which is 4"),
    ],
)
def test_refuses_limits_that_mean_nothing(limits, message):
    with pytest.raises(UsageError, match=message):
        Limits(**limits)


def test_refuses_limits_of_layers_that_nobody_counts():
    with pytest.raises(UsageError, match="nasbenchmacro does not say how many layers"):
        AzNas(MACRO, "cifar10", WAYS, limits=Limits(max_layers=3))


def test_names_a_space_that_raises():
    class Broken(Plane):
        def mutate(self, *_: object) -> SimpleNamespace:
            raise ValueError("no moves today")

    with pytest.raises(ZcpipeError, match="the space plane cannot give a mutation of 500,500: ValueError: no moves"):
        AzNas(Broken(), "tiny", WAYS).propose(1)


@pytest.mark.parametrize("seed", range(6))
def test_a_start_without_admissible_neighbours_does_not_end_a_search(seed: int) -> None:
    # At most 300,000 parameters allow no 3x3 convolution: 4,096 of 15,625 cells, and few changes of most random ones.
    space = get_space("nasbench201")
    search = AzNas(space, "cifar10", {"params": "higher"}, seed=seed, limits=Limits(max_params=300_000))
    found = search.propose(60)
    assert len(set(found)) == 60
    assert all(space.size(arch, "cifar10").params <= 300_000 for arch in found)


def test_where_no_mutation_is_within_the_limits_another_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aznas, "TRIES", 50)
    monkeypatch.setattr(aznas, "_VAIN", 20)
    search = AzNas(MACRO, "cifar10", {"params": "higher"}, limits=Limits(max_params=1))
    with pytest.raises(DataError, match=r"none of 50 proposals .*: one start has few changes; propose at random"):
        search.propose(1)
