"""Spaces that break their contract are found before a run; each test breaks one small correct space in one way."""

import dataclasses
import random
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from toy_space import KERNELS, Pair, Toy, layer

from zcpipe import get_space
from zcpipe.errors import UsageError
from zcpipe.scoring.space_check import check_space
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.spaces.layers import Linear


def broken(**methods):
    """The toy space with other methods or attributes."""
    return type("Broken", (Toy,), methods)()


def problems(space, sample=8):
    return check_space(space, sample).problems


def assert_found(space, kind, says, sample=8):
    """There is a problem of the kind that says so, and none of it is an exception of the check's own."""
    found = problems(space, sample)
    assert [one for one in found if one.kind == kind and says in one.message], [str(one) for one in found]


def toys(member, **changes):
    return dataclasses.replace(member, **changes)


class TestASpaceThatKeepsItsContract:
    def test_has_no_problems(self):
        report = check_space(Toy(), 32)
        assert (report.problems, report.notes) == ((), ())
        assert (report.space, report.dataset, report.architectures) == ("toy", "tiny", 32)
        assert report.compared == 12, "all that exchange branches, which are not two of a kind"
        assert report.lines() == [
            f"toy on tiny: 32 architectures and {report.neighbours} neighbours checked, "
            "12 pairs with one key compared: no problem found"
        ]

    def test_leaves_the_global_random_states_alone(self):
        torch.manual_seed(3)
        random.seed(3)
        before = torch.get_rng_state(), random.getstate()
        check_space(Toy(), 2)
        assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]

    @pytest.mark.parametrize("name", ["nasbench201", "nasbenchmacro", "transnasbench101_micro"])
    def test_built_in_spaces_do(self, name):
        report = check_space(get_space(name), 2)
        assert report.problems == () and report.architectures == 2

    def test_may_be_without_moves(self):
        def refuse(self, *arguments):
            raise NotImplementedError

        report = check_space(broken(mutate=refuse, neighbours=refuse), 2)
        assert report.problems == ()
        assert ["not searched by moves" in note.message for note in report.notes] == [True, True]

    def test_may_build_torchs_own_layers(self):
        def build(self, arch, dataset, *, full=False):
            built = Toy.build(self, arch, dataset, full=full)
            built.model.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            return built

        report = check_space(broken(build=build), 2)
        assert report.problems == () and ["draws from torch's global" in note.message for note in report.notes] == [
            True
        ]


class TestKeys:
    def test_must_be_texts(self):
        assert_found(broken(key=lambda self, arch: 7), "key", "must be a str, got 7")

    def test_must_be_the_same_again(self):
        assert_found(broken(key=lambda self, arch: str(random.random())), "key", "when asked again")

    def test_belong_to_the_architecture_and_not_to_the_object(self):
        assert_found(broken(key=lambda self, arch: str(id(arch))), "key", "when asked again")

    def test_that_drop_a_choice_of_a_layer_are_found_by_the_free_weights(self):
        def key(self, arch):
            return Toy.key(self, toys(arch, second="skip"))

        assert_found(broken(key=key), "key", "free weights", sample=3)

    def test_that_drop_a_choice_without_weights_are_found_by_the_outputs(self):
        def key(self, arch):
            return Toy.key(self, toys(arch, squash=True))

        found = problems(broken(key=key), 3)
        assert {one.kind for one in found} == {"key"}
        assert all("computes another function: block 'body' differs by" in one.message for one in found)

    def test_need_a_correspondence_that_exchanges_what_they_do(self):
        def correspondence(self, representative, member, dataset):
            return Toy.correspondence(self, member, member, dataset)

        found = problems(broken(correspondence=correspondence), 32)
        assert {one.kind for one in found} == {"correspondence"}
        assert any("which is none" in one.message or "by correspondence" in one.message for one in found)

    def test_of_all_members_are_those_of_each(self):
        def all_keys(self):
            return [self.key(self[(i + 1) % len(self)]) for i in range(len(self))]

        assert_found(broken(all_keys=all_keys), "key", "but in all_keys()")


