"""Random search, aging evolution and REINFORCE, asked and told by hand."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from search_problems import SPACE, macro_scores, quality

from zcpipe.errors import DataError, UsageError
from zcpipe.search import Guide, Limits
from zcpipe.search.algorithms import Setting, method, methods
from zcpipe.search.algorithms.reinforce import Controller
from zcpipe.search.candidates import SpaceCandidates, TableCandidates
from zcpipe.search.moves import Moves
from zcpipe.search.warmup import WarmUp
from zcpipe.spaces import get_space, list_spaces

SCORES = macro_scores()
ALL = TableCandidates(SPACE, SCORES, "cifar10")


def setting(candidates=ALL, seed=0, scores=SCORES, warmup=None, moves=None, random=0.25):
    return Setting(
        candidates,
        seed,
        100,
        None if warmup is None else WarmUp(*warmup[:2], Guide(warmup[2], scores)),
        None if moves is None else Moves(Guide(moves, scores), candidates, random),
    )


def asked(algorithm, n, accuracy=quality):
    found = []
    for _ in range(n):
        arch = algorithm.ask()
        if arch is None:
            break
        found.append(arch)
        algorithm.tell(arch, accuracy(arch))
    return found


def few(n):
    return macro_scores([SPACE[index] for index in range(0, 6561, 6561 // n)][:n])


def test_every_algorithm_says_who_published_it():
    assert {"random", "evolution", "reinforce"} <= methods().keys()
    assert all(one.paper for one in methods().values())


def test_an_unknown_algorithm_or_parameter():
    with pytest.raises(UsageError, match="unknown algorithm 'evolve'; did you mean evolution"):
        method("evolve")
    with pytest.raises(UsageError, match="invalid parameter of evolution: unknown name 'popsize'"):
        method("evolution", {"popsize": 3})
    with pytest.raises(UsageError, match="invalid parameter of evolution: pool: input should be greater than or equal"):
        method("evolution", {"pool": 0})


@pytest.mark.parametrize("name", ["random", "evolution", "reinforce"])
def test_the_same_seed_and_accuracies_ask_the_same(name):
    runs = [asked(method(name).start(setting(seed=seed)), 100) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("name", ["random", "evolution"])
def test_a_warm_up_begins_with_the_best_of_the_first_draws(name):
    begun = asked(method(name).start(setting(warmup=(500, 20, "cost"))), 20)
    drawn = [arch for arch, _ in zip(ALL.draws(0), range(500), strict=False)]
    keys = {SPACE.key(arch) for arch in begun}
    assert len(keys) == 20  # one of each key
    assert set(begun) <= set(drawn)
    assert [quality(arch) for arch in begun] == sorted((quality(arch) for arch in begun), reverse=True)
    worst = min(quality(arch) for arch in begun)
    assert all(SPACE.key(arch) in keys for arch in drawn if quality(arch) > worst)


# -- random


def test_random_search_asks_for_every_candidate_once():
    candidates = TableCandidates(SPACE, few(50), "cifar10")
    found = asked(method("random").start(setting(candidates)), 60)
    assert sorted(map(str, found)) == sorted(candidates.texts)


def test_after_the_warm_up_random_search_goes_on_behind_what_was_scored():
    found = asked(method("random").start(setting(warmup=(30, 5, "good"))), 10)
    drawn = [arch for arch, _ in zip(ALL.draws(0), range(35), strict=False)]
    assert found[5:] == drawn[30:]


def test_what_the_warm_up_scored_and_did_not_keep_comes_last():
    candidates = TableCandidates(SPACE, few(50), "cifar10")
    found = asked(method("random").start(setting(candidates, warmup=(30, 5, "good"))), 99)
    drawn = list(candidates.draws(0))
    assert found[5:] == [*drawn[30:], *(arch for arch in drawn[:30] if arch not in found[:5])]
    assert sorted(map(str, found)) == sorted(map(str, drawn))


# -- evolution


def test_evolution_fills_its_pool_then_has_neighbours_of_its_members():
    algorithm = method("evolution", {"pool": 8, "tournament": 3}).start(setting())
    found = asked(algorithm, 40)
    assert found[:8] == [arch for arch, _ in zip(ALL.draws(0), range(8), strict=False)]
    for place, child in enumerate(found[8:], start=8):
        pool = found[place - 8 : place]  # of the 8 youngest alone
        assert any(child in SPACE.neighbours(parent) for parent in pool)


def test_the_most_accurate_of_a_tournament_of_all_is_always_the_parent():
    algorithm = method("evolution", {"pool": 8, "tournament": 8}).start(setting())
    found = asked(algorithm, 40)
    for place, child in enumerate(found[8:], start=8):
        assert child in SPACE.neighbours(max(found[place - 8 : place], key=quality))


def test_a_failed_training_makes_no_parent_while_another_lives():
    algorithm = method("evolution", {"pool": 4, "tournament": 4}).start(setting())
    bound = sorted(quality(arch) for arch, _ in zip(ALL.draws(0), range(4), strict=False))[1]
    found = asked(algorithm, 4, lambda arch: math.nan if quality(arch) > bound else quality(arch))
    alive = [arch for arch in found if quality(arch) <= bound]
    assert len(alive) < 4
    assert algorithm.ask() in SPACE.neighbours(max(alive, key=quality))


def test_moves_take_the_best_neighbour_by_the_score():
    algorithm = method("evolution", {"pool": 1, "tournament": 1}).start(setting(moves="cost", random=0.0))
    found = asked(algorithm, 10)
    for parent, child in pairwise(found):
        assert quality(child) == max(quality(one) for one in SPACE.neighbours(parent))


def test_a_quarter_of_the_moves_is_random():
    moves = Moves(Guide("good", SCORES), ALL)
    rng = np.random.default_rng(0)
    parent = SPACE.parse("00000000")
    chosen = Counter(str(moves.choose(parent, rng)) for _ in range(4000))
    assert chosen["00000002"] / 4000 == pytest.approx(0.75 + 0.25 / 16, abs=0.02)
    assert chosen.keys() == {str(one) for one in SPACE.neighbours(parent)}


def test_moves_are_random_where_no_neighbour_has_a_score():
    moves = Moves(Guide("broken", SCORES), ALL, 0.0)
    rng = np.random.default_rng(0)
    assert len({moves.choose(SPACE[0], rng) for _ in range(200)}) == 16


def test_a_random_candidate_takes_the_place_of_a_child_that_cannot_be():
    lonely = TableCandidates(
        SPACE, macro_scores([SPACE[0], SPACE.parse("11111111"), SPACE.parse("22222222")]), "cifar10"
    )
    found = asked(method("evolution", {"pool": 1, "tournament": 1}).start(setting(lonely)), 5)
    assert sorted(map(str, found)) == ["00000000", "11111111", "22222222"]


def test_what_does_not_fit_in_the_pool():
    with pytest.raises(UsageError, match=r"keeps 65 architectures, the pool holds 64: .*--set pool=65"):
        method("evolution").start(setting(warmup=(100, 65, "good")))
    with pytest.raises(UsageError, match="a tournament of 5 needs as large a pool, got 4"):
        method("evolution", {"pool": 4, "tournament": 5}).start(setting())


# -- reinforce


def test_the_controller_makes_better_choices_more_probable():
    controller = Controller(setting(), 0.05, 0.9)
    assert controller.probabilities == pytest.approx(1 / 3, abs=0.01)
    for _ in range(500):
        arch, numbers = controller.draw()
        assert arch.operations == tuple(numbers)
        controller.learn(numbers, quality(arch))
    assert controller.probabilities.sum(axis=1) == pytest.approx(1)
    assert (controller.probabilities[4:, 2] > 0.8).all()  # the layers that count most


def test_a_step_follows_the_gradient_of_the_probability_of_what_was_chosen():
    controller = Controller(setting(), 0.01, 0.5)
    numbers = [0, 1, 2, 0, 1, 2, 0, 1]
    before, logits = controller.probabilities, controller.logits
    controller.learn(numbers, 3.0)  # the first reward is the baseline: nothing is learnt
    assert (controller.logits == logits).all()
    controller.learn(numbers, 5.0)  # above it: what was chosen becomes more probable, all else less
    chosen = np.zeros_like(before, dtype=bool)
    chosen[np.arange(8), numbers] = True
    assert (controller.probabilities[chosen] > before[chosen]).all()
    assert (controller.probabilities[~chosen] < before[~chosen]).all()
    risen = controller.probabilities
    controller.forget()
    controller.learn(numbers, 5.0)
    controller.learn(numbers, 3.0)  # below it: the other way
    assert (controller.probabilities[chosen] < risen[chosen]).all()


def test_choices_may_have_different_numbers_of_options():
    space = get_space("nasbench101")
    controller = Controller(setting(SpaceCandidates(space, "cifar10")), 0.1, 0.9)
    assert controller.probabilities.shape == (26, 3)
    assert (controller.probabilities[:21, 2] == 0).all()
    for _ in range(3):
        arch, numbers = controller.draw()
        assert space.index(arch) >= 0
        controller.learn(numbers, 1.0)
    assert np.isfinite(controller.probabilities).all()


def test_the_warm_up_rewards_the_controller_by_the_scores_and_keeps_the_best_that_it_drew():
    cold = asked(method("reinforce").start(setting()), 64)
    algorithm = method("reinforce").start(setting(warmup=(600, 4, "cost")))
    first = asked(algorithm, 4)
    warm = asked(algorithm, 60)
    assert np.mean([quality(arch) for arch in warm]) > np.mean([quality(arch) for arch in cold]) + 5
    assert [quality(arch) for arch in first] == sorted((quality(arch) for arch in first), reverse=True)
    assert len({SPACE.key(arch) for arch in first}) == 4


def test_what_the_controller_draws_is_a_candidate():
    small = TableCandidates(SPACE, SCORES, "cifar10", Limits(max_params=1_200_000))
    assert all(arch in small for arch in asked(method("reinforce").start(setting(small)), 20))


def test_a_controller_that_finds_no_candidate_gives_up():
    lonely = TableCandidates(SPACE, macro_scores([SPACE[0]]), "cifar10")
    algorithm = method("reinforce").start(setting(lonely))
    algorithm._controller.logits[:, 0] = -50  # what the one candidate is made of
    algorithm._controller.learn([1] * 8, 1.0)
    with pytest.raises(DataError, match="none of 10000 architectures that the controller drew is a candidate"):
        algorithm.ask()


def test_a_controller_that_leaves_the_candidates_ends_its_search():
    few = TableCandidates(SPACE, macro_scores(list(SPACE)[:300]), "cifar10")
    algorithm = method("reinforce").start(setting(few))
    assert algorithm.ask() in few
    algorithm._controller.logits[:, 0] = -50
    algorithm._controller.logits[:, 2] = 50
    algorithm.tell(None, 1.0)
    assert algorithm.ask() is None


def test_failures_teach_as_the_worst_success_did():
    algorithm = method("reinforce", {"learning_rate": 0.1}).start(setting())
    algorithm.ask()
    before = algorithm._controller.logits
    algorithm.tell(None, math.nan)  # of what, nobody knows yet
    assert (algorithm._controller.logits == before).all()
    twin = method("reinforce", {"learning_rate": 0.1}).start(setting())
    twin.ask()
    for one, last in ((algorithm, math.nan), (twin, 1.0)):
        for accuracy in (2.0, 1.0, last):
            one.ask()
            one.tell(None, accuracy)
    assert (algorithm._controller.logits == twin._controller.logits).all()


@pytest.mark.parametrize("name", ["nds", "mbv2"])
def test_a_space_without_choices_is_refused_and_what_searches_it_is_named(name):
    space = get_space(name)
    candidates = SpaceCandidates(space, next(iter(space.datasets)))
    with pytest.raises(UsageError) as error:
        method("reinforce").start(setting(candidates))
    assert str(error.value) == (
        f"reinforce learns which of a space's options to choose, and {name} has no options that are the same for all "
        "its architectures; search it by random or evolution, or by scores alone with aznas"
    )
    for other in ("random", "evolution"):
        assert len(asked(method(other).start(setting(candidates)), 3, lambda arch: 1.0)) == 3


CLOSED = [name for name in list_spaces() if not name.startswith(("nds", "mbv2"))]


@pytest.mark.parametrize("name", CLOSED)
def test_reinforce_searches_every_other_space(name):
    space = get_space(name)
    candidates = SpaceCandidates(space, next(iter(space.datasets)))
    found = asked(method("reinforce").start(setting(candidates)), 40, lambda arch: float(len(str(arch))))
    assert len(set(found)) > 20
    assert all(space.parse(str(arch)) == arch for arch in found)


@pytest.mark.parametrize("name", ["nasbench201", "nasbench101", "nasbenchmacro", "transnasbench101_micro"])
def test_spaces_are_made_of_their_choices(name):
    space = get_space(name)
    rng = np.random.default_rng(0)
    made = [space.choose([int(rng.integers(options)) for options in space.choices]) for _ in range(100)]
    archs = [arch for arch in made if arch is not None]
    assert len(archs) > 5
    assert all(space.parse(str(arch)) == arch for arch in archs)
    if name == "nasbenchmacro":
        assert str(space.choose([0, 1, 2, 0, 1, 2, 0, 1])) == "01201201"
    elif name != "nasbench101":
        numbers = [0, 1, 2, 3, 0, 1]
        assert list(space.cell_code(space.choose(numbers))) == numbers


# -- warm-up


def test_a_warm_up_keeps_no_more_than_it_scores():
    with pytest.raises(UsageError, match="got 10 of 5; for example --warmup 3000:64"):
        WarmUp(5, 10, Guide("good", SCORES))


def test_a_warm_up_of_more_than_there_are():
    with pytest.raises(UsageError, match="60 random architectures were asked for, but there are only 50 candidates"):
        method("random").start(setting(TableCandidates(SPACE, few(50), "cifar10"), warmup=(60, 5, "good"))).ask()


@pytest.mark.parametrize("name", ["random", "evolution", "reinforce"])
def test_a_warm_up_by_what_always_failed(name):
    with pytest.raises(DataError, match="broken has no score for any of 20 architectures"):
        method(name).start(setting(warmup=(20, 5, "broken"))).ask()
