"""The launch files of pipelines/cluster: what they would start is what the command lines of zcpipe and Ray take.

No scheduler is here: in its place the scripts find programs that write down how they were called.
"""

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from zcpipe.cli import main

CLUSTER = Path(__file__).parents[2] / "pipelines" / "cluster"
RECORDER = """#!{python}
import json, os, stat, sys, time
token = os.environ.get("RAY_AUTH_TOKEN_PATH")
called = dict(program=os.path.basename(sys.argv[0]), arguments=sys.argv[1:], mode=os.environ.get("RAY_AUTH_MODE"),
              token=token and [stat.S_IMODE(os.stat(token).st_mode), len(open(token).read().strip())])
with open({calls!r}, "a") as file:
    file.write(json.dumps(called) + "\\n")
if called["program"] == "scontrol" and sys.argv[1:2] == ["show"]:
    print(sys.argv[3].strip("[]").replace(",", "\\n"), end="\\n" if sys.argv[3] else "")
if called["program"] == "squeue":
    print(os.environ["NODES_LEFT"])
    sys.exit(int(os.environ["CODE_OF_SQUEUE"]))
if called["program"] == "ray":
    time.sleep(float(os.environ.get("SECONDS_OF_RAY", 0)))
if called["program"] == "srun":
    time.sleep(float(os.environ.get("SECONDS_OF_SRUN", 0)))
    sys.exit(int(os.environ.get("CODE_OF_SRUN", 0)))
"""
# Ray's own parsers, in an interpreter of their own: Ray looks at the environment when it is imported.
PARSERS = """
import json, sys
from ray.dashboard.modules.job.cli import submit
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import symmetric_run
kind, arguments = sys.argv[1], sys.argv[2:]
command = dict(submit=submit, start=start, symmetric=symmetric_run)[kind]
print(json.dumps(command.make_context(kind, arguments).params, default=str))
"""


