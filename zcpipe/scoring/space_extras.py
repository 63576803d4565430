"""Checks of what a space offers besides, for searches and learned rankings: choices, cells, moves from a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import SupportsIndex

from zcpipe.ops.philox import Stream
from zcpipe.scoring.space_findings import Findings, other_random_states, shown
from zcpipe.scoring.space_members import Member, MemberChecks
from zcpipe.spaces.base import Architecture, DescribesCells, MadeOfChoices, MovesFromNetwork, PublishedFlops, Space

_CHOSEN = 40  # lists of options that are looked at


class ExtraChecks:
    """Asks a space about what it need not offer; what it finds goes to ``findings``."""

    def __init__(
        self, space: Space[Architecture], dataset: str, members: MemberChecks, findings: Findings, turns: int
    ) -> None:
        self._space = space
        self._dataset = dataset
        self._members = members
        self._findings = findings
        self._sizes: list[int] | None = None
        # Whether a space offers something is asked of its properties, too, which may raise.
        with findings.asking("choices", None, "choices"):
            if isinstance(space, MadeOfChoices):
                self._choices(space, max(_CHOSEN, turns))
        with findings.asking("cells", None, "cell_codes"):
            if isinstance(space, DescribesCells):
                self._sizes = self._symbols(space)

    def check(self, member: Member) -> None:
        """Check what the space says besides of one member."""
        space = self._space
        if self._sizes is not None:
            with self._findings.asking("cells", member.text, "cell_codes"):
                if isinstance(space, DescribesCells):
                    self._cell(space, member, self._sizes)
        if isinstance(space, MovesFromNetwork):
            self._moves(space, member)
        if isinstance(space, PublishedFlops):
            with self._findings.asking("size", member.text, "published_flops(arch, dataset)"):
                flops = space.published_flops(member.arch, self._dataset)
                said = f"published_flops(arch, {self._dataset!r}) must be a positive number, got {flops!r}"
                self._findings.require(0 < flops < math.inf, "size", member.text, said)

    def _choices(self, space: MadeOfChoices[Architecture], turns: int) -> None:
        found, counts = self._findings, list(space.choices)
        fine = bool(counts) and all(_is_count(count) for count in counts)
        said = f"choices must be how many options each choice has, ints of at least 1, got {counts!r}"
        if not found.require(fine, "choices", None, said):
            return
        streams = (Stream.of(0, self._space.name, str(i), 0, "choices") for i in range(len(counts)))
        columns = [draws.integers(turns, int(n)).tolist() for draws, n in zip(streams, counts, strict=True)]
        made = [self._choose(space, numbers) for numbers in map(list, zip(*columns, strict=True))]
        if not any(made):
            found.note("choices", None, f"none of {turns} random lists of options makes an architecture")

    def _choose(self, space: MadeOfChoices[Architecture], numbers: Sequence[int]) -> bool:
        """Check what options make; return whether that is an architecture."""
        found, source = self._findings, f"choose({list(numbers)})"
        with found.asking("choices", None, source):
            arch = space.choose(numbers)
            with other_random_states(5):
                again = space.choose(numbers)
            said = f"{source} gives {shown(str(arch))}, and then {shown(str(again))}"
            if not found.require(str(arch) == str(again), "choices", None, said) or arch is None:
                return arch is not None
            member = self._members.member(arch)
            if member is not None:
                self._members.is_member(member, source, None, "choices")
            return True
        return False

    def _symbols(self, space: DescribesCells[Architecture]) -> list[int] | None:
        """Return how many options each choice of the cells has."""
        found, sizes = self._findings, []
        for choice, symbols in space.cell_codes.items():
            said = f"cell_codes must have texts by name, each once, got {symbols!r} for {choice!r}"
            texts = (
                isinstance(choice, str) and not isinstance(symbols, str) and all(isinstance(s, str) for s in symbols)
            )
            if not found.require(texts and 0 < len(symbols) == len(set(symbols)), "cells", None, said):
                return None
            sizes.append(len(symbols))
        return sizes if found.require(bool(sizes), "cells", None, "cell_codes has no choice") else None

    def _cell(self, space: DescribesCells[Architecture], member: Member, sizes: Sequence[int]) -> None:
        found, text = self._findings, member.text
        with found.asking("cells", text, "cell_code(arch)"):
            code = list(space.cell_code(member.arch))
            said = f"cell_code(arch) has {len(code)} numbers, cell_codes {len(sizes)} choices"
            if not found.require(len(code) == len(sizes), "cells", text, said):
                return
            for number, size, choice in zip(code, sizes, space.cell_codes, strict=True):
                said = f"cell_code(arch) must have an int from 0 to {size - 1} for {choice!r}, got {number!r}"
                found.require(_is_count(number, 0) and number < size, "cells", text, said)
            with other_random_states(6):
                again = list(space.cell_code(space.parse(text)))
            found.require(again == code, "cells", text, f"cell_code(arch) is {code}, and when asked again {again}")

    def _moves(self, space: MovesFromNetwork[Architecture], member: Member) -> None:
        found, text = self._findings, member.text
        with found.asking("moves", text, "num_layers(arch)"):
            layers = space.num_layers(member.arch)
            said = f"num_layers(arch) must be an int of at least 1, got {layers!r}"
            found.require(_is_count(layers), "moves", text, said)
        source = "mutate(arch, 0, 0, places=3)"
        with found.asking("moves", text, source):
            moved = self._members.member(space.mutate(member.arch, 0, 0, places=3))
            if moved is not None:
                self._members.is_member(moved, source, text, "moves")


def _is_count(number: object, least: int = 1) -> bool:
    """Whether this is an int of at least so many; numpy's are as good."""
    return isinstance(number, SupportsIndex) and not isinstance(number, bool) and index(number) >= least
