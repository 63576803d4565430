"""Predictor-guided search: rounds, warm-up, pre-training, what is learnt from and what is asked for."""

import json
import math
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import pytest
import torch
from search_problems import SPACE, Counting, macro_features, macro_scores, quality

from zcpipe import open_table
from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.places import Coordinate
from zcpipe.parzc.predictors.base import Prediction
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.run import Archs, RunSpec, run
from zcpipe.search import Features, Guidance, Guide, TrainingError, TruthAccuracy, search
from zcpipe.search.algorithms import Setting, method
from zcpipe.search.algorithms import predictor as module
from zcpipe.search.candidates import SpaceCandidates, TableCandidates
from zcpipe.search.result import CURVES, PICKS
from zcpipe.search.warmup import WarmUp
from zcpipe.spaces import get_space

LAYERS = len(SPACE[0].operations)
MEMBERS = list({SPACE.key(SPACE[index]): SPACE[index] for index in range(0, len(SPACE), 5)}.values())[::2]
SCORES = macro_scores(MEMBERS)
CANDIDATES = TableCandidates(SPACE, SCORES, "cifar10")
FEATURES = macro_features(MEMBERS)


def setting(seed=0, warmup=None, features=FEATURES, candidates=CANDIDATES, budget=100):
    guided = None if warmup is None else WarmUp(*warmup[:2], Guide(warmup[2], SCORES))
    return Setting(candidates, seed, budget, guided, None, features)


def asked(algorithm, n, accuracy=quality):
    found = []
    while len(found) < n and (arch := algorithm.ask()) is not None:
        found.append(arch)
        algorithm.tell(arch, accuracy(arch))
    return found


def keys(archs):
    return [SPACE.key(arch) for arch in archs]


@dataclass
class Seer:
    """A predictor that knows the quality of what it sees, and notes what it was taught."""

    lessons: list
    sign: int = 1
    threads: set = field(default_factory=set)

    def fit(self, x, y, context, seed):
        self.lessons.append((x, y, context, seed))
        self.threads.add(torch.get_num_threads())
        return self

    def predict(self, x):
        self.threads.add(torch.get_num_threads())
        good = (x * np.arange(1, LAYERS + 1)).sum(axis=1)
        return Prediction(self.sign * good.astype(np.float64), np.full(len(x), np.nan))


@pytest.fixture
def seer(monkeypatch):
    seer = Seer([])
    monkeypatch.setattr(module.PredictorSearch, "learner", lambda self: seer)
    return seer


# -- rounds


def test_the_first_round_is_random(seer):
    begun = asked(method("predictor", {"round": 20}).start(setting()), 20)
    assert begun == asked(method("random").start(setting(features=None)), 20)
    assert not seer.lessons


def test_a_round_is_half_the_best_and_half_from_a_shrinking_top(seer):
    found = asked(method("predictor", {"round": 20}).start(setting()), 100)
    assert len(seer.lessons) == 4
    for fits in range(1, 5):
        before, of_round = found[: 20 * fits], found[20 * fits : 20 * fits + 20]
        left = sorted((quality(arch) for arch in MEMBERS if arch not in before), reverse=True)
        assert [quality(arch) for arch in of_round[:10]] == left[:10]
        lowest = left[(len(MEMBERS) >> fits) - 1]
        others = [quality(arch) for arch in of_round[10:]]
        assert min(others) >= lowest
        assert others != left[10:20]  # by chance, not the next best
    assert len(set(keys(found))) == 100


def test_the_top_never_becomes_smaller_than_a_round(seer):
    few = [*MEMBERS[:64]]
    candidates = TableCandidates(SPACE, macro_scores(few), "cifar10")
    made = method("predictor", {"round": 10}).start(setting(features=macro_features(few), candidates=candidates))
    assert sorted(map(str, asked(made, 100))) == sorted(map(str, few))  # all there are, then no more


def test_it_learns_from_all_that_is_trained_and_its_encoder_saw_no_label(seer):
    found = asked(method("predictor", {"round": 15}).start(setting()), 46)
    for number, (x, y, context, _) in enumerate(seer.lessons, start=1):
        assert np.array_equal(x, np.array([arch.operations for arch in found[: 15 * number]], np.float32))
        assert y.tolist() == [quality(arch) for arch in found[: 15 * number]]
        assert context.init is None
        assert np.array_equal(context.population, FEATURES.x)
    assert len({seed for *_, seed in seer.lessons}) == 3