class TestSizes:
    def test_must_be_whole_numbers(self):
        def size(self, arch, dataset):
            counted = Toy.size(self, arch, dataset)
            return Size(float(counted.params), counted.macs)

        assert_found(broken(size=size), "size", "size.params must be an int")

    @pytest.mark.parametrize("field", ["params", "macs"])
    def test_are_those_of_the_full_network(self, field):
        def size(self, arch, dataset):
            return toys(Toy.size(self, arch, dataset), **{field: 12})

        assert_found(broken(size=size), "size", f"size.{field} is 12, but its full network has")

    def test_include_dead_layers(self):
        def size(self, arch, dataset):
            return Toy.size(self, toys(arch, squash=False), dataset)

        assert_found(broken(size=size), "size", "but its full network has")


class TestTexts:
    def test_are_read_back(self):
        def parse(self, text):
            return toys(Toy.parse(self, text), squash=False)

        assert_found(broken(parse=parse), "text", "what is read from its text has another")

    def test_have_one_architecture(self):
        @dataclass(frozen=True)
        class Longer(Pair):
            more: int = 0

        def parse(self, text):
            arch = Toy.parse(self, text)
            return Longer(arch.first, arch.second, arch.squash, 1)

        assert_found(broken(parse=parse), "text", "does not equal it")

    def test_that_mean_nothing_are_refused(self):
        def parse(self, text):
            return self[0] if text not in map(str, map(self.__getitem__, range(32))) else Toy.parse(self, text)

        assert_found(broken(parse=parse), "text", "must raise UsageError, got")

        def crash(self, text):
            return {str(self[i]): self[i] for i in range(32)}[text]

        assert_found(broken(parse=crash), "text", "must raise UsageError, got KeyError")


def as_class(**methods):
    """A space whose members are of another class than the toy's, which differs by some methods."""

    class Other(Pair):
        pass

    for name, method in methods.items():
        setattr(Other, name, method)

    def convert(arch):
        return Other(arch.first, arch.second, arch.squash)

    return broken(
        __getitem__=lambda self, index: convert(Toy.__getitem__(self, index)),
        parse=lambda self, text: convert(Toy.parse(self, text)),
    )


class TestHashes:
    def test_of_architectures_exist(self):
        assert_found(as_class(__hash__=None), "hash", "hash(arch) raises TypeError: unhashable type")

    def test_of_spaces_exist(self):
        assert_found(broken(__hash__=None), "space", "it must be hashable, got TypeError: unhashable type")

    def test_belong_to_equality(self):
        assert_found(as_class(__hash__=lambda self: id(self)), "hash", "with another hash")

    def test_tell_members_apart(self):
        assert_found(as_class(__eq__=lambda self, other: True, __hash__=lambda self: 1), "hash", "has another text")


