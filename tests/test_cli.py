"""The command line as scripts use it: output, JSON shapes, exit codes, one clear line for whatever goes wrong."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe import get_space
from zcpipe.cli import main
from zcpipe.registry import discover

SPACE = get_space("nasbench201")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A small real table: 12 cells, AZ-NAS at batch 2."""
    directory = tmp_path_factory.mktemp("cli") / "table"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["zcpipe", "run", *RUN, "--out", str(directory), "-q"])
        main_quietly()
    return directory


RUN = ("--space", "nasbench201", "--sample", "12", "--batch-size", "2")


def main_quietly():
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


@pytest.fixture
def truth(tmp_path):
    """A truth file in which accuracy grows with the cell's size."""
    cells = [SPACE.sample(0, i) for i in range(12)]
    accuracy = [50 + SPACE.size(cell, "cifar10").macs / 1e7 for cell in cells]
    path = tmp_path / "truth.parquet"
    pq.write_table(pa.table({"arch": [str(cell) for cell in cells], "acc": accuracy, "same": [1.0] * 12}), path)
    return path


def test_run_reports_resumes_and_grows(zcpipe, tmp_path):
    out = tmp_path / "t"
    cheap = ("run", "--space", "nasbench201", "--proxies", "params", "--out", out, "--json", "-q")
    code, text, _ = zcpipe(*cheap, "--sample", 5)
    assert code == 0
    first = json.loads(text)
    assert (first["planned"], first["present"], first["new"], first["by_status"]) == (5, 0, 5, {"ok": 5})
    assert json.loads(zcpipe(*cheap, "--sample", 5)[1])["new"] == 0
    assert json.loads(zcpipe(*cheap, "--sample", 8)[1])["new"] == 3
    assert json.loads(zcpipe(*cheap, "--range", "0:4")[1])["planned"] == 4
    code, text, _ = zcpipe("status", out, "--json")
    assert code == 0
    assert json.loads(text)["complete"] is True


def test_dry_run_passes_retry_errors_on(zcpipe, monkeypatch):
    """What the plan says then is tested with the runs."""
    seen = []
    monkeypatch.setattr("zcpipe.run.describe", lambda *given, **named: seen.append(named["retry_errors"]) or {})
    for more in ((), ("--retry-errors",)):
        assert zcpipe("run", *RUN, "--dry-run", "--json", *more)[0] == 0
    assert seen == [False, True]


def test_further_proxies_join_a_table(zcpipe, tmp_path):
    out = tmp_path / "t"
    grow = ("run", *RUN[:2], "--batch-size", "2", "--range", "0:4", "--out", out, "--proxies")
    assert zcpipe(*grow, "complexity", "-q")[0] == 0
    code, text, _ = zcpipe(*grow, "complexity,expressivity", "--dry-run")
    assert code == 0
    assert "0 rows for complexity\n" in text and "4 new columns: expressivity\n" in text
    code, text, _ = zcpipe(*grow, "complexity,expressivity", "-q")
    assert code == 0 and "4 architectures (4 ok), 4 new" in text
    text = zcpipe("status", out)[1]
    assert "4 of 4 rows in 2 shards: complete" in text
    assert f"4 of 4 in {out}.columns/0001: expressivity, params, macs" in text
    assert json.loads(zcpipe("status", out, "--json")[1])["groups"][1]["rows"] == 4
    assert zcpipe("rank", out, "--proxies", "expressivity,complexity")[0] == 0


def test_run_scores_listed_architectures(zcpipe, tmp_path):
    listed = tmp_path / "archs.txt"
    listed.write_text(f"{SPACE[7]}\n\n{SPACE[9]}\n")
    cheap = ("run", "--space", "nasbench201", "--proxies", "params", "--out", tmp_path / "t", "--json")
    assert json.loads(zcpipe(*cheap, "--archs", listed)[1])["planned"] == 2
    listed.write_text(f"{SPACE[7]}\n|conv~0|\n")
    code, _, err = zcpipe(*cheap, "--archs", listed)
    assert code == 2
    assert "line 2" in err
    assert "malformed cell" in err


