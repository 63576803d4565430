"""Tests of the tests: kernels with one fault each, which the shim and the sanitizers must find."""

import re
from collections import Counter

import pytest
from programs import HERE

pytestmark = pytest.mark.xdist_group("cuda")  # who waits for what another builds does nothing else

CASES = re.findall(r'^    \{"([a-z]+: [^"]+)"', (HERE / "faults.cpp").read_text(), re.MULTILINE)


def of(kind):
    return pytest.mark.parametrize("case", [case for case in CASES if case.startswith(kind + ": ")])


def test_all_cases_are_known(run):
    status, listed = run("faults", "plain", "--list")
    assert status == 0
    assert set(listed.splitlines()) == {*CASES, "clean"}
    assert Counter(case.split(":")[0] for case in CASES)["race"] >= 3


@pytest.mark.parametrize("mode", ["plain", "address", "thread"])
def test_without_faults_nothing_is_found(run, mode):
    status, said = run("faults", mode, "clean")
    assert status == 0 and "data race" not in said and "ERROR" not in said, said


@of("race")
def test_a_race_is_found_also_where_the_values_are_right(run, case):
    status, said = run("faults", "thread", case)
    assert status != 0 and "WARNING: ThreadSanitizer: data race" in said


@of("dies")
def test_what_a_gpu_leaves_undefined_ends_the_program_with_its_reason(run, case):
    status, said = run("faults", "plain", case)
    assert status < 0 and said.startswith("shim: ") and case.removeprefix("dies: ") in said


@of("value")
def test_unwritten_shared_memory_spoils_the_result(run, case):
    status, said = run("faults", "plain", case)
    assert status == 1 and "nan" in said


@of("guard")
def test_guard_pages_stop_what_leaves_shared_memory(run, case):
    assert run("faults", "plain", case)[0] < 0


@of("address")
def test_addresses_out_of_bounds_are_found(run, case):
    status, said = run("faults", "address", case)
    assert status != 0 and case.removeprefix("address: ") in said
