"""`zcpipe.search.search`: with a function of the user's, with a table and a truth file, killed and gone on with."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_problems import SPACE, Counting, macro_scores, quality

from zcpipe import open_table
from zcpipe.errors import DataError, IdentityMismatch, UsageError
from zcpipe.parzc.parallel import Pool
from zcpipe.run.nodes.cluster import Cluster
from zcpipe.search import Budget, Guidance, Limits, Trained, TrainingError, TruthAccuracy, search
from zcpipe.search.algorithms import method
from zcpipe.search.costs import FRONT
from zcpipe.search.journal import NAME
from zcpipe.search.result import CURVES, PICKS

SCORES = macro_scores()


def files(out):
    return {name: (out / name).read_bytes() for name in (CURVES, PICKS, FRONT)}


def test_a_function_of_the_users_is_all_that_is_needed():
    found = search("nasbenchmacro", "evolution", quality, 100)
    (pick,) = found.picks
    assert pick.accuracy == max(trial.accuracy for trial in found.outcomes[0].trials) > 60
    assert pick.params == SPACE.size(SPACE.parse(pick.arch), "cifar10").params
    assert found.outcomes[0].trials[pick.found - 1].arch == pick.arch
    assert found.report is None
    assert found.best_accuracy_mean == pick.accuracy
    assert math.isnan(found.best_accuracy_se)


def test_scores_begin_a_search_well():
    cold = search("nasbenchmacro", "random", quality, 10, scores=SCORES, seeds=3)
    warm = search("nasbenchmacro", "random", quality, 10, scores=SCORES, seeds=3, guidance=Guidance(500, 10, "good"))
    assert warm.best("accuracy")[:, 0].min() > cold.best("accuracy")[:, -1].max()


def test_the_best_so_far_and_when_it_was_reached():
    found = search("nasbenchmacro", "random", Counting(), 30, seeds=2)
    for row, reported, outcome in zip(found.best("accuracy"), found.best("report"), found.outcomes, strict=True):
        assert row.tolist() == np.maximum.accumulate([trial.accuracy for trial in outcome.trials]).tolist()
        assert (reported == -row).all()  # of the best by the target, not the best reported
    assert found.report == "report"
    assert found.best_accuracy_mean == found.best("report")[:, -1].mean()
    assert found.best_accuracy_se == pytest.approx(found.best("report")[:, -1].std(ddof=1) / math.sqrt(2))
    value = float(found.best("accuracy")[0, 20])
    assert found.reached(value, "accuracy")[0] == 1 + np.argmax(found.best("accuracy")[0] >= value)
    assert np.isnan(found.reached(1000.0, "accuracy")).all()


def test_curves_and_picks_are_written(tmp_path):
    found = search("nasbenchmacro", "random", Counting(), 5, seeds=2, seed=7, out=tmp_path)
    curves, picks = (pq.read_table(tmp_path / name).to_pylist() for name in (CURVES, PICKS))
    assert [(row["seed"], row["trained"]) for row in curves] == [(s, t) for s in (7, 8) for t in range(1, 6)]
    assert [row["best_accuracy"] for row in curves] == found.best("accuracy").ravel().tolist()
    assert picks == [vars(pick) for pick in found.picks]


def test_within_limits():
    limits = Limits(max_params=1_500_000)
    found = search("nasbenchmacro", "evolution", quality, 80, limits=limits)
    sizes = [SPACE.size(SPACE.parse(trial.arch), "cifar10").params for trial in found.outcomes[0].trials]
    assert max(sizes) <= 1_500_000


def test_a_search_goes_on_and_grows(tmp_path):
    counting = Counting()
    search("nasbenchmacro", "evolution", counting, 70, out=tmp_path / "one")
    search("nasbenchmacro", "evolution", counting, 90, seeds=2, out=tmp_path / "one")
    assert len(counting.trained) == 90 + 90
    fresh = search("nasbenchmacro", "evolution", Counting(), 90, seeds=2, out=tmp_path / "other")
    assert files(tmp_path / "one") == files(tmp_path / "other")
    assert search("nasbenchmacro", "evolution", Counting(fresh.outcomes[0].trials), 90, out=tmp_path / "one").picks == (
        fresh.picks[0],
    )


def test_a_function_that_raises_is_asked_again(tmp_path):
    whole = search("nasbenchmacro", "evolution", Counting(), 70, out=tmp_path / "whole")
    failing = whole.outcomes[0].trials[66].arch
    counting = Counting({failing})
    with pytest.raises(TrainingError, match="out of luck"):
        search("nasbenchmacro", "evolution", counting, 70, out=tmp_path / "again")
    counting.failing.clear()
    search("nasbenchmacro", "evolution", counting, 70, out=tmp_path / "again")
    assert len(counting.trained) == 71
    assert files(tmp_path / "again") == files(tmp_path / "whole")


def test_a_search_that_was_refused_leaves_the_directory_to_another(tmp_path):
    for refused in ({"pool": 5}, {"pool": 8}):
        with pytest.raises(UsageError, match="a tournament of 10 needs as large a pool"):
            search("nasbenchmacro", method("evolution", refused), quality, 3, out=tmp_path)
    with pytest.raises(DataError, match="has at most 1 parameters"):
        search("nasbenchmacro", "random", quality, 3, limits=Limits(max_params=1), out=tmp_path)
    assert search("nasbenchmacro", method("evolution", {"pool": 10}), quality, 3, out=tmp_path).picks


def test_another_search_is_not_mixed_in(tmp_path):
    search("nasbenchmacro", "random", quality, 3, out=tmp_path)
    with pytest.raises(IdentityMismatch, match="algorithm is 'random' there and 'evolution' here"):
        search("nasbenchmacro", "evolution", quality, 3, out=tmp_path)


PROGRAM = """
import json, sys
from pathlib import Path
from search_problems import SPACE, macro_features, macro_scores, quality
from zcpipe.search import Guidance, Trained, search
from zcpipe.search.algorithms import method