def test_dry_run_touches_nothing(zcpipe, tmp_path):
    out = tmp_path / "t"
    code, text, _ = zcpipe("run", "--space", "nasbench201", "--dry-run", "--json", "--out", out)
    plan = json.loads(text)
    assert code == 0
    assert (plan["architectures"], plan["classes"], plan["done"]) == (15625, 5260, 0)
    assert not out.exists()
    assert "5260 classes" in zcpipe("run", "--space", "nasbench201", "--dry-run", "--out", out)[1]


def test_real_images_are_named_by_their_content(zcpipe, tmp_path):
    numpy.savez(tmp_path / "a.npz", images=numpy.zeros((3, 32, 32, 3), numpy.uint8), labels=numpy.arange(3))
    real = ("run", *RUN, "--proxies", "params", "--inputs", f"npz:{tmp_path / 'a.npz'}", "--out", tmp_path / "t")
    code, text, _ = zcpipe(*real, "--dry-run")
    assert code == 0
    assert f"2 x npz:{tmp_path / 'a.npz'}, 1 repeat(s)\ncontent          npz:" in text
    assert zcpipe(*real, "-q")[0] == 0
    code, _, err = zcpipe("run", *RUN, "--proxies", "params", "--out", tmp_path / "t")
    assert code == 4 and "recipe.inputs" in err
    code, _, err = zcpipe(*real, "--batch-size", "4")
    assert code == 4 and "holds 3 images for a batch of 4" in err


def test_a_run_in_which_no_proxy_reads_the_images_says_so(zcpipe, tmp_path):
    numpy.savez(tmp_path / "a.npz", images=numpy.zeros((2, 32, 32, 3), numpy.uint8), labels=numpy.arange(2))
    real = ("run", *RUN, "--inputs", f"npz:{tmp_path / 'a.npz'}", "--out", tmp_path / "t")
    code, text, err = zcpipe(*real, "--dry-run", "--json")
    assert code == 0 and json.loads(text)["spec"]["inputs"].startswith("npz:")
    assert len(err.splitlines()) == 1
    assert "none of expressivity, progressivity, trainability, complexity reads --inputs" in err
    for reading in (("--proxies", "aznas,snip"), ("--protocol", "fused")):
        assert zcpipe(*real, *reading, "--dry-run")[2] == ""
    assert zcpipe("run", *RUN, "--dry-run")[2] == ""
    assert "none of params reads --inputs" in zcpipe(*real, "--proxies", "params", "-q")[2]


def test_rank_prints_the_best_first(zcpipe, table):
    code, text, err = zcpipe("rank", table, "--top", 3, "--json")
    ranking = json.loads(text)
    assert code == 0
    assert err == ""
    assert (ranking["method"], ranking["population"], len(ranking["rows"])) == ("logrank", 12, 3)
    scores = [row["score"] for row in ranking["rows"]]
    assert scores == sorted(scores, reverse=True)
    assert set(ranking["rows"][0]["proxies"]) == {"expressivity", "progressivity", "trainability", "complexity"}
    linear = json.loads(zcpipe("rank", table, "--method", "linear", "--proxies", "macs", "--json")[1])
    sizes = [SPACE.size(SPACE.sample(0, i), "cifar10").macs for i in range(12)]
    assert linear["rows"][0]["proxies"]["macs"] == max(sizes)
    assert zcpipe("rank", table, "--top", 3)[1].splitlines()[0].startswith("rank\tindex\tarch\tlogrank\texpressivity")
    named = json.loads(zcpipe("rank", table, "--top", 3, "--method", "aznas", "--json")[1])
    assert (named["method"], named["rows"]) == ("aznas", ranking["rows"])
    votes = json.loads(zcpipe("rank", table, "--method", "vote", "--proxies", "macs,expressivity,params", "--json")[1])
    assert set(votes["rows"][0]["proxies"]) == {"macs", "expressivity", "params"}
    assert 0 <= votes["rows"][0]["score"] <= 11