class TestDraws:
    def test_are_the_same_again(self):
        assert_found(broken(sample=lambda self, seed, i: self[random.randrange(32)]), "sample", "for the second time")

    def test_leave_global_random_states_alone(self):
        def sample(self, seed, i):
            random.seed(seed)
            return Toy.sample(self, seed, i)

        assert_found(broken(sample=sample), "sample", "changes the global random state of random")

    def test_need_no_earlier_ones(self):
        def sample(self, seed, i):
            self.last = (getattr(self, "last", 0) + i + 1) % 32
            return self[self.last]

        assert_found(broken(sample=sample), "sample", "for the second time")

    def test_are_without_replacement_where_members_can_be_counted(self):
        assert_found(broken(sample=lambda self, seed, i: self[i // 2]), "sample", "must be distinct")

    def test_that_fail_are_named(self):
        assert_found(broken(sample=lambda self, seed, i: self[40 + i]), "sample", "sample(0, 0) raises UsageError")


class TestPositions:
    def test_are_inverse(self):
        assert_found(broken(index=lambda self, arch: 31 - Toy.index(self, arch)), "index", "but there is")

    def test_are_in_range(self):
        assert_found(broken(index=lambda self, arch: 32 + Toy.index(self, arch)), "index", "from 0 to 31, got")

    @pytest.mark.parametrize(("length", "says"), [(30, "there is no member"), (34, "at position 32 of 34 raises")])
    def test_are_as_many_as_members(self, length, says):
        def member(self, index):
            if index >= 32:
                raise UsageError(f"there is no member {index}")
            pair, squash = divmod(index, 2)
            return Pair(*(KERNELS[k] for k in divmod(pair, 4)), bool(squash))

        def parse(self, text):
            return Toy().parse(text)

        assert_found(broken(__len__=lambda self: length, __getitem__=member, parse=parse), "index", says)


class TestMoves:
    @pytest.mark.parametrize(
        ("neighbours", "says"),
        [
            (lambda self, arch: [arch, *Toy.neighbours(self, arch)], "contain the architecture itself"),
            (lambda self, arch: Toy.neighbours(self, arch) * 2, "more than once"),
            (lambda self, arch: random.sample(Toy.neighbours(self, arch), 7), "when asked for twice"),
            (lambda self, arch: [toys(arch, first="5")], "which parse refuses"),
            (lambda self, arch: {}[arch], "neighbours(arch) raises KeyError"),
        ],
    )
    def test_neighbours(self, neighbours, says):
        space = broken(neighbours=neighbours, mutate=lambda self, arch, seed, i: Toy().mutate(arch, seed, i))
        assert_found(space, "moves", says)

    @pytest.mark.parametrize(
        ("mutate", "says"),
        [
            (lambda self, arch, seed, i: arch, "mutate(arch, 0, 0) gives the architecture itself"),
            (lambda self, arch, seed, i: random.choice(self.neighbours(arch)), "and then"),
            (lambda self, arch, seed, i: toys(arch, second="5"), "which parse refuses"),
            (lambda self, arch, seed, i: 1 / 0, "raises ZeroDivisionError"),
        ],
    )
    def test_random_neighbours(self, mutate, says):
        assert_found(broken(mutate=mutate), "moves", says)


def rebuilt(change):
    """The toy space, whose networks a function changes: (built, arch, full) -> built."""

    def build(self, arch, dataset, *, full=False):
        return change(Toy.build(self, arch, dataset, full=full), arch, full)

    return broken(build=build)


class TestBlocks:
    def test_are_those_of_the_slots(self):
        space = rebuilt(lambda built, arch, full: Built(built.model, ("stem",)) if full else built)
        assert_found(space, "blocks", "the full network has the blocks ('stem',), slots has ('stem', 'body')")

    @pytest.mark.parametrize(
        ("blocks", "says"),
        [
            (("stem", "bodi"), "block 'bodi' is no module of the pruned network"),
            (("body", "stem"), "in the order in which they run: at position 0 'body', expected 'stem'"),
            (("stem", "body", "body"), "slots.blocks has 'body' more than once"),
        ],
    )
    def test_exist_and_run_in_order(self, blocks, says):
        def slots(self, arch, dataset):
            return Slots(blocks, Toy.slots(self, arch, dataset).layers)

        assert_found(broken(slots=slots), "blocks", says)

    def test_run_once(self):
        def change(built, arch, full):
            model = built.model
            model.forward = lambda x: model.head(model.body(model.body(model.stem(x))).mean((2, 3)))
            return built

        assert_found(rebuilt(change), "blocks", "a forward of the pruned network; it runs 'body 2 times'")


def with_layers(*layers, common=True):
    def slots(self, arch, dataset):
        return Slots(("stem", "body"), layers)

    return broken(slots=slots) if common else broken(slots=slots, common_slots=lambda self, dataset: None)


class TestSlots:
    def test_are_somebodys(self):
        ghost = ("stem", "body.ghost", "body.layers.first", "body.layers.second", "body.dead", "head")
        assert_found(with_layers(*ghost), "layers", "'body.ghost' of common_slots in any of", sample=16)

    def test_are_filled_where_each_architecture_has_its_own(self):
        slots = ("stem", "body.layers.first", "body.layers.second", "body.dead", "head")
        assert_found(with_layers(*slots, common=False), "layers", "no layer of its full network fills")

    def test_are_in_the_order_of_the_layers(self):
        slots = ("stem", "body.layers.second", "body.layers.first", "body.dead", "head")
        assert_found(with_layers(*slots), "layers", "the other way")

    def test_hold_every_layer(self):
        slots = ("stem", "body.layers.first", "body.layers.second", "body.dead")
        assert_found(with_layers(*slots), "layers", "layer 'head' of the full network fills no slot")

    def test_hold_one_layer_each(self):
        assert_found(with_layers("stem", "body", "head"), "layers", "fill one slot, 'body'")

    def test_are_the_common_ones(self):
        def common(self, dataset):
            return Slots(("stem", "body"), ("stem", "head"))

        says = "slots.layers differs from that of common_slots: at position 1 'body.layers.first', expected 'head'"
        assert_found(broken(common_slots=common), "layers", says)

    def test_correspond_to_themselves(self):
        def correspondence(self, representative, member, dataset):
            return {slot: slot for slot in Toy.slots(self, member, dataset).layers}

        assert_found(broken(correspondence=correspondence), "correspondence", "map each slot that its pruned network")


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(4, 1, 1))

    def forward(self, x):
        return x * self.scale


class TestNetworks:
    def test_are_the_same_again(self):
        def change(built, arch, full):
            built.model.body.squash = random.choice([nn.ReLU(), nn.Sigmoid(), nn.GELU(), nn.ELU()])
            return built

        assert_found(rebuilt(change), "build", "built again it is another network")

    def test_give_a_number_for_each_class(self):
        def change(built, arch, full):
            built.model.head = Linear(4, 6)
            return built

        assert_found(rebuilt(change), "build", "must have the shape [N, 5], got [N, 6]")

    def test_that_cannot_be_built_are_named(self):
        def change(built, arch, full):
            return built if arch.first != "3" else 1 / 0

        found = [one for one in problems(rebuilt(change), 32) if one.kind == "build"]
        assert found[0].architecture.startswith("3+")
        assert found[0].message == "build(full=False) raises ZeroDivisionError: division by zero"

    def test_that_cannot_run_are_named(self):
        def change(built, arch, full):
            if arch.squash:
                built.model.head = Linear(3, 5)
            return built

        found = [one for one in problems(rebuilt(change)) if one.kind == "build"]
        assert "squashed" in found[0].architecture
        assert "the forward of the pruned network raises RuntimeError" in found[0].message

    def test_run_all_their_layers(self):
        def change(built, arch, full):
            built.model.body.dead = layer("3", 4, 4) if full else None
            built.model.body.forward = lambda x: x
            return built

        assert_found(rebuilt(change), "layers", "that its forward does not run: ")

    def test_compute_the_same_with_and_without_dead_layers(self):
        def change(built, arch, full):
            if full:
                built.model.body.squash = nn.Sigmoid()
            return built

        assert_found(rebuilt(change), "build", "its full network computes another function than the pruned one")

    def test_have_parameters_that_some_recipe_draws(self):
        def change(kind):
            def changed(built, arch, full):
                built.model.body.squash = kind()
                return built

            return changed

        assert_found(rebuilt(change(Drawing)), "init", "no recipe has a rule for parameter 'scale'")
        notes = [note.message for note in check_space(rebuilt(change(nn.PReLU)), 2).notes]
        assert any(note.startswith("the recipe kaiming_normal has no rule for parameter") for note in notes)


class TestWhatIsAskedFor:
    @pytest.mark.parametrize(
        "datasets",
        [{}, None, {"tiny": (3, 6, 6)}, {"tiny": Dataset("tiny", (3, 0, 6), 5)}, {"tiny": Dataset("tiny", (3, 6), 5)}],
    )
    def test_data_sets_have_a_shape(self, datasets):
        assert [one.kind for one in problems(broken(datasets=datasets))] == ["space"]

    def test_methods_exist(self):
        assert_found(broken(key=None), "space", "it must have a method key")
        assert_found(broken(mutate=None), "space", "it must have a method mutate")
        assert_found(broken(index=None), "space", "it must have all of __len__, __getitem__, index to be enumerated")

    @pytest.mark.parametrize(
        "options", [{"sample": 0}, {"resolution": 0}, {"dataset": "tinny"}], ids=lambda options: next(iter(options))
    )
    def test_what_means_nothing_is_refused(self, options):
        with pytest.raises(UsageError, match=next(iter(options))):
            check_space(Toy(), **options)

    @pytest.mark.parametrize(
        "method",
        ["parse", "sample", "mutate", "neighbours", "key", "size", "slots", "common_slots", "correspondence", "build"],
    )
    @pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
    def test_whatever_raises_is_a_problem(self, method, kind):
        def strange(self, *arguments, **options):
            raise kind("told to\nraise")

        found = problems(broken(**{method: strange}), 2)
        assert found and all("\n" not in str(one) for one in found)
        assert any(f"{kind.__name__}: told to" in one.message for one in found)

    @pytest.mark.parametrize(
        "method",
        ["parse", "sample", "mutate", "neighbours", "key", "size", "slots", "correspondence", "build", "index"],
    )
    def test_whatever_is_of_another_type_is_a_problem(self, method):
        assert problems(broken(**{method: lambda self, *arguments, **options: None}), 2)