MEMBERS = list(SPACE)[:: int(sys.argv[5])]

def evaluate(arch):
    with Path(sys.argv[2]).open("a") as file:
        file.write(f"{arch}\\n")
    return Trained(quality(arch), seconds=1.0)

chosen = method(sys.argv[3], json.loads(sys.argv[4]))
search("nasbenchmacro", chosen, evaluate, 80, out=sys.argv[1], seeds=2, scores=macro_scores(MEMBERS),
       guidance=Guidance(100, 10, "good", "good" if "moves" in chosen.takes else None),
       features=macro_features(MEMBERS) if "features" in chosen.takes else None)
"""
TREES = {"predictor": "boosted-trees", "parameters": {"trees": [10], "depths": [2]}, "round": 20}
SMALL = {"dim": 4, "depth": 1, "settings": {"epochs": 3, "members": 1, "mc_samples": 2}}
NETWORKS = {"predictor": "mabn", "parameters": SMALL, "pretrain": 50, "round": 20}


def run_until(command, journal, records, seconds=0.02):
    """Run a process and kill it within some time after its journal has so many records; return whether it died."""
    process = subprocess.Popen(command, cwd=Path(__file__).parent, env=environment())
    while process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > records:
            time.sleep(random.random() * seconds)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    assert process.wait() in (0, -signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def environment():
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("algorithm", "parameters", "every", "seconds"),
    [
        ("evolution", {}, 1, 0.02),
        ("reinforce", {}, 1, 0.02),
        ("predictor", TREES, 20, 0.2),
        ("predictor", NETWORKS, 20, 0.2),
    ],
)
def test_killed_anywhere_a_search_is_the_same_to_the_bit(tmp_path, algorithm, parameters, every, seconds):
    """Predictor search spends its time between trainings: it is killed while it fits, too."""

    def command(name):
        paths = str(tmp_path / name), str(tmp_path / f"{name}.log")
        return [sys.executable, "-c", PROGRAM, *paths, algorithm, json.dumps(parameters), str(every)]

    assert not run_until(command("whole"), tmp_path / "whole" / NAME, 9999)
    moments = (random.randint(1, 70), 120, 9999)
    deaths = sum(run_until(command("killed"), tmp_path / "killed" / NAME, k, seconds) for k in moments)
    assert deaths == 2
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    trained = [(tmp_path / f"{name}.log").read_text().split() for name in ("whole", "killed")]
    assert len(trained[1]) <= len(trained[0]) + deaths  # at most what was under way is trained again


# -- tables and truth files


def simulated(searched, truth, algorithm="evolution", target="val", out=None, **options):
    accuracy = TruthAccuracy(truth, target, "test" if target != "err" else None)
    return search("nasbench201", algorithm, accuracy, 20, scores=open_table(searched), out=out, **options)


def test_accuracies_are_those_of_the_truth_file(searched, truth):
    rows = {row["arch"]: row for row in pq.read_table(truth).to_pylist()}
    found = simulated(searched, truth, seeds=2, guidance=Guidance(40, 8, "aznas", "synflow"))
    for outcome in found.outcomes:
        for trial in outcome.trials:
            assert (trial.accuracy, trial.report) == (rows[trial.arch]["val"], rows[trial.arch]["test"])
    best = max(found.outcomes[0].trials, key=lambda trial: trial.accuracy)
    assert (found.picks[0].arch, found.picks[0].report) == (best.arch, best.report)


def test_a_target_that_is_better_lower(searched, truth):
    up, down = (simulated(searched, truth, target=target, seeds=3) for target in ("val", "err"))
    assert [pick.arch for pick in up.picks] == [pick.arch for pick in down.picks]
    assert down.direction == "lower"
    assert (np.diff(down.best()) <= 0).all()


def test_the_same_whatever_the_workers(searched, truth, tmp_path):
    options = {"seeds": 3, "guidance": Guidance(30, 5, "snip")}
    simulated(searched, truth, "reinforce", out=tmp_path / "one", **options)
    simulated(searched, truth, "reinforce", out=tmp_path / "two", pool=Pool(2), **options)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_finished_seeds_are_not_searched_again(searched, truth, tmp_path, monkeypatch):
    first = simulated(searched, truth, seeds=2, out=tmp_path)
    started = []
    monkeypatch.setattr("zcpipe.search.simulate.run", lambda *a, **k: started.append(a) or first.outcomes[0])
    assert simulated(searched, truth, seeds=2, out=tmp_path) == first
    assert started == []
    simulated(searched, truth, seeds=3, out=tmp_path)
    assert len(started) == 1


def test_seconds_of_a_truth_file(searched, truth):
    accuracy = TruthAccuracy(truth, "val", seconds="hours")
    found = search("nasbench201", "random", accuracy, Budget(20, 4 * 3600), scores=open_table(searched))
    assert (len(found.outcomes[0].trials), found.outcomes[0].ended) == (4, "seconds")
    with pytest.raises(UsageError, match="nobody knows how many seconds a training takes"):
        simulated_budget = Budget(20, 1.0)
        search("nasbench201", "random", TruthAccuracy(truth, "val"), simulated_budget, scores=open_table(searched))


def test_candidates_without_truth_are_refused_or_left_out(searched, truth, tmp_path):
    first = pq.read_table(truth)["arch"][0].as_py()
    with pytest.raises(DataError) as error:
        simulated(searched, truth, target="hole", out=tmp_path / "out")
    assert str(error.value) == (
        f"1 of 64 candidates have no value of 'hole' in the truth file, the first is {first}; leave them out with "
        "--known-only, or give a truth file that has all"
    )
    assert not (tmp_path / "out").exists()
    found = search(
        "nasbench201", "random", TruthAccuracy(truth, "hole"), 39, scores=open_table(searched), known_only=True
    )
    assert first not in {trial.arch for trial in found.outcomes[0].trials}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"guidance": Guidance(10, 5, "zen")},
            "there are no scores of zen; `zcpipe run ... --proxies zen ",
        ),
        (
            {"guidance": Guidance(moves="vote")},
            "vote is made of synflow, jacob_cov, snip, but there are no scores of jacob_cov",
        ),
        ({"algorithm": "random", "guidance": Guidance(moves="snip")}, "random has no moves; leave --moves out"),
        ({"guidance": Guidance(100, 5, "snip")}, "100 random architectures were asked for, but there are only 64"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
    ],
)
def test_what_means_nothing(searched, truth, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        simulated(searched, truth, **options)


def test_a_budget_beyond_the_space(searched, truth):
    with pytest.raises(
        UsageError, match=r"a budget of 1000 trained models is beyond the candidates, which are .* diff"
    ):
        search("nasbench201", "random", TruthAccuracy(truth, "val"), 1000, scores=open_table(searched))
    with pytest.raises(UsageError, match="a budget of 9999 trained models is beyond the candidates, which are 6561"):
        search("nasbenchmacro", "random", quality, 9999)


def test_scores_of_another_space(searched, truth):
    with pytest.raises(UsageError, match="the table of scores is of nasbench201, not of nasbenchmacro"):
        search("nasbenchmacro", "random", quality, 5, scores=open_table(searched))


def test_guidance_needs_scores():
    with pytest.raises(UsageError, match="a warm-up and moves need scores; name a table of them"):
        search("nasbenchmacro", "random", quality, 5, guidance=Guidance(10, 5, "snip"))
    with pytest.raises(UsageError, match="a warm-up needs how many to score and keep, and by what"):
        Guidance(10, 5)


def test_a_budget_of_seconds_may_have_any_number_of_models():
    found = search("nasbench301", "random", lambda arch: Trained(1.0, 2.0, seconds=10.0), Budget(10**15, seconds=25.0))
    assert (len(found.outcomes[0].trials), found.best_accuracy_mean) == (3, 2.0)


def test_seeds_are_those_that_files_can_hold(tmp_path):
    with pytest.raises(UsageError, match=r"seeds must be less than 2\*\*63, got 2 from 9223372036854775807 on"):
        search("nasbenchmacro", "random", quality, 3, seeds=2, seed=2**63 - 1, out=tmp_path)
    found = search("nasbenchmacro", "random", quality, 3, seed=2**63 - 1, out=tmp_path)
    assert pq.read_table(tmp_path / PICKS)["seed"].to_pylist() == [found.picks[0].seed] == [2**63 - 1]


def test_nothing_is_known_of_what_is_measured():
    with pytest.raises(UsageError, match="known_only is for accuracies of a truth file"):
        search("nasbenchmacro", "random", quality, 3, scores=SCORES, known_only=True)


@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_an_infinite_accuracy_is_none(tmp_path, infinity):
    texts = [str(arch) for arch in SPACE]
    values = np.array([quality(arch) for arch in SPACE])
    values[7] = infinity
    path = tmp_path / "truth.parquet"
    pq.write_table(pa.table({"arch": texts, "val": values}), path)
    with pytest.raises(DataError, match=f"1 of 6561 candidates have no value of 'val' .*, the first is {texts[7]}"):
        search("nasbenchmacro", "random", TruthAccuracy(path, "val"), 3, scores=SCORES)


@pytest.mark.parametrize("pool", [Pool(2), Pool(cluster=Cluster(2))])
def test_what_is_measured_is_measured_here(pool):
    with pytest.raises(UsageError, match="what is measured is measured in this process"):
        search("nasbenchmacro", "random", quality, 5, pool=pool)


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_function_does_not_say_it_took_is_measured_and_spent(fails):
    def evaluate(arch):
        time.sleep(0.05)
        if fails:
            raise RuntimeError("no memory")
        return Trained(quality(arch), report=1.0)

    found = search("nasbenchmacro", "random", evaluate, Budget(1000, seconds=0.5), pass_over=True)
    (outcome,) = found.outcomes
    assert outcome.ended == "seconds" and 1 <= len(outcome.trials) <= 10
    assert all(trial.seconds >= 0.05 for trial in outcome.trials)


def test_what_to_report_comes_with_the_accuracy():
    found = search("nasbenchmacro", "random", lambda arch: Trained(quality(arch), report=1.0), 5)
    assert (found.report, found.best_accuracy_mean) == ("report", 1.0)