def test_correlate_lists_baselines_first_and_aggregates_last(zcpipe, table, truth):
    code, text, _ = zcpipe(
        "correlate", table, "--truth", truth, "--target", "acc", "--aggregate", "two=expressivity,macs", "--json"
    )
    result = json.loads(text)
    assert code == 0
    assert result["target"] == "acc"
    names = [row["name"] for row in result["rows"]]
    four = ["expressivity", "progressivity", "trainability", "complexity"]
    assert names == ["params", "macs", *four, "aznas", "aznas_linear", "two"]
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["macs"]["kendall"] == pytest.approx(1)
    assert rows["macs"]["spearman"] == pytest.approx(1)
    assert rows["macs"]["pair_accuracy"] == 1
    assert (rows["macs"]["n"], rows["macs"]["failed"]) == (12, 0)
    assert "aznas_linear" in zcpipe("correlate", table, "--truth", truth, "--target", "acc")[1]


def test_sigterm_interrupts_like_ctrl_c(tmp_path):
    """What batch systems send: what is finished is committed, and nobody sees a traceback."""
    command = ("run", "--space", "nasbench201", "--proxies", "aznas", "--workers", "1", "--out", tmp_path / "t")
    told = tmp_path / "events.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "zcpipe", *map(str, command), "--batch-size", "2", "--events", str(told), "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (told.exists() and '"scored"' in told.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted: finished shards are committed; the same command goes on\n"


def test_an_interruption_that_a_command_does_not_tell_of_is_told(zcpipe, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("zcpipe.doctor.examine", interrupted)
    assert zcpipe("doctor") == (130, "", "interrupted\n")


@pytest.mark.parametrize("option", [("--timeout", "5"), ("--memory", "4GiB")])
def test_limits_of_worker_processes_need_some(zcpipe, tmp_path, option):
    code, _, err = zcpipe("run", *RUN, "--out", tmp_path / "t", *option)
    assert code == 2 and f"{option[0]} is for worker processes" in err
    assert not (tmp_path / "t").exists()


def test_correlate_gives_intervals_on_request(zcpipe, table, truth):
    correlate = ("correlate", table, "--truth", truth, "--target", "acc")
    code, text, _ = zcpipe(*correlate, "--bootstrap", "200", "--json")
    rows = {row["name"]: row for row in json.loads(text)["rows"]}
    assert code == 0
    assert all(row["kendall_low"] <= row["kendall"] <= row["kendall_high"] for row in rows.values())
    assert rows["macs"]["spearman_low"] == pytest.approx(1), "what agrees in all pairs does so however they are drawn"
    assert zcpipe(*correlate, "--bootstrap", "200")[1].splitlines()[0].endswith("kendall 95 %\tspearman 95 %")
    assert json.loads(zcpipe(*correlate, "--json")[1])["rows"][0]["kendall_low"] is None
    assert zcpipe(*correlate, "--bootstrap", "1")[0] == 2


def test_correlate_tells_rows_that_were_not_scored_from_failed_ones(zcpipe, tmp_path):
    """jacob_cov is no number for cells without a path, and the column's group lacks 4 of 12 rows."""
    out, truth, cells = tmp_path / "t", tmp_path / "truth.parquet", [SPACE[i] for i in range(12)]
    pq.write_table(pa.table({"arch": [str(cell) for cell in cells], "acc": [float(i) for i in range(12)]}), truth)
    failed = sum(SPACE.key(cell) == "0" for cell in cells[4:])
    grow = ("run", *RUN[:2], "--batch-size", "2", "--out", out, "-q")
    assert zcpipe(*grow, "--range", "0:12", "--proxies", "complexity")[0] == 0
    assert zcpipe(*grow, "--range", "4:12", "--proxies", "jacob_cov")[0] == 3
    correlate = ("correlate", out, "--truth", truth, "--target", "acc", "--aggregate", "two=jacob_cov,complexity")
    rows = json.loads(zcpipe(*correlate, "--json")[1])["rows"]
    found = {row["name"]: (row["n"], row["failed"], row["missing"]) for row in rows}
    assert failed > 0
    assert found["complexity"] == (12, 0, 0)
    assert found["jacob_cov"] == found["two"] == (8 - failed, failed, 4)
    assert zcpipe(*correlate)[1].splitlines()[0].split("\t")[-3:] == ["n", "failed", "missing"]


def test_lists_fit_a_terminal_and_stay_whole_in_a_pipe(zcpipe, monkeypatch):
    piped = zcpipe("proxies")[1].splitlines()
    assert {len(line.split("\t")) for line in piped} == {10}
    assert len(zcpipe("aggregates")[1].splitlines()[0].split("\t")) == 4
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    monkeypatch.setenv("TERM", "dumb")  # no colours
    monkeypatch.setenv("COLUMNS", "80")
    code, listed, err = zcpipe("proxies")
    assert code == 0 and "--json" in err
    lines = listed.splitlines()
    assert lines[0].split() == ["name", "direction", "cost", "needs", "formula"]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("stage_expressivity  higher") for line in lines)
    assert "CVPR" not in listed
    one = zcpipe("proxies", "vkdnw")[1]
    assert "second-order" not in one and "CVPR 2025" in one and max(map(len, one.splitlines())) <= 80
    assert zcpipe("aggregates")[1].splitlines()[0].split() == ["name", "method", "proxies"]
    assert "ICLR 2021" in zcpipe("aggregates", "vote")[1]


def test_lists(zcpipe):
    listed = {space["name"]: space for space in json.loads(zcpipe("spaces", "--json")[1])}  # others may be installed
    assert listed["nasbench201"]["architectures"] == 15625
    assert {p["name"] for p in json.loads(zcpipe("proxies", "*gressivity", "--json")[1])} == {"progressivity"}
    four = ["expressivity", "progressivity", "trainability", "complexity"]
    assert [p["name"] for p in json.loads(zcpipe("proxies", "aznas", "--json")[1])] == four
    passes = json.loads(zcpipe("proxies", "--plan", "aznas,grad_norm,jacob_cov", "--json")[1])
    assert {one["pass"]: one["proxies"] for one in passes} == {
        "sweeps": ["grad_norm", "jacob_cov"],
        "blocks": ["expressivity", "progressivity", "trainability"],
        "counts": ["complexity"],
    }
    listed = {entry["name"]: entry for entry in json.loads(zcpipe("aggregates", "--json")[1])}
    assert (listed["vote"]["method"], listed["vote"]["proxies"]) == ("vote", ["synflow", "jacob_cov", "snip"])
    assert "swap_regularised" in zcpipe("aggregates")[1]
    assert json.loads(zcpipe("doctor", "--json")[1])["torch"]
    assert "nasbench201" in zcpipe("spaces")[1]
    assert "trainability" in zcpipe("proxies")[1]
    assert "torch" in zcpipe("doctor")[1]
    assert zcpipe("--version")[1].startswith("zcpipe ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "--space", "nasbench202"), 2, "did you mean nasbench201"),
        (("run", *RUN[:2], "--proxies", "expresivity"), 2, "did you mean expressivity"),
        (("run", *RUN[:2], "--dataset", "cifar11"), 2, "cifar10"),
        (("run", *RUN[:2], "--sample", "20000"), 2, "15625"),
        (("run", *RUN[:2], "--range", "5"), 2, "A:B"),
        (("run", *RUN[:2], "--range", "5:99999"), 2, "15625"),
        (("run", *RUN[:2], "--range", "5:9", "--sample", "3"), 2, "exclude each other"),
        (("run", *RUN[:2], "--archs", "/nowhere/archs.txt"), 4, "/nowhere/archs.txt"),
        (("run", *RUN[:2], "--batch-size", "0"), 2, "--batch-size"),
        (("run", *RUN[:2], "--protocol", "papr"), 2, "protocol"),
        (("run", *RUN[:2], "--inputs", "cifr10:x"), 2, "did you mean cifar10"),
        (("run", *RUN[:2], "--inputs", "npz:/nowhere/a.npz"), 4, "/nowhere/a.npz: no such file"),
        (("run", *RUN[:2], "--inputs", "cifar10:/nowhere", "--dry-run"), 4, "/nowhere"),
        (("run", *RUN[:2], "--device", "gpu"), 2, "unknown device"),
        (("run", *RUN[:2], "--device", "cuda:9"), 5, "cuda:9"),
        (("run", *RUN[:2], "--workers", "0", "--sample", "1", "--out", "/tmp/zcpipe-none"), 2, "workers"),
        (("run", *RUN[:2], "--sample", "1", "--proxies", "params", "--out", "/proc/zcpipe"), 4, "/proc/zcpipe"),
        (("run", *RUN[:2], "--workers", "-3", "--dry-run"), 2, "workers"),
        (("status", "/nowhere"), 4, "no zcpipe table"),
        (("rank", "/nowhere"), 4, "no zcpipe table"),
        (("run",), 2, "error: missing option '--space'; see zcpipe run -h\n"),
        (("run", "--spce", "nds"), 2, "error: no such option: --spce"),
        (("run", *RUN[:2], "--batch-size", "many"), 2, "error: invalid value for '--batch-size'"),
        (("run", "--space"), 2, "error: option '--space' requires an argument\n"),
        (("status",), 2, "error: missing argument 'DIR'; see zcpipe status -h\n"),
        (("rank", "a", "b"), 2, "unexpected extra argument(s) (b); see zcpipe rank -h\n"),
        (("parzc", "trian"), 2, "error: no such command 'trian'. Did you mean 'train'?; see zcpipe parzc -h\n"),
        (("--vers",), 2, "error: no such option: --vers"),
        (("proxies", "nope*"), 2, "no proxy matches 'nope*'"),
        (("aggregates", "vot"), 2, "did you mean vote"),
        (("proxies", "snipp", "--json"), 2, "did you mean snip"),
        (("no-such-command",), 2, "no-such-command"),
    ],
)
def test_bad_usage_is_one_clear_line_and_its_exit_code(zcpipe, arguments, code, says):
    found, out, err = zcpipe(*arguments)
    assert (found, out) == (code, "")
    assert says in err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--method", "logrnk"), 2, "logrank"),
        (("--method", "vote"), 2, "`zcpipe run ... --proxies synflow,jacob_cov,snip --out DIR` adds them"),
        (("--method", "linear", "--proxies", "macs,gradsign"), 2, "error: the table lacks gradsign; `zcpipe run"),
        (("--method", "voet"), 2, "did you mean vote?"),
        (("--method", "linear", "--proxies", "gradsing"), 2, "unknown proxy 'gradsing'; did you mean gradsign"),
        (("--method", "aznas", "--proxies", "macs"), 2, "--method logrank"),
        (("--proxies", "nothing"), 2, "unknown proxy"),
        (("--top", "0"), 2, "--top"),
    ],
)
def test_bad_rank_options(zcpipe, table, options, code, says):
    found, _, err = zcpipe("rank", table, *options)
    assert found == code
    assert says in err


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--target", "ac"), 2, "did you mean acc"),
        (("--target", "same"), 4, "constant"),
        (("--target", "acc", "--aggregate", "x"), 2, "NAME=PROXY"),
        (("--target", "acc", "--aggregate", "macs=params"), 2, "hide"),
        (("--target", "acc", "--aggregate", "aznas=params"), 2, "hide"),
    ],
)
def test_bad_correlate_options(zcpipe, table, truth, options, code, says):
    found, _, err = zcpipe("correlate", table, "--truth", truth, *options)
    assert found == code
    assert says in err


