"""Who is blamed for a death, and when it is not the architectures."""

from __future__ import annotations

import pytest

from zcpipe.errors import CapabilityError, UsageError
from zcpipe.run.blame import Blame
from zcpipe.run.executor import Died, Lease
from zcpipe.run.rows import Failed
from zcpipe.run.work import Unit

DEATH = Failed("error", "died", "its process exited with code 7", 1.0)
HANG = Failed("timeout", "timeout", "no result within 5 s", 5.0)


def unit(number: int) -> Unit:
    return Unit(0, number, (number,))


def test_a_unit_is_tried_alone_and_elsewhere_before_it_is_blamed() -> None:
    blame = Blame()
    assert blame.judge(Died(unit(1), DEATH, "node-a")) == Lease((unit(1),), alone=True, avoid="node-a")
    verdict = blame.judge(Died(unit(1), DEATH, "node-b"))
    assert isinstance(verdict, Lease) and verdict.alone and verdict.failed is not None
    assert verdict.failed.message == "its process exited with code 7, twice"


def test_one_that_succeeds_the_second_time_is_not_blamed_later() -> None:
    blame = Blame()
    blame.judge(Died(unit(1), DEATH))
    blame.acquit((unit(1),))
    assert blame.judge(Died(unit(1), DEATH)) == Lease((unit(1),), alone=True)


def test_a_timeout_is_a_failure_at_once() -> None:
    verdict = Blame().judge(Died(unit(1), HANG))
    assert verdict == Lease((unit(1),), alone=True, failed=HANG)


def test_what_dies_when_only_its_rows_are_made_has_none_but_the_reason() -> None:
    blame = Blame()
    blame.judge(Died(unit(1), HANG))
    assert blame.judge(Died(unit(1), DEATH)) == HANG


@pytest.mark.parametrize(
    ("failed", "error", "said"),
    [(HANG, UsageError, "20 .* no result within 5 s.* longer --timeout"), (DEATH, CapabilityError, "20 .* code 7")],
)
def test_where_nothing_succeeds_it_is_not_the_architectures(failed: Failed, error: type[Exception], said: str) -> None:
    blame = Blame()

    def fail(number: int) -> None:
        for _ in range(1 if failed is HANG else 2):
            blame.judge(Died(unit(number), failed))
        blame.acquit((unit(number),))  # its rows, without scores, are made

    for number in range(19):
        fail(number)
    with pytest.raises(error, match=said):
        fail(50)


def test_where_anything_succeeds_any_number_of_failures_is_the_architectures() -> None:
    blame = Blame()
    blame.acquit((unit(99),))
    for number in range(40):
        assert isinstance(blame.judge(Died(unit(number), HANG)), Lease)


@pytest.mark.parametrize("failed", [HANG, DEATH])
def test_units_that_failed_before_say_nothing_about_the_others(failed: Failed) -> None:
    blame = Blame(known=range(100))
    for number in range(40):
        for _ in range(1 if failed is HANG else 2):
            verdict = blame.judge(Died(unit(number), failed))
        assert isinstance(verdict, Lease) and verdict.failed is not None
        blame.acquit((unit(number),))
    for number in range(200, 219):
        blame.judge(Died(unit(number), HANG))
    with pytest.raises(UsageError, match="the first 20 architectures"):
        blame.judge(Died(unit(300), HANG))
