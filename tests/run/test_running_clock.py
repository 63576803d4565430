"""A clock that stands still while the process does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.run.running_clock import _STRIDE, RunningClock


class Time:
    now = 1000.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


@pytest.fixture(scope="module", autouse=True)
def given_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zcpipe.run.running_clock.time", Time)
        yield


def test_is_the_monotonic_clock_for_who_looks_often() -> None:
    clock, start = RunningClock(), Time.now
    for _ in range(100):
        Time.now += 0.75 * _STRIDE
        clock.look()
    assert clock.since(start) == pytest.approx(75 * _STRIDE)


def test_a_gap_counts_as_one_stride() -> None:
    clock, start = RunningClock(), Time.now
    Time.now += 3600
    clock.look()
    assert clock.since(start) == pytest.approx(_STRIDE)
    assert clock.since(Time.now) == 0


@given(steps=st.lists(st.floats(0, 50), max_size=30), begun=st.floats(0, 1))
def test_never_runs_backwards_nor_faster_than_time(steps: list[float], begun: float) -> None:
    clock = RunningClock()
    start = Time.now + begun * sum(steps)
    last = 0.0
    for step in steps:
        Time.now += step
        clock.look()
        if Time.now >= start:
            passed = clock.since(start)
            assert -1e-6 <= passed <= Time.now - start + 1e-6
            assert passed >= last - 1e-6
            last = passed