@pytest.mark.parametrize(
    ("part", "seen"), [("statistics", range(LAYERS // 2)), ("proxies", range(LAYERS // 2, LAYERS))]
)
def test_it_may_see_a_part_of_the_features(part, seen):
    lessons = []

    class Noting(Seer):
        def predict(self, x):
            return Prediction(x[:, 0].astype(np.float64), np.full(len(x), np.nan))

    made = method("predictor", {"features": part, "predictor": "ridge"}).start(setting())
    made._learner = Noting(lessons)
    asked(made, 21)
    ((x, _, context, _),) = lessons
    assert context.coordinates == FEATURES.coordinates[seen.start : seen.stop]
    assert x.shape == (20, len(seen))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("boosted-trees", {"depths": [2], "trees": [20]}),
        ("extra-trees", {"trees": 10}),
        ("gaussian-process", {}),
        ("ridge", {}),
        ("mabn", {"dim": 8, "settings": {"epochs": 20, "members": 1}}),
        ("parzc", {"members": [["ridge", {}], ["extra-trees:proxies", {"trees": 5}]]}),
    ],
)
def test_any_predictor_learns_and_the_same_seed_asks_the_same(name, parameters):
    made = method("predictor", {"predictor": name, "parameters": parameters})
    found = [asked(made.start(setting(seed=seed)), 50) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]
    assert len(set(keys(found[0]))) == 50
    later, first = (np.mean([quality(arch) for arch in part]) for part in (found[0][20:], found[0][:20]))
    assert later > first


# -- warm-up


def test_a_warm_up_begins_the_first_round_and_chance_fills_it(seer):
    start = setting(warmup=(300, 12, "good"))
    found = asked(method("predictor", {"round": 20}).start(start), 21)
    assert found[:12] == start.warmup.best(start.warmup.draw(CANDIDATES, 0), CANDIDATES)
    assert len(seer.lessons[0][1]) == 20
    found = asked(method("predictor", {"round": 20}).start(setting(warmup=(300, 30, "good"))), 31)
    assert len(seer.lessons[1][1]) == 30  # a first round of all that it keeps


def test_networks_start_from_those_that_learnt_the_ranking_of_the_score(monkeypatch):
    made = method("predictor", {"predictor": "mabn", "pretrain": 50})
    seer = Seer([])
    monkeypatch.setattr(module.PredictorSearch, "learner", lambda self: seer)
    asked(made.start(setting(warmup=(60, 10, "cost"))), 60)
    (x, place, context, _), *rounds = seer.lessons
    drawn = list(CANDIDATES.draws(0))[:50]
    assert np.array_equal(x, np.array([arch.operations for arch in drawn], np.float32))
    order = np.array([quality(arch) for arch in drawn])  # a low cost is good
    assert all((order[i] > order[j]) == (place[i] > place[j]) for i in range(50) for j in range(50))
    assert context.init is None and len(rounds) == 2
    assert all(context.init is seer for *_, context, _ in rounds)


def test_pre_training_changes_what_is_asked():
    tiny = {"predictor": "mabn", "parameters": {"dim": 8, "settings": {"epochs": 3, "members": 1}}}
    runs = [
        asked(method("predictor", {**tiny, "pretrain": n}).start(setting(warmup=(60, 20, "good"))), 40) for n in (0, 60)
    ]
    assert runs[0][:20] == runs[1][:20] and runs[0] != runs[1]


# -- what cannot be learnt from


def test_failures_are_not_learnt_from(seer):
    found = asked(
        method("predictor", {"round": 12}).start(setting()),
        30,
        lambda arch: math.nan if "2" in str(arch) else quality(arch),
    )
    failed = sum("2" in str(arch) for arch in found[:24])
    assert failed
    learnt = {len(y) for _, y, *_ in seer.lessons}
    assert all(np.isfinite(y).all() and len(y) < 30 for _, y, *_ in seer.lessons) and learnt == learnt - {24}


def test_it_draws_at_random_until_there_is_enough_to_learn_from(seer):
    rounds = method("predictor", {"round": 4}).start(setting())
    asked(rounds, 12)
    assert not seer.lessons  # fewer than ten
    asked(rounds, 1)
    assert [len(y) for _, y, *_ in seer.lessons] == [12]
    asked(method("predictor").start(setting()), 60, lambda arch: 1.0)
    assert len(seer.lessons) == 1  # all the same: there is no order to learn


def test_what_has_no_features_is_never_asked_for(seer):
    known = MEMBERS[::3]
    found = asked(method("predictor").start(setting(features=macro_features(known), warmup=(300, 20, "bad"))), 100)
    assert len(found) == 100 and set(found) <= set(known)


def test_architectures_of_one_key_are_one_model(seer):
    shared = replace(SCORES, keys=[str(arch)[:-2] for arch in MEMBERS])
    candidates = TableCandidates(SPACE, shared, "cifar10")
    found = asked(method("predictor").start(setting(candidates=candidates)), len(MEMBERS))
    assert len(found) == candidates.models() == len({candidates.key(arch) for arch in found}) < len(MEMBERS)


# -- the whole


def test_it_finds_more_than_random_search():
    best = {
        name: search(SPACE, made, quality, 60, scores=SCORES, features=own, seeds=3).best_accuracy_mean
        for name, made, own in (
            ("random", "random", None),
            ("predictor", method("predictor", {"predictor": "ridge"}), FEATURES),
        )
    }
    assert best["predictor"] == max(map(quality, MEMBERS)) > best["random"]


def test_it_learns_with_one_thread_whatever_the_process_has(seer):
    """What several threads add up may end in other bits, and a process that goes on may have others."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        search("nasbenchmacro", "predictor", quality, 60, scores=SCORES, features=FEATURES)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seer.threads == {1}


def test_a_search_that_broke_off_goes_on_the_same(tmp_path):
    made = method("predictor", {"predictor": "extra-trees", "parameters": {"trees": 5}})
    options = {"scores": SCORES, "features": FEATURES, "guidance": Guidance(100, 10, "good")}
    whole = search(SPACE, made, Counting(), 70, out=tmp_path / "whole", **options)
    counting = Counting({whole.outcomes[0].trials[45].arch})
    with pytest.raises(TrainingError, match="out of luck"):
        search(SPACE, made, counting, 70, out=tmp_path / "again", **options)
    counting.failing.clear()
    search(SPACE, made, counting, 70, out=tmp_path / "again", **options)
    assert len(counting.trained) == 71
    for name in (CURVES, PICKS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_features_come_from_the_table_of_scores(searched, truth):
    made = method("predictor", {"predictor": "extra-trees", "parameters": {"trees": 5}, "round": 10})
    found = search("nasbench201", made, TruthAccuracy(truth, "val", "test"), 39, scores=open_table(searched))
    assert [len(outcome.trials) for outcome in found.outcomes] == [39]
    features = Features.of(open_table(searched), FeatureSpec(proxies=("params", "snip")))
    assert features.x.shape == (64, 2)
    assert features.identity() != Features.of(open_table(searched), FeatureSpec(proxies=("params",))).identity()


def test_a_table_without_statistics_has_features(searched, tmp_path):
    texts = open_table(searched).to_arrow(["arch"])["arch"].to_pylist()[:4]
    selection = Archs(texts=tuple(texts))
    spec = RunSpec(space="nasbench201", dataset="cifar10", proxies=("nwot",), selection=selection, batch_size=2)
    run(spec, tmp_path / "table")
    assert Features.of(open_table(tmp_path / "table")).spec.proxies == ("nwot", "params", "macs")


def test_the_command(zcpipe, searched, truth, tmp_path):
    given = f"--scores {searched} --truth {truth} --target val --budget 30 --warmup 40:10 --warmup-by synflow"
    own = ["--set", "predictor=extra-trees", "--set", 'parameters={"trees": 5}', "--set", "round=10"]
    code, said, _ = zcpipe(
        *f"search --space nasbench201 --algorithm predictor {given} --out {tmp_path}/out --json".split(), *own
    )
    assert code == 0
    found = json.loads(said)
    assert found["algorithm"] == "predictor" and found["picks"][0]["trained"] == 30


# -- what means nothing


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"predictor": "boosted"}, "unknown predictor 'boosted'; did you mean boosted-trees"),
        ({"predictor": "ridge", "parameters": {"trees": 3}}, "invalid parameter of ridge: unknown name 'trees'"),
        ({"round": 0}, "invalid parameter of predictor: round"),
        ({"features": "some"}, "invalid parameter of predictor: features"),
        ({"predictor": "ridge", "pretrain": 9}, "ridge learns in one go and cannot be pre-trained"),
        ({"predictor": "mabn", "pretrain": 9}, "a pretrain of 9 is too few to learn a ranking from; give at least 10"),
    ],
)
def test_parameters_that_mean_nothing(parameters, said):
    with pytest.raises(UsageError, match=said):
        method("predictor", parameters)


def test_a_setting_that_it_cannot_search_under():
    plain, networks = method("predictor"), method("predictor", {"predictor": "mabn", "pretrain": 30})
    with pytest.raises(UsageError, match="predictor learns from features of the candidates; name the table"):
        plain.start(setting(features=None))
    with pytest.raises(UsageError, match="the features are of nasbenchmacro, not of nasbench201"):
        plain.start(setting(candidates=SpaceCandidates(get_space("nasbench201"), "cifar10")))
    graph = replace(FEATURES, coordinates=(Coordinate("op0", "", ""),), x=FEATURES.x[:, :1])
    with pytest.raises(UsageError, match="the table has no statistics to learn from"):
        method("predictor", {"features": "statistics"}).start(setting(features=graph))
    with pytest.raises(UsageError, match="pre-trained on the score of a warm-up"):
        networks.start(setting())
    with pytest.raises(UsageError, match="pre-trained on 30 of those that the warm-up scores, which are only 20"):
        networks.start(setting(warmup=(20, 10, "good")))


@pytest.mark.parametrize(
    ("members", "pretrain", "said"),
    [
        (None, 30, "parzc has no network among its members that see the features, and cannot be pre-trained"),
        ([["mabn:statistics", {}], ["ridge", {}]], 30, "parzc has no network among its members that see the features"),
        ([["rigde", {}]], 0, "unknown predictor 'rigde'; did you mean ridge"),
    ],
)
def test_members_that_mean_nothing_are_refused_before_anything_is_trained(members, pretrain, said):
    parameters = {} if members is None else {"members": members}
    made = method("predictor", {"predictor": "parzc", "parameters": parameters, "pretrain": pretrain})
    at = np.flatnonzero([not coordinate.group for coordinate in FEATURES.coordinates])
    scalars = replace(FEATURES, coordinates=tuple(FEATURES.coordinates[i] for i in at), x=FEATURES.x[:, at])
    with pytest.raises(UsageError, match=said):
        made.start(setting(warmup=(60, 20, "good"), features=scalars))


def test_a_member_that_is_a_network_is_pre_trained():
    tiny = {"dim": 8, "settings": {"epochs": 3, "members": 1}}
    own = {"predictor": "parzc", "parameters": {"members": [["mabn", tiny], ["ridge", {}]]}}
    runs = [
        asked(method("predictor", {**own, "pretrain": n}).start(setting(warmup=(60, 20, "good"))), 40) for n in (0, 10)
    ]
    assert runs[0][:20] == runs[1][:20] and runs[0] != runs[1]


@pytest.mark.parametrize("known", [0, 5])
def test_too_few_with_features_to_pre_train_networks_are_refused_before_anything_is_trained(known):
    made = method("predictor", {"predictor": "mabn", "pretrain": 30})
    warmup = WarmUp(60, 20, Guide("good", SCORES))
    first = list(islice(warmup.draw(CANDIDATES, 0), 30))
    others = [arch for arch in MEMBERS if arch not in first]
    features = macro_features([*first[:known], *others])
    with pytest.raises(DataError, match=f"of the first 30 that the warm-up scores {known} have a score and features"):
        made.start(setting(warmup=(60, 20, "good"), features=features))


def test_a_search_without_features_or_with_idle_ones():
    with pytest.raises(UsageError, match="predictor learns from features of a table's architectures"):
        search(SPACE, "predictor", quality, 5)
    with pytest.raises(UsageError, match="random learns nothing from features of a table's architectures"):
        search(SPACE, "random", quality, 5, features=FEATURES)


def test_a_space_without_an_end_cannot_be_predicted():
    darts = get_space("nds/darts")
    endless = replace(FEATURES, space=darts.name, texts=[], x=FEATURES.x[:0])
    with pytest.raises(UsageError, match="predicts all candidates, which nds/darts has no end of"):
        method("predictor").start(setting(candidates=SpaceCandidates(darts, "cifar10"), features=endless))
