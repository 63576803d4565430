"""Shards in leases: nothing twice, nothing left out, short where much is lost with one and towards the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zcpipe.run.leases import Leases
from zcpipe.run.work import Shard, Unit


def shards(sizes: list[int]) -> list[Shard]:
    return [Shard(i, tuple(Unit(i, i * 1000 + j, (i * 1000 + j,)) for j in range(n))) for i, n in enumerate(sizes)]


@given(st.lists(st.integers(1, 50), max_size=6), st.floats(1e-6, 100.0), st.integers(1, 9))
def test_every_unit_is_in_one_lease_of_its_own_shard(sizes: list[int], pace: float, capacity: int) -> None:
    made = shards(sizes)
    leases = Leases(iter(made), sum(sizes))
    seen: list[Unit] = []
    while (following := leases.next(capacity)) is not None:
        shard, lease = following
        assert lease.units and {unit.shard for unit in lease.units} == {shard.id}
        assert len(lease.units) == 1 or pace * len(lease.units) <= 2.0
        seen += lease.units
        leases.learn(len(lease.units), pace * len(lease.units))
    assert seen == [unit for shard in made for unit in shard.units]


def test_leases_take_two_seconds_until_little_is_left() -> None:
    leases = Leases(iter(shards([1000])), 1000)
    leases.learn(10, 10 * 0.02)
    lengths = []
    while (following := leases.next(capacity=2)) is not None:
        lengths.append(len(following[1].units))
    assert lengths[0] == 100 and lengths[-5:] == [1, 1, 1, 1, 1]
    assert lengths == sorted(lengths, reverse=True)
