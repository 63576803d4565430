"""The work list: every selected row exactly once, classes whole, whatever the selection or the growth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.run.spec import All, Archs, Range, RunSpec, Sample
from zcpipe.run.work import ClassList, DrawList, Shard, TextList, architectures, index_of, plan, sized
from zcpipe.spaces import get_space

NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Partition:
    """The part of an enumerable space that a work list reads: its members are numbers, their keys given."""

    keys: tuple[int, ...]
    name = "partition"

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> int:
        return index

    def key(self, arch: int) -> str:
        return str(self.keys[arch])


@st.composite
def selections(draw: st.DrawFn) -> tuple[Partition, list[int], list[int], int]:
    keys = draw(st.lists(st.integers(0, 9), min_size=1, max_size=40))
    member = st.integers(0, len(keys) - 1)
    selected, present = draw(st.lists(member, min_size=1)), draw(st.lists(member))
    return Partition(tuple(keys)), sorted(set(selected)), sorted(set(present)), draw(st.integers(1, 5))


def rows_of(shards: list[Shard]) -> list[int]:
    return [member for shard in shards for unit in shard.units for member in unit.members]


@settings(deadline=None)
@given(selections())
def test_every_missing_row_once_in_whole_classes(case: tuple[Partition, list[int], list[int], int]) -> None:
    space, selected, present, per_shard = case
    work = ClassList(space, np.array(selected), per_shard)
    shards = list(work.shards(np.array(present, np.int64)))

    assert sorted(rows_of(shards)) == sorted(set(selected) - set(present))
    assert [shard.id for shard in shards] == sorted({shard.id for shard in shards})
    rank = {key: number for number, key in enumerate(dict.fromkeys(space.keys))}
    for shard in shards:
        for unit in shard.units:
            (key,) = {space.keys[member] for member in unit.members}
            assert unit.representative == space.keys.index(key)
            assert unit.shard == shard.id == rank[key] // per_shard
            assert list(unit.members) == sorted(unit.members)
    size = work.size(np.array(present, np.int64))
    assert size.rows == sum(shard.rows for shard in shards)
    assert size.classes == sum(len(shard.units) for shard in shards)
    assert size.shards == len(shards)


@settings(deadline=None)
@given(selections())
def test_growth_adds_what_is_missing_with_the_same_representatives(
    case: tuple[Partition, list[int], list[int], int],
) -> None:
    space, small, extra, per_shard = case
    large = sorted({*small, *extra})
    first = list(ClassList(space, np.array(small), per_shard).shards(NOTHING))
    second = list(ClassList(space, np.array(large), per_shard).shards(np.array(small)))
    at_once = list(ClassList(space, np.array(large), per_shard).shards(NOTHING))

    def scored(shards: list[Shard]) -> dict[int, tuple[int, int]]:
        return {m: (shard.id, unit.representative) for shard in shards for unit in shard.units for m in unit.members}

    assert scored(first) | scored(second) == scored(at_once)
    assert not scored(first).keys() & scored(second).keys()


@dataclass(frozen=True)
class Unending:
    """The part of a space without enumeration that a work list reads: draws repeat, and texts are in no order."""

    texts: int
    keys: int
    name = "unending"

    def sample(self, seed: int, i: int) -> str:
        return f"text-{(seed + 17 * i * i + i) % self.texts}"

    def key(self, arch: str) -> str:
        return str(int(arch.removeprefix("text-")) % self.keys)


unending = st.builds(Unending, st.integers(1, 40), st.integers(1, 9))


def scored(shards: list[Shard]) -> dict[str, tuple[int, str]]:
    """For each member the shard and the text of its representative."""
    found: dict[str, tuple[int, str]] = {}
    for shard in shards:
        for unit in shard.units:
            first, *members = unit.texts
            assert [unit.representative, *unit.members] == [index_of(text) for text in unit.texts]
            assert list(unit.members) == sorted(unit.members) and unit.shard == shard.id
            assert not found.keys() & set(members)
            found |= dict.fromkeys(members, (shard.id, first))
    return found


@settings(deadline=None)
@given(unending, st.integers(0, 5), st.integers(1, 60), st.integers(0, 60), st.integers(1, 9))
def test_a_sample_has_each_architecture_once_and_grows_into_the_larger_sample(
    space: Unending, seed: int, n: int, more: int, block: int
) -> None:
    small, large = DrawList(space, seed, n, block), DrawList(space, seed, n + more, block)
    at_once, first = scored(list(large.shards(NOTHING))), scored(list(small.shards(NOTHING)))
    grown = scored(list(large.shards(small.indices)))

    assert not first.keys() & grown.keys() and first | grown == at_once
    draws = [space.sample(seed, i) for i in range(n + more)]
    assert at_once.keys() == set(draws)
    assert large.indices.tolist() == sorted(index_of(text) for text in set(draws))
    for text, (shard, representative) in at_once.items():
        assert shard == draws.index(text) // block
        whole = [space.sample(seed, i) for i in range(shard * block, (shard + 1) * block)]
        assert representative == min(other for other in whole if space.key(other) == space.key(text))
    size = large.size(small.indices)
    assert (size.rows, size.shards) == (len(grown), len({shard for shard, _ in grown.values()}))


@settings(deadline=None)
@given(st.sets(st.text()).flatmap(lambda texts: st.tuples(*[st.permutations(sorted(texts))] * 2)), st.integers(1, 5))
def test_the_order_of_a_list_says_nothing(orders: tuple[list[str], list[str]], per_shard: int) -> None:
    one, other = (TextList(order, per_shard) for order in orders)
    assert list(one.shards(NOTHING)) == list(other.shards(NOTHING))
    assert {text: first for text, (_, first) in scored(list(one.shards(NOTHING))).items()} == {t: t for t in orders[0]}
    part = one.indices[::2]
    left = scored(list(other.shards(part)))
    assert {index_of(text) for text in left} == set(one.indices.tolist()) - set(part.tolist())
    size = one.size(part)
    assert size.rows == size.classes == len(left) and size.shards == len({shard for shard, _ in left.values()})


def spec(**fields: object) -> RunSpec:
    return RunSpec.model_validate({"space": "hazards", "dataset": "tiny", "proxies": ("params",), **fields})


def test_who_waits_for_many_draws_is_told() -> None:
    told: list[tuple[int, int]] = []
    spec = RunSpec(space="nds/resnet", dataset="cifar10", proxies=("params",), selection=Sample(n=2500))
    plan(spec, lambda done, total: told.append((done, total)))
    assert told == [(1000, 2500), (2000, 2500)]


def test_selections_of_a_space() -> None:
    assert plan(spec()).indices.tolist() == list(range(24))
    assert plan(spec(selection=Range(start=3, stop=6))).indices.tolist() == [3, 4, 5]
    assert plan(spec(selection=Sample(n=4))).indices.tolist() == [0, 7, 14, 21]
    listed = Archs(texts=("member-9", "", "member-2", "member-9 "))
    assert plan(spec(selection=listed)).indices.tolist() == [2, 9]


def test_architectures_without_an_index_are_numbered_by_their_text() -> None:
    work = plan(spec(space="endless", selection=Archs(texts=("member-900", "member-3", "member-900"))))
    assert work.indices.tolist() == sorted(map(index_of, ("member-900", "member-3")))
    (shard,) = work.shards(NOTHING)
    space = get_space("endless")
    assert {str(arch) for unit in shard.units for arch in architectures(space, unit)[1]} == {"member-900", "member-3"}
    sampled = plan(spec(space="endless", selection=Sample(n=9)))
    assert sampled.indices.tolist() == sorted({index_of(str(space.sample(0, i))) for i in range(9)})


def test_numbers_of_texts_never_change_between_versions() -> None:
    assert index_of("member-900") == 4_379_242_888_023_309_390


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"selection": Sample(n=25)}, r"sample of 25 is larger than hazards, which has 24"),
        ({"selection": Sample(n=0)}, r"at least 1"),
        ({"selection": Range(start=5, stop=25)}, r"0 <= A < B <= 24"),
        ({"selection": Range(start=5, stop=5)}, r"0 <= A < B <= 24"),
        ({"selection": Archs(texts=("member-1", "", "membr-2"))}, r"line 3: 'membr-2' is not a member"),
        ({"selection": Archs(texts=("", "x"), source="a.txt")}, r"^a.txt, line 2: 'x' is not a member"),
        ({"selection": Archs(texts=("", " "), source="a.txt")}, r"^a.txt has no architectures"),
        ({"space": "endless", "selection": All()}, r"cannot be enumerated.*--sample"),
        ({"space": "endless", "selection": Range(start=0, stop=2)}, r"cannot be enumerated"),
        ({"space": "hazard"}, r"unknown space 'hazard'; did you mean hazards"),
        ({"dataset": "tinny"}, r"unknown dataset 'tinny'; did you mean tiny"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(spec(**fields))


@pytest.mark.parametrize(
    ("selection", "size"),
    [(Sample(n=5), 64), (Sample(n=65_536), 64), (Sample(n=65_537), 128), (Sample(n=10**7), 4096)],
)
def test_large_tables_have_large_shards(selection: Sample, size: int) -> None:
    spec = RunSpec(space="endless", dataset="tiny", proxies=("params",), selection=selection)
    assert sized(spec).classes_per_shard == size
    assert sized(spec.model_copy(update={"classes_per_shard": 7})).classes_per_shard == 7


def test_shards_of_an_enumerable_space_do_not_depend_on_the_selection() -> None:
    for selection in (All(), Sample(n=3), Range(start=0, stop=15_000)):
        spec = RunSpec(space="nasbench201", dataset="cifar10", proxies=("params",), selection=selection)
        assert sized(spec).classes_per_shard == 64
