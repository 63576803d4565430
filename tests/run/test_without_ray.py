"""Ray is an extra: nothing but a run on nodes imports it, and that says what to install where it is not."""

import subprocess
import sys

# None in place of a module makes its import fail, as it does where nothing of that name is installed.
WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from zcpipe.cli import main; main()"


def zcpipe(*arguments):
    """Run a command in an interpreter without Ray; return exit code and standard error."""
    command = [sys.executable, "-c", WITHOUT_RAY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_runs_on_one_machine_do_without_ray(tmp_path):
    run = ("run", "--space", "nasbench201", "--sample", 3, "--proxies", "params", "--out", tmp_path / "t", "-q")
    for more in (("--workers", 1), (), ("--dry-run",), ("--nodes", 2, "--dry-run")):
        code, said = zcpipe(*run, *more)
        assert code == 0, said


def test_a_run_on_nodes_names_the_extra(tmp_path):
    run = ("run", "--space", "nasbench201", "--sample", 3, "--proxies", "params", "--out", tmp_path / "t", "-q")
    for where in (("--nodes", 1), ("--simulate-nodes", 1)):
        code, said = zcpipe(*run, *where)
        assert code == 5 and "pip install 'zcpipe[ray]'" in said, said
