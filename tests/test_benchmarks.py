"""The benchmarks run, their own comparisons hold, and they print what they are documented to; no time is looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "aznas --batch-size 2 --rounds 1": {
        *("speedup_over_eager", "cost_over_bare", "cost_over_flops"),
        *("statistics_share", "overhead_ms", "space_speedup"),
    },
    "memory --batch-size 2": set(),
    "ops --turns 2": set(),
    "overhead --rounds 1": set(),
    "pipeline --rows 500 --architectures 4 --cells 4 --batch-size 2 --pairs 1": {
        *("rows_per_second", "rows_per_second_ray", "scheduling_overhead", "scaling_2", "independent_2", "busy"),
    },
    "search --candidates 1000": {"update_ms", "longest_ms", "recomputation_ms", "speedup"},
    "spaces --spaces nasbench201 --architectures 1 --batch-size 2": set(),
    "suite --batch-size 2 --cells 3": {"speedup_over_eager", "all_over_aznas"},
    "tables --rows 1000 --rows-per-file 500": set(),
}


def test_every_benchmark_is_run_here():
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def main" in path.read_text()}
    assert {command.split()[0] for command in COMMANDS} == there


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.xdist_group("ray") if command.startswith("pipeline") else ())
        for command in COMMANDS
    ],
)
def test_it_runs(command):
    name, *options = command.split()
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options, "--json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout)
    assert printed
    assert COMMANDS[command] <= (printed.keys() if isinstance(printed, dict) else set())
