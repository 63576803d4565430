"""How far a search is, read from its directory."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_problems import search_command

from zcpipe.errors import DataError
from zcpipe.search import search, search_status
from zcpipe.search.journal import NAME, opened
from zcpipe.search.result import PICKS
from zcpipe.search.status import is_search
from zcpipe.spaces import get_space

SPACE = get_space("nasbenchmacro")


def params(arch):
    return float(SPACE.size(arch, "cifar10").params)


def test_models_that_were_trained_and_the_picks(tmp_path, zcpipe):
    found = search(SPACE, "random", params, 4, seeds=2, seed=3, out=tmp_path / "out")
    status = search_status(tmp_path / "out")
    assert (status.algorithm, status.searched) == ("random", ("nasbenchmacro", "cifar10"))
    assert (status.scored, status.trained) == (0, {3: 4, 4: 4})
    assert [pick["arch"] for pick in status.picks] == [pick.arch for pick in found.picks]
    code, said, err = zcpipe("status", tmp_path / "out")
    head, counts, *picks = said.splitlines()
    assert (code, err) == (0, "")
    assert head == f"{tmp_path / 'out'}: random searches nasbenchmacro on cifar10"
    assert counts == "8 models trained"
    assert [line.split(", ")[1] for line in picks] == [pick.arch for pick in found.picks]


def test_a_search_that_ended_in_the_middle(tmp_path):
    """What a killed process leaves at the end of its journal is passed over, and left there."""

    def fails_at_third(arch):
        seen.append(arch)
        if len(seen) == 3:
            raise RuntimeError("no more")
        return params(arch)

    seen = []
    with pytest.raises(Exception, match="no more"):
        search(SPACE, "random", fails_at_third, 9, out=tmp_path)
    with (tmp_path / NAME).open("ab") as journal:
        journal.write(b"0badf00d {half")
    before = (tmp_path / NAME).read_bytes()
    status = search_status(tmp_path)
    assert (status.trained, status.failed, status.picks) == ({0: 2}, 1, [])
    assert (tmp_path / NAME).read_bytes() == before


def test_a_training_that_succeeds_the_second_time_did_not_fail(tmp_path):
    def fails_once(arch):
        seen.append(arch)
        if len(seen) == 2:
            raise RuntimeError("out of memory")
        return params(arch)

    seen = []
    with pytest.raises(Exception, match="out of memory"):
        search(SPACE, "random", fails_once, 3, out=tmp_path)
    search(SPACE, "random", fails_once, 3, out=tmp_path)
    status = search_status(tmp_path)
    assert (status.trained, status.failed) == ({0: 3}, 0)


def test_it_may_be_read_while_another_process_holds_the_journal(tmp_path):
    identity = {"kind": "search", "space": "s", "dataset": "d", "algorithm": "random"}
    with opened(tmp_path / "out", identity) as journal:
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


def test_what_is_no_search(tmp_path, zcpipe):
    assert not is_search(tmp_path) and not is_search("s3://bucket/table")
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
