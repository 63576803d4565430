"""Which nodes a run on a cluster uses, and which of them gets a lease."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from zcpipe.errors import CapabilityError
from zcpipe.run.executor import Lease
from zcpipe.run.nodes.agent import Placement
from zcpipe.run.nodes.roster import Host, Roster
from zcpipe.run.work import Unit

GIB = 1 << 30
VERSION = CapabilityError("another version")


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("zcpipe.run.nodes.roster.time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def start(roster: Roster, node: str, clock: Clock, actors: int = 1) -> Host:
    host = roster.hosts[node] = Host(node, node.upper(), Placement(actors), agent=None, since=clock.now)
    return host


def unit(number: int) -> Unit:
    return Unit(0, number, (number,))


def give(host: Host, lease: Lease) -> None:
    host.flying[object()] = (lease, 0.0)


class TestWhichNodesAreTried:
    def test_as_many_as_are_wanted(self, clock: Clock) -> None:
        roster = Roster(2)
        assert roster.following(["a", "b", "c"]) == ["a", "b"]
        start(roster, "a", clock)
        assert roster.following(["a", "b", "c"]) == ["b"]
        start(roster, "b", clock)
        assert roster.following(["a", "b", "c"]) == []

    def test_a_spare_one_beside_one_that_is_late_and_the_first_to_be_ready_is_used(self, clock: Clock) -> None:
        roster = Roster(2)
        first, late = start(roster, "a", clock), start(roster, "b", clock)
        assert roster.accept(first, GIB) == []
        clock.wait(59.0)
        assert roster.following(["a", "b", "c"]) == []
        clock.wait(2.0)
        assert roster.following(["a", "b", "c"]) == ["c"]
        spare = start(roster, "c", clock)
        assert roster.following(["a", "b", "c", "d"]) == [], "one more for each that is late"
        assert roster.accept(spare, GIB) == [late] and not late.ready

        del roster.hosts["b"], roster.hosts["a"]
        assert roster.following(["b", "c", "d"]) == ["d"], "one that was late comes last"

    def test_one_that_is_late_and_starts_before_the_spare_is_used(self, clock: Clock) -> None:
        roster = Roster(1)
        late = start(roster, "a", clock)
        clock.wait(61.0)
        spare = start(roster, "b", clock)
        assert roster.accept(late, GIB) == [spare]

    def test_those_whose_agents_ended_come_after_others(self, clock: Clock) -> None:
        roster = Roster(1)
        assert not roster.end("a")
        assert roster.following(["a", "b"]) == ["b"]

    def test_three_ends_in_a_row_are_too_many(self, clock: Clock) -> None:
        roster = Roster(1)
        assert [roster.end("a"), roster.end("a")] == [False, False]
        roster.succeed("a")
        assert [roster.end("a"), roster.end("a"), roster.end("a")] == [False, False, True]


class TestNodesThatAreLeftAlone:
    def test_one_that_never_computed_for_good(self, clock: Clock) -> None:
        roster = Roster(1)
        assert not roster.bar("a", VERSION)
        assert roster.following(["a", "b"]) == ["b"]
        start(roster, "b", clock).ready = True
        clock.wait(1e6)
        roster.see(["a", "b"])
        assert roster.following(["a"]) == []

    def test_one_that_has_computed_for_five_minutes(self, clock: Clock) -> None:
        roster = Roster(2)
        roster.succeed("a")
        assert roster.bar("a", CapabilityError("too many open files"))
        start(roster, "b", clock).ready = True
        clock.wait(299.0)
        roster.see(["a", "b"])
        assert roster.following(["a", "b"]) == []
        clock.wait(2.0)
        roster.see(["a", "b"])
        assert roster.following(["a", "b"]) == ["a"]

    def test_a_run_ends_at_once_where_no_other_was_there(self, clock: Clock) -> None:
        roster = Roster(2)
        roster.see(["a", "b"])
        roster.bar("a", VERSION)
        roster.see(["a", "b"])
        roster.bar("b", VERSION)
        with pytest.raises(CapabilityError, match=r"^another version$"):
            roster.see(["a", "b"])

    def test_a_run_waits_for_those_that_are_away_for_a_moment(self, clock: Clock) -> None:
        roster = Roster(1)
        roster.bar("head", CapabilityError("it has no GPU"))
        start(roster, "gpu", clock).ready = True
        roster.see(["head", "gpu"])
        del roster.hosts["gpu"]
        clock.wait(2.0)
        roster.see(["head"])
        clock.wait(590.0)
        roster.see(["head"])
        clock.wait(20.0)
        with pytest.raises(CapabilityError, match=r"it has no GPU"):
            roster.see(["head"])

    def test_a_run_ends_after_ten_minutes_without_any(self, clock: Clock) -> None:
        roster = Roster(1)
        clock.wait(599.0)
        roster.see([])
        clock.wait(2.0)
        with pytest.raises(CapabilityError, match=r"no node could be used for 600 s; .* the same command goes on"):
            roster.see([])


class TestWhoGetsALease:
    def test_the_one_with_most_room(self, clock: Clock) -> None:
        roster = Roster(2)
        small, large = start(roster, "a", clock), start(roster, "b", clock, actors=4)
        assert roster.next([Lease((unit(1),))]) is None, "none is ready"
        roster.accept(small, GIB)
        roster.accept(large, GIB)
        give(large, Lease((unit(9),)))
        assert roster.next([Lease((unit(1),))]) == (0, small)
        give(small, Lease((unit(1),)))
        assert roster.next([Lease((unit(2),))]) == (0, large)

    def test_what_ended_a_worker_goes_elsewhere(self, clock: Clock) -> None:
        roster = Roster(2)
        for node in ("a", "b"):
            roster.accept(start(roster, node, clock), GIB)
        again = Lease((unit(1),), alone=True, avoid="a")
        assert roster.next([again]) == (0, roster.hosts["b"])
        del roster.hosts["b"]
        assert roster.next([again]) == (0, roster.hosts["a"]), "where there is no other"

    def test_and_to_where_workers_may_hold_most(self, clock: Clock) -> None:
        roster = Roster(3)
        for node, memory in (("a", 2 * GIB), ("b", 2 * GIB), ("large", 16 * GIB)):
            roster.accept(start(roster, node, clock), memory)
        again = Lease((unit(1),), alone=True, avoid="a")
        assert roster.next([again]) == (0, roster.hosts["large"])
        for number in (8, 9):
            give(roster.hosts["large"], Lease((unit(number),)))
        assert roster.next([again]) is None, "it waits until there is room"
        assert roster.next([again, Lease((unit(2),))]) == (1, roster.hosts["a"]), "and holds nothing else up"
        assert roster.next([Lease((unit(1),), alone=True, avoid="large")]) == (0, roster.hosts["a"])

    def test_nobody_twice(self, clock: Clock) -> None:
        roster = Roster(1)
        roster.accept(start(roster, "a", clock), GIB)
        give(roster.hosts["a"], Lease((unit(1), unit(2))))
        assert roster.next([Lease((unit(1),), alone=True)]) is None
