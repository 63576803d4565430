"""How far a search is, read from its directory."""

import json
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_problems import search_command

from zcpipe.errors import DataError
from zcpipe.search import TrainingError, TruthAccuracy, search, search_status
from zcpipe.search.journal import NAME, opened
from zcpipe.search.result import PICKS
from zcpipe.search.status import is_search
from zcpipe.spaces import get_space

SPACE = get_space("nasbenchmacro")
IDENTITY = {"kind": "search", "space": "s", "dataset": "d", "algorithm": "random"}


def params(arch):
    return float(SPACE.size(arch, "cifar10").params)


def failing_at(number):
    """Return a training whose call of this number fails."""
    seen = []

    def evaluate(arch):
        seen.append(arch)
        if len(seen) == number:
            raise RuntimeError("out of memory")
        return params(arch)

    return evaluate


def test_models_that_were_trained_and_the_picks(tmp_path, zcpipe):
    found = search(SPACE, "random", params, 4, seeds=2, seed=3, out=tmp_path / "out")
    status = search_status(tmp_path / "out")
    assert (status.algorithm, status.space, status.dataset) == ("random", "nasbenchmacro", "cifar10")
    assert (status.scored, status.trained) == (0, {3: 4, 4: 4})
    assert [pick["arch"] for pick in status.picks] == [pick.arch for pick in found.picks]
    code, said, err = zcpipe("status", tmp_path / "out")
    head, counts, when, *picks = said.splitlines()
    assert (code, err) == (0, "")
    assert head == f"{tmp_path / 'out'}: random searches nasbenchmacro on cifar10"
    assert (counts, when) == ("8 models trained", "the best when a call last came to its end:")
    assert [line.split(", ")[1] for line in picks] == [pick.arch for pick in found.picks]


def test_a_search_that_ended_in_the_middle(tmp_path):
    """What a killed process leaves at the end of its journal is passed over, and left there."""
    with pytest.raises(TrainingError, match="out of memory"):
        search(SPACE, "random", failing_at(3), 9, out=tmp_path)
    with (tmp_path / NAME).open("ab") as journal:
        journal.write(b"0badf00d {half")
    before = (tmp_path / NAME).read_bytes()
    status = search_status(tmp_path)
    assert (status.trained, status.failed, status.picks) == ({0: 2}, 1, [])
    assert (tmp_path / NAME).read_bytes() == before


def test_a_training_that_succeeds_the_second_time_did_not_fail(tmp_path):
    evaluate = failing_at(2)
    with pytest.raises(TrainingError, match="out of memory"):
        search(SPACE, "random", evaluate, 3, out=tmp_path)
    search(SPACE, "random", evaluate, 3, out=tmp_path)
    status = search_status(tmp_path)
    assert (status.trained, status.failed) == ({0: 3}, 0)


def test_it_may_be_read_while_another_process_holds_the_journal(tmp_path):
    with opened(tmp_path / "out", IDENTITY) as journal:
        journal.append({"kind": "scored", "archs": ["a", "b"], "scores": {}})
        journal.append({"kind": "scored", "archs": ["b", "c"], "scores": {}})
        status = search_status(tmp_path / "out")
    assert (status.scored, status.trained) == (3, {})


def test_candidates_of_aznas(tmp_path, zcpipe):
    options = {"algorithm": "aznas", "batch_size": 2, "resolution": 16, "proxies": "expressivity,params"}
    given = {"space": "nasbenchmacro", "scores": "live", "budget": 5, "out": tmp_path / "out", **options}
    code, *_ = zcpipe(*search_command(given))
    assert code == 0
    code, said, _ = zcpipe("status", tmp_path / "out", "--json")
    status = json.loads(said)
    assert (code, status["scored"], status["trained"]) == (0, 5, {})
    assert status["identity"]["kind"] == "aznas"
    (pick,) = status["picks"]
    assert pick["key"] == SPACE.key(SPACE.parse(pick["arch"]))
    assert zcpipe("status", tmp_path / "out")[1].splitlines()[1] == "5 architectures scored"


def test_accuracies_that_were_looked_up_are_counted_when_a_seed_is_done(tmp_path, zcpipe):
    truth = tmp_path / "truth.parquet"
    archs = [SPACE[i] for i in range(len(SPACE))]
    pq.write_table(pa.table({"arch": [str(arch) for arch in archs], "val": [params(arch) for arch in archs]}), truth)
    given = {"space": "nasbenchmacro", "algorithm": "random", "scores": "live", "budget": 3, "seeds": 2}
    code, *_ = zcpipe(*search_command({**given, "truth": truth, "target": "val", "out": tmp_path / "out"}))
    assert code == 0
    assert search_status(tmp_path / "out").trained == {0: 3, 1: 3}