@pytest.fixture
def scheduler(tmp_path):
    """Run a script beside programs that write down their calls; return those, the exit code and standard error."""
    calls, programs = tmp_path / "calls.jsonl", tmp_path / "bin"
    programs.mkdir()
    for name in ("ray", "srun", "scontrol", "zcpipe"):
        program = programs / name
        program.write_text(RECORDER.format(python=sys.executable, calls=str(calls)))
        program.chmod(0o755)

    def start(script, **environment):
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        return subprocess.Popen(
            ["bash", str(CLUSTER / script)],
            env={**kept, "PATH": path, "HOME": str(tmp_path), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(process):
        _, said = process.communicate(timeout=60)
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [json.loads(line) for line in lines], process.returncode, said

    start.finish = finish
    return start


def ray_takes(kind, arguments):
    """Return how Ray understands a command's arguments."""
    done = subprocess.run([sys.executable, "-c", PARSERS, kind, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def planned(command, monkeypatch, capsys):
    """Plan a command as it stands; the plan touches nothing."""
    assert command[:2] == ["zcpipe", "run"]
    monkeypatch.setattr(sys, "argv", [*command, "--dry-run", "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    return json.loads(capsys.readouterr().out)


def option(command, name):
    return command[command.index(name) + 1]


def after_separator(arguments):
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "[one,two]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "32",
}


def test_ray_jobs_takes_the_submission_and_we_its_run(scheduler, tmp_path, monkeypatch, capsys):
    out = f"{tmp_path}/a table"
    calls, code, said = scheduler.finish(scheduler("submit.sh", OUT=out, NODES="8"))
    assert code == 0, said
    (call,) = calls
    assert call["program"] == "ray" and call["arguments"][:2] == ["job", "submit"]
    options, command = after_separator(call["arguments"][2:])
    assert ray_takes("submit", [*options, "--", *command])["entrypoint"] == command
    assert command[0] == "zcpipe-job"
    assert planned(command[1:], monkeypatch, capsys)["out"] == out
    assert option(command, "--nodes") == "8"


@pytest.mark.parametrize("missing", ["OUT", "NODES"])
def test_a_submission_names_what_it_lacks(scheduler, missing):
    given = {"OUT": "/data/t", "NODES": "8"}
    del given[missing]
    calls, code, said = scheduler.finish(scheduler("submit.sh", **given))
    assert code != 0 and missing in said and not calls


def test_slurm_starts_ray_on_each_node_and_our_run_on_the_first(scheduler, tmp_path, monkeypatch, capsys):
    out = f"{tmp_path}/table"
    calls, code, said = scheduler.finish(scheduler("slurm.sh", OUT=out, **SLURM))
    assert code == 0, said
    srun, status = (call for call in calls if call["program"] != "scontrol")
    assert status["program"] == "zcpipe" and status["arguments"] == ["status", out]
    place = srun["arguments"].index("ray")
    options, symmetric = srun["arguments"][:place], srun["arguments"][place + 1 :]
    assert {"--ntasks-per-node=1", "--cpus-per-task=32", "--no-kill"} <= set(options)
    assert symmetric[0] == "symmetric-run"
    given, command = after_separator(symmetric[1:])
    understood = ray_takes("symmetric", [*given, "--", *command])
    assert (understood["address"], understood["min_nodes"]) == ("one:6379", 2)
    rest = understood["ray_args_and_entrypoint"]
    node = [argument for argument in rest[: rest.index("zcpipe")] if argument != "--"]
    assert ray_takes("start", node)["num_cpus"] == 32
    assert planned(command, monkeypatch, capsys)["out"] == out
    assert (option(command, "--nodes"), option(command, "--address")) == ("2", "one:6379")


def test_slurm_shares_a_token_through_a_private_file_and_removes_it(scheduler, tmp_path):
    calls, _, _ = scheduler.finish(scheduler("slurm.sh", OUT=f"{tmp_path}/table", **SLURM))
    (srun,) = (call for call in calls if call["program"] == "srun")
    assert srun["mode"] == "token" and srun["token"] == [stat.S_IRUSR | stat.S_IWUSR, 64]
    assert not list(tmp_path.glob(".zcpipe-token*"))


def test_slurm_passes_on_how_the_run_ended(scheduler, tmp_path):
    _, code, _ = scheduler.finish(scheduler("slurm.sh", OUT=f"{tmp_path}/table", CODE_OF_SRUN="3", **SLURM))
    assert code == 3


def test_slurm_queues_again_before_the_time_is_over_and_runs_until_it_is(scheduler, tmp_path):
    process = scheduler("slurm.sh", OUT=f"{tmp_path}/table", SECONDS_OF_SRUN="3", CODE_OF_SRUN="3", **SLURM)
    calls = tmp_path / "calls.jsonl"
    while not (calls.exists() and '"srun"' in calls.read_text()):
        assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    calls, code, said = scheduler.finish(process)
    assert code == 3, said
    programs = [(call["program"], call["arguments"][:2]) for call in calls]
    assert ("scontrol", ["requeue", "7"]) in programs
    assert programs[-1][0] == "zcpipe"  # after srun had ended


@pytest.mark.parametrize(
    ("left", "code", "again"), [("one,two", 0, False), ("two", 0, True), ("", 0, False), ("", 1, False)]
)
def test_slurm_queues_again_when_the_first_node_and_the_script_are_lost(scheduler, tmp_path, left, code, again):
    calls, _, _ = scheduler.finish(scheduler("slurm.sh", OUT=f"{tmp_path}/table", **SLURM))
    (srun,) = (call for call in calls if call["program"] == "srun")
    task = srun["arguments"][srun["arguments"].index("bash") :]
    programs, file = tmp_path / "bin", tmp_path / "calls.jsonl"
    file.unlink()
    (programs / "squeue").symlink_to("srun")
    (programs / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.2\n")
    (programs / "sleep").chmod(0o755)
    slurm = {**SLURM, "NODES_LEFT": left, "CODE_OF_SQUEUE": str(code), "SECONDS_OF_RAY": "60"}
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    process = subprocess.Popen(task, env={**os.environ, **slurm, "PATH": path}, start_new_session=True)
    try:
        while not (file.exists() and file.read_text().count('"squeue"') > 1):  # it has acted upon the first answer
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        with pytest.raises(ProcessLookupError):  # nothing outlives the task
            while time.monotonic() < deadline:
                os.killpg(process.pid, 0)
                time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    called = [(call["program"], call["arguments"][:2]) for call in map(json.loads, file.read_text().splitlines())]
    assert ("ray", ["symmetric-run", "--address"]) in called
    assert (("scontrol", ["requeue", "7"]) in called) == again


def test_the_ray_job_runs_what_we_take_on_as_many_nodes_as_it_has(monkeypatch, capsys):
    claim, job = yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text())
    spec = job["spec"]
    command = shlex.split(spec["entrypoint"])
    # KubeRay pastes it into a shell's script, where anything but words would mean something to that shell.
    assert shlex.join(command) == spec["entrypoint"]
    assert command[0] == "zcpipe-job"
    out = planned(command[1:], monkeypatch, capsys)["out"]
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert int(option(command, "--nodes")) == workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # it would count as a node
    (volume,) = head["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mount,) = head["template"]["spec"]["containers"][0]["volumeMounts"]
    assert mount["name"] == volume["name"] and out.startswith(mount["mountPath"] + "/")
    assert spec["backoffLimit"] > 0 and "activeDeadlineSeconds" not in spec
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_one_version_of_ray_everywhere():
    pinned = dict(
        line.split("==") for line in (CLUSTER.parents[1] / "constraints.txt").read_text().split() if "==" in line
    )
    _, job = yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]


@pytest.mark.parametrize(("ended", "told"), [(0, 0), (3, 0), (1, 1), (4, 4), (5, 5), (130, 130)])
def test_a_job_that_has_finished_has_succeeded(ended, told):
    done = subprocess.run(["sh", str(CLUSTER / "zcpipe-job"), "sh", "-c", f"exit {ended}"])
    assert done.returncode == told


def test_a_job_passes_words_on_as_they_are():
    said = subprocess.run(["sh", str(CLUSTER / "zcpipe-job"), "echo", "a  b"], capture_output=True, text=True).stdout
    assert said == "a  b\n"


@pytest.mark.parametrize("name", ["Dockerfile", "rayjob.yaml", "slurm.sh", "submit.sh", "zcpipe-job"])
def test_each_file_says_first_what_to_edit_and_how_to_launch(name):
    lines = (CLUSTER / name).read_text().splitlines()
    comment = [line for line in lines if not line.startswith(("#!", "# syntax="))][:3]
    assert all(line.startswith("# ") for line in comment)