def test_truth_of_another_space_is_named(zcpipe, table, tmp_path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"arch": ["a", "b"], "acc": [1.0, 2.0]}), path)
    code, _, err = zcpipe("correlate", table, "--truth", path, "--target", "acc")
    assert code == 4
    assert "none of the table's architectures" in err


def test_existing_table_of_another_identity_is_refused_with_the_difference(zcpipe, table):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in table.iterdir())
    code, _, err = zcpipe("run", *RUN, "--seed", "1", "--out", table)
    assert code == 4
    assert "seed" in err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in table.iterdir()) == before


def test_truth_import_reads_official_files(zcpipe, data, tmp_path):
    source, out = data("nats/NATS-tss-v1_0-3ffb9-simple"), tmp_path / "truth.parquet"
    code, text, _ = zcpipe("truth", "import", "nats", source, "--out", out, "--json")
    assert code == 0
    assert json.loads(text)["architectures"] == 2
    code, _, err = zcpipe("truth", "import", "nats", source, "--out", out)
    assert code == 4
    assert "exists" in err
    code, _, err = zcpipe("truth", "import", "nats", tmp_path / "absent", "--out", tmp_path / "x.parquet")
    assert code == 4
    assert "absent" in err


def test_a_partial_truth_is_said(zcpipe, table, truth, tmp_path):
    half = tmp_path / "half.parquet"
    pq.write_table(pq.read_table(truth).slice(0, 7), half)
    code, out, err = zcpipe("correlate", table, "--truth", half, "--target", "acc")
    assert code == 0 and "aznas" in out
    assert "5 of 12 architectures have no truth" in err


