"""Every CUDA kernel, run on the CPU thread by thread, against loops that share nothing with it.

Each program in tests/cuda/ asserts values and how much work was done to get them; shared memory starts as 0xFF.
"""

import pytest
from programs import OPS, ROOT

pytestmark = pytest.mark.xdist_group("cuda")  # who waits for what another builds does nothing else

SCHEDULES = [("forward",), ("reverse",), ("random", "1"), ("random", "2")]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=" ".join)
@pytest.mark.parametrize("op", OPS)
class TestValues:
    def test_are_right_in_every_order_of_threads_and_blocks(self, run, op, schedule):
        assert run(op, "plain", *schedule) == (0, "")

    def test_come_from_no_foreign_memory_and_no_undefined_behaviour(self, run, op, schedule):
        status, said = run(op, "address", *schedule)
        # AddressSanitizer warns of fibers that are not announced to it, in one line; these are.
        said = [line for line in said.splitlines() if "doesn't fully support makecontext/swapcontext" not in line]
        assert (status, said) == (0, [])


@pytest.mark.parametrize("op", OPS)
def test_no_two_threads_race(run, op):
    """The order in which the fibers happened to run is no order to ThreadSanitizer: one schedule shows all."""
    assert run(op, "thread", "random", "1") == (0, "")


@pytest.mark.parametrize("op", OPS)
def test_every_barrier_is_needed_and_its_absence_found(run, op):
    """Tests of the test: the same program with the barriers of one line left out, for each line that has one."""
    status, sites = run(op, "plain", "--sites")
    assert status == 0
    in_source = (ROOT / f"csrc/cuda/{op}.cuh").read_text()
    assert bool(sites) == ("__syncthreads" in in_source or "__syncwarp" in in_source)
    for site in sites.split():
        status, said = run(op, "thread", "--omit", site)
        assert status != 0 and "WARNING: ThreadSanitizer: data race" in said, site


def test_every_kernel_file_has_a_program():
    assert sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cuh")) == OPS