def test_look_ups_that_failed_and_were_passed_over_are_not_trained(tmp_path):
    truth = tmp_path / "truth.parquet"
    values = [None if i % 3 == 0 else params(arch) for i, arch in enumerate(SPACE)]
    pq.write_table(pa.table({"arch": [str(arch) for arch in SPACE], "val": values}), truth)
    found = search(SPACE, "random", TruthAccuracy(truth, "val"), 9, pass_over=True, out=tmp_path / "out")
    failed = sum(bool(trial.failure) for trial in found.outcomes[0].trials)
    status = search_status(tmp_path / "out")
    assert 0 < failed < 9
    assert (status.trained, status.failed) == ({0: 9 - failed}, failed)


def test_scores_that_are_looked_up_are_not_recorded(tmp_path, zcpipe):
    table = tmp_path / "table"
    run = ("run", "--space", "nasbench201", "--sample", 12, "--batch-size", 2, "--proxies", "params", "--out", table)
    assert zcpipe(*run)[0] == 0
    given = {"space": "nasbench201", "algorithm": "aznas", "scores": table, "proxies": "params", "budget": 5}
    assert zcpipe(*search_command({**given, "proposals": "random", "out": tmp_path / "out"}))[0] == 0
    assert zcpipe("status", tmp_path / "out")[1].splitlines()[1] == "scores are looked up"


def test_a_table_is_one_whatever_lies_beside_it(tmp_path, zcpipe):
    run = ("run", "--space", "nasbench201", "--sample", 2, "--proxies", "params", "--out", tmp_path / "table")
    assert zcpipe(*run)[0] == 0
    (tmp_path / "table" / NAME).write_text("notes\n")
    assert "2 of 2 rows" in zcpipe("status", tmp_path / "table")[1]


@pytest.mark.parametrize(
    ("identity", "record"),
    [
        ({"space": "s"}, None),
        ({"kind": "search", "space": "s"}, None),
        ({"kind": "aznas", "seed": 0}, None),
        ({"kind": "aznas", "scores": "none"}, None),
        (IDENTITY, {"seed": 0}),
        (IDENTITY, {"kind": "of a later version", "what": 1}),
        (IDENTITY, {"kind": "trained", "seed": 0, "arch": "a"}),
        (IDENTITY, {"kind": "trained", "seed": [], "arch": "a", "failure": ""}),
    ],
)
def test_records_of_another_form_are_refused(tmp_path, zcpipe, identity, record):
    with opened(tmp_path / "out", identity) as journal:
        if record is not None:
            journal.append(record)
    code, out, err = zcpipe("status", tmp_path / "out")
    assert (code, out) == (4, "")
    assert err == (
        f"error: {tmp_path / 'out'} holds records that this zcpipe does not know; ask the one that made them\n"
    )


@pytest.mark.parametrize("text", [b"[1]", b"3", b"not JSON"])
def test_a_line_that_is_no_record_is_damage(tmp_path, zcpipe, text):
    (tmp_path / NAME).write_bytes(b"%08x %s\n%08x {}\n" % (zlib.crc32(text), text, zlib.crc32(b"{}")))
    code, _, err = zcpipe("status", tmp_path)
    assert (code, err.count("\n")) == (4, 1) and "is damaged in line 1" in err


def test_picks_of_another_form_are_refused(tmp_path, zcpipe):
    search(SPACE, "random", params, 2, out=tmp_path)
    some = {"seed": [0], "arch": ["a"]}
    others = [{"x": [1]}, some, *({**some, "accuracy": [bad]} for bad in (None, "best", b""))]
    for table in (*others, {**some, "accuracy": [1.0], "b": [b""]}):
        pq.write_table(pa.table(table), tmp_path / PICKS)
        code, out, err = zcpipe("status", tmp_path, "--json")
        assert (code, out, err.count("\n")) == (4, "", 1)


def test_an_identity_may_hold_what_json_does_not(tmp_path, zcpipe):
    with opened(tmp_path / "out", {**IDENTITY, "scores": {"limits": [float("nan"), float("inf")]}}) as journal:
        journal.append({"kind": "scored", "archs": ["a"], "scores": {}})
    code, said, _ = zcpipe("status", tmp_path / "out", "--json")
    assert code == 0 and json.loads(said)["identity"]["scores"] == {"limits": [None, "inf"]}


def test_what_is_no_search(tmp_path, zcpipe):
    assert not is_search(tmp_path) and not is_search("s3://bucket/table")
    with pytest.raises(DataError, match="no such file or directory; name the directory of a search"):
        search_status(tmp_path / "none")
    with pytest.raises(DataError, match="these are on local disks"):
        search_status("s3://bucket/search")
    (tmp_path / NAME).touch()
    with pytest.raises(DataError, match="holds no search that has begun"):
        search_status(tmp_path)
    assert zcpipe("status", tmp_path) == (4, "", f"error: {tmp_path} holds no search that has begun\n")


@pytest.mark.parametrize("name", [NAME, PICKS])
def test_damage_is_named(tmp_path, zcpipe, name):
    search(SPACE, "random", params, 2, out=tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(b"X" + content[1:-20] + b"Y" * 20)
    code, out, err = zcpipe("status", tmp_path)
    assert (code, out) == (4, "")
    assert err.startswith(f"error: {tmp_path / name} is") and err.count("\n") == 1