def test_ranking_by_what_the_table_lacks_names_what_it_holds(zcpipe, tmp_path):
    directory = tmp_path / "sizes"
    assert zcpipe("run", *RUN, "--proxies", "complexity", "--out", directory, "-q")[0] == 0
    code, _, err = zcpipe("rank", directory)
    assert code == 2
    lacking = "expressivity, progressivity, trainability"
    assert f"the table lacks {lacking}; `zcpipe run ... --proxies {lacking.replace(' ', '')} --out DIR` adds" in err
    assert "the table holds complexity, params, macs: name some with --proxies" in err
    assert zcpipe("rank", directory, "--proxies", "macs,complexity")[0] == 0


def test_why_proxies_failed_is_said(zcpipe, tmp_path, monkeypatch):
    from zcpipe.proxies import aznas

    def boo(statistics):
        raise ValueError("boo")

    broken = [dataclasses.replace(p, reduce=boo) if p.name == "trainability" else p for p in aznas.PROXIES]
    monkeypatch.setattr(aznas, "PROXIES", tuple(broken))
    discover.cache_clear()
    try:
        directory = tmp_path / "broken"
        code, _, err = zcpipe("run", *RUN, "--proxies", "trainability", "--out", directory, "-q")
        assert code == 3 and "12 rows: trainability: ValueError: boo" in err
        code, out, _ = zcpipe("status", directory)
        assert code == 0 and "12 rows: trainability: ValueError: boo" in out
        code, _, err = zcpipe("rank", directory, "--proxies", "trainability")
        assert code == 4 and "no architecture of the table has values of all of trainability" in err
    finally:
        monkeypatch.undo()
        discover.cache_clear()


