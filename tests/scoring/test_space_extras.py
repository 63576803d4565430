"""What a space offers besides is checked too; each test breaks a space with choices and cells in one way."""

import dataclasses
import random

import pytest
import torch
from toy_space import KERNELS, Pair, Toy

from zcpipe.errors import UsageError
from zcpipe.scoring.space_check import check_space


class Offering(Toy):
    """The toy space with all that searches and learned rankings may ask for."""

    choices = (len(KERNELS), len(KERNELS), 2)
    cell_codes = {"first": KERNELS, "second": KERNELS, "squash": ("no", "yes")}  # noqa: RUF012

    def choose(self, numbers):
        first, second, squash = numbers
        return Pair(KERNELS[first], KERNELS[second], bool(squash))

    def cell_code(self, arch):
        return [KERNELS.index(arch.first), KERNELS.index(arch.second), int(arch.squash)]

    def initial(self):
        return self[5]

    def mutate(self, arch, seed, i, places=1):
        return Toy.mutate(self, arch, seed, i)

    def num_layers(self, arch):
        return 3

    def published_flops(self, arch, dataset):
        return 1.5 * self.size(arch, dataset).macs


def found(**methods):
    return {(one.kind, one.message) for one in check_space(type("Broken", (Offering,), methods)(), 2).problems}


def assert_found(kind, says, **methods):
    problems = found(**methods)
    assert any(one == kind and says in message for one, message in problems), problems


def test_a_space_that_offers_all_has_no_problems():
    report = check_space(Offering(), 4)
    assert (report.problems, report.notes) == ((), ())


class TestChoices:
    @pytest.mark.parametrize("choices", [(), (4, 0, 2), (4, 2.5, 2), (4, True, 2), ("4", 4, 2)])
    def test_are_numbers_of_options(self, choices):
        assert_found("choices", "choices must be how many options each choice has", choices=choices)

    def test_make_members_of_the_space(self):
        def strangers(self, numbers):
            return Pair("5", "5", False)

        assert_found("choices", "gives '5+5', which parse refuses", choose=strangers)

    def test_make_what_has_a_position(self):
        def index(self, arch):
            position = Toy.index(self, arch)
            return position if position < 20 else position + 100

        assert_found("choices", "whose index is", index=index)

    def test_make_the_same_again(self):
        assert_found("choices", ", and then ", choose=lambda self, numbers: self[int(torch.randint(32, ()))])
        assert_found("choices", ", and then ", choose=lambda self, numbers: self[random.randrange(32)])

    def test_that_are_too_many_for_what_they_make_are_found(self):
        assert_found("choices", "raises IndexError", choices=(5, 4, 2))

    def test_of_which_most_make_nothing_are_fine(self):
        def choose(self, numbers):
            return None if numbers[2] else Offering.choose(self, numbers)

        assert found(choose=choose) == set()

    def test_that_never_make_anything_are_noted(self):
        report = check_space(type("Broken", (Offering,), {"choose": lambda self, numbers: None})(), 2)
        assert report.problems == ()
        assert [str(note) for note in report.notes] == [
            "choices: none of 40 random lists of options makes an architecture"
        ]


class TestCells:
    def test_have_a_number_for_each_choice(self):
        assert_found("cells", "has 2 numbers, cell_codes 3 choices", cell_code=lambda self, arch: [0, 0])

    @pytest.mark.parametrize("number", [4, -1, 1.5, "0", True])
    def test_have_numbers_of_what_is_there(self, number):
        said = f"an int from 0 to 3 for 'first', got {number!r}"
        assert_found("cells", said, cell_code=lambda self, arch: [number, 0, 0])

    def test_are_those_of_the_architecture_and_not_of_the_object(self):
        asked = []
        assert_found("cells", "when asked again", cell_code=lambda *_: [asked.append(1) or len(asked) % 4, 0, 0])
        assert_found("cells", "and when asked again", cell_code=lambda self, arch: [random.randrange(4), 0, 0])

    @pytest.mark.parametrize("codes", [{}, {"first": "abcd"}, {"first": ("1", "1")}, {"first": ()}, {"first": (1, 2)}])
    def test_have_choices_with_names(self, codes):
        assert_found("cells", "cell_codes ", cell_codes=codes)

    def test_that_cannot_be_told_are_named(self):
        def raises(self, arch):
            raise KeyError(arch.first)

        assert_found("cells", "cell_code(arch) raises KeyError", cell_code=raises)


class TestMovesFromANetwork:
    @pytest.mark.parametrize("layers", [0, 2.0, None])
    def test_count_layers(self, layers):
        assert_found(
            "moves", f"num_layers(arch) must be an int of at least 1, got {layers}", num_layers=lambda *_: layers
        )

    def test_stay_in_the_space_however_many_places_change(self):
        def mutate(self, arch, seed, i, places=1):
            moved = Toy.mutate(self, arch, seed, i)
            return moved if places == 1 else dataclasses.replace(moved, first="5")

        assert_found("moves", "mutate(arch, 0, 0, places=3) gives '5+", mutate=mutate)

    def test_take_the_number_of_places(self):
        assert_found("moves", "mutate(arch, 0, 0, places=3) raises TypeError", mutate=Toy.mutate)


@pytest.mark.parametrize("flops", [0, -1.0, float("nan"), float("inf")])
def test_published_flops_are_positive_numbers(flops):
    assert_found("size", "published_flops(arch, 'tiny') must be a positive number", published_flops=lambda *_: flops)


def test_whatever_raises_is_a_problem():
    def strange(self, *arguments, **options):
        raise UsageError("told to raise")

    for method in ("choose", "cell_code", "initial", "num_layers", "published_flops"):
        assert any("told to raise" in message for _, message in found(**{method: strange}))
    for name, kind in (("choices", "choices"), ("cell_codes", "cells")):
        problems = found(**{name: property(strange), "key": lambda self, arch: 7})
        assert any(one == kind and "told to raise" in message for one, message in problems)
        assert any(one == "key" for one, _ in problems), "the others are asked all the same"