def test_a_table_is_refused_to_a_proxy_that_means_something_else_now(zcpipe, tmp_path, monkeypatch):
    from zcpipe.proxies import aznas

    directory = tmp_path / "changed"
    assert zcpipe("run", *RUN, "--proxies", "trainability", "--out", directory, "-q")[0] == 0
    changed = [dataclasses.replace(p, direction="lower") if p.name == "trainability" else p for p in aznas.PROXIES]
    monkeypatch.setattr(aznas, "PROXIES", tuple(changed))
    discover.cache_clear()
    try:
        code, _, err = zcpipe("run", *RUN, "--proxies", "trainability", "--out", directory, "-q")
        assert code == 4
        assert "direction of trainability is 'higher' there and 'lower' here" in err
    finally:
        monkeypatch.undo()
        discover.cache_clear()


def test_help_does_not_wait_for_torch():
    code = "import sys, zcpipe.cli; assert 'torch' not in sys.modules and 'score' in dir(zcpipe.cli.zcpipe)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--address", "x:1"], "--address is for runs on nodes; give --nodes N as well"),
        (["--gpus-per-actor", "0.5"], "--gpus-per-actor is for runs on nodes"),
        (["--nodes", "2", "--simulate-nodes", "2"], "--nodes and --simulate-nodes exclude each other"),
        (["--simulate-nodes", "2", "--address", "x:1"], "--simulate-nodes starts a cluster of its own; give --nodes N"),
        (["--nodes", "2", "--workers", "2"], "workers of this machine or on nodes; give one of the two"),
        (["--nodes", "0"], "nodes must be at least 1, got 0"),
        (["--nodes", "2", "--device", "cuda:0"], "--device cuda:0 does not fit a run on nodes"),
        (["--memory", "much"], "'much' is no amount of memory"),
        (["--memory", "4", "--workers", "1"], "--memory 4 is less than the 512 MiB that a worker process takes itself"),
        (["--batch-size", "0"], "invalid value for '--batch-size': Input should be greater than or equal to 1"),
        (["--simulate-nodes", "0"], "invalid value for '--simulate-nodes': Input should be greater than or equal to 1"),
        (["--events", "/nowhere/at/all.jsonl"], "cannot write /nowhere/at/all.jsonl"),
    ],
)
def test_options_of_runs_on_nodes_that_do_not_fit(zcpipe, options, said, tmp_path):
    out = tmp_path / "table"
    code, _, err = zcpipe("run", "--space", "nasbench201", "--sample", "1", "--out", str(out), *options)
    assert code in (2, 4) and said in err and not out.exists()


class TestSpacesCheck:
    """What is found of which space is in tests/scoring/test_space_check.py."""

    def test_a_space_that_keeps_its_contract(self, zcpipe):
        code, text, err = zcpipe("spaces", "check", "nasbenchmacro", "--sample", "2")
        assert (code, err) == (0, "") and text.startswith("nasbenchmacro on cifar10: 2 architectures and ")
        assert text.endswith(": no problem found\n")
        code, text, _ = zcpipe("spaces", "check", "nasbenchmacro", "--sample", "1", "--resolution", "16", "--json")
        report = json.loads(text)
        assert code == 0 and (report["problems"], report["resolution"], report["architectures"]) == ([], 16, 1)

    def test_problems_are_lines_and_an_exit_code(self, zcpipe, monkeypatch):
        monkeypatch.setattr(type(get_space("nasbenchmacro")), "key", lambda self, arch: 7)
        code, text, _ = zcpipe("spaces", "check", "nasbenchmacro", "--sample", "5")
        lines = text.splitlines()
        assert code == 4
        assert [line.startswith("key: ") and line.endswith(": its key must be a str, got 7") for line in lines[:3]]
        assert lines[3].startswith("key: ") and lines[3].endswith(" more, which --json has")
        assert "problems" in lines[-1]
        code, text, _ = zcpipe("spaces", "check", "nasbenchmacro", "--sample", "1", "--json")
        first = json.loads(text)["problems"][0]
        assert code == 4 and (first["kind"], first["message"]) == ("key", "its key must be a str, got 7")
        assert first["architecture"] == str(get_space("nasbenchmacro").sample(0, 0))

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("nasbench202",), "did you mean nasbench201"),
            (("nasbench201", "--dataset", "cifar11"), "did you mean cifar10"),
            (("nasbench201", "--sample", "0"), "sample must be at least 1, got 0"),
            (("autoformer/tiny", "--resolution", "20"), "20"),
        ],
    )
    def test_what_means_nothing_is_refused(self, zcpipe, arguments, says):
        code, _, err = zcpipe("spaces", "check", *arguments)
        assert code == 2 and says in err
