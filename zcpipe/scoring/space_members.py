"""Checks of what a space says about its members without a network: texts, hashes, draws, positions, moves, keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from zcpipe.errors import UsageError, reason_of
from zcpipe.scoring.space_findings import Findings, Kind, drawn_from, other_random_states, random_states, shown, spread
from zcpipe.spaces.base import Architecture, DrawsByDataset, EnumerableSpace, KeyedAtOnce, Space
from zcpipe.spaces.declared import faults

_DRAWS_AT_LEAST = 200  # that are looked through for repeats, where they can be counted
_POSITIONS = 50  # that are looked at in a space's own order
_MEMBERS = 50  # of the neighbours of one architecture that are looked at as members
_KEYED = 200  # and as those that may share a key
_ALL_KEYS_MOST = 20_000


@dataclass(frozen=True)
class Member:
    """An architecture with its text, by which checks know it: its hash may be what is wrong."""

    arch: Architecture
    text: str


@dataclass(frozen=True)
class Keyed:
    """A member and its key."""

    member: Member
    key: str


class MemberChecks:
    """Asks a space about its members; what it finds goes to ``findings``."""

    def __init__(self, space: Space[Architecture], findings: Findings) -> None:
        self._space = space
        self._findings = findings
        self._all_keys: Sequence[str] | None = None
        self._asked_all_keys = False

    def space(self) -> bool:
        """Check what every space has, as is done where a package offers one; return whether it has all."""
        fault = next(faults(self._space), None)
        if fault is not None:
            self._findings.problem("space", None, fault)
            return False
        for name, dataset in self._space.datasets.items():
            said = f"data set {name!r} calls itself {dataset.name!r}"
            self._findings.require(dataset.name == name, "space", None, said)
        return True

    def draws(self, n: int, dataset: str) -> list[Member]:
        """Draw members under seed 0, twice; return the distinct ones."""
        found, space = self._findings, self._space
        draw: Callable[[int], Architecture] = partial(space.sample, 0)
        if isinstance(space, DrawsByDataset):
            draw = partial(space.sample_for, dataset, 0)
        whole = None
        if isinstance(space, EnumerableSpace):
            with found.asking("index", None, "len(space)"):
                whole = len(space)
        drawn: dict[int, Member] = {}
        before = random_states()
        wanted = range(n if whole is None else min(n, whole))
        for i in wanted:
            with found.asking("sample", None, f"sample(0, {i})"):
                member = self.member(draw(i))
                if member is not None:
                    drawn[i] = member
        self._no_global_draws(before, "sample", None, "sample")
        with other_random_states(1):
            for i in reversed(drawn):  # a draw needs no earlier one
                with found.asking("sample", drawn[i].text, f"sample(0, {i}) for the second time"):
                    again = str(draw(i))
                    said = f"sample(0, {i}) gives {shown(again)} for the second time"
                    found.require(again == drawn[i].text, "sample", drawn[i].text, said)
        if whole is not None:
            self._without_replacement(draw, min(whole, max(n, _DRAWS_AT_LEAST)), whole)
        distinct = {member.text: member for member in drawn.values()}
        if len(drawn) > 4 and len(distinct) == 1 and (whole is None or whole > 1):
            found.note("sample", None, f"{len(drawn)} draws under one seed are all the same architecture")
        return list(distinct.values())

    def _without_replacement(self, draw: Callable[[int], Architecture], n: int, whole: int) -> None:
        first: dict[str, int] = {}
        with self._findings.asking("sample", None, "sampling without replacement"):
            for i in range(n):
                text = str(draw(i))
                if text in first:
                    said = f"drawn as {first[text]} and {i} of {whole}; draws of an enumerable space must be distinct"
                    self._findings.problem("sample", text, said)
                    return
                first[text] = i

    def _no_global_draws(self, before: dict[str, object], kind: Kind, text: str | None, what: str) -> None:
        for whose in drawn_from(before):
            said = f"{what} changes the global random state of {whose}; draw from the arguments alone"
            self._findings.problem(kind, text, said)

    def member(self, arch: Architecture) -> Member | None:
        """Give an architecture its text; None where it has none, which is a problem by then."""
        found = self._findings
        with found.asking("text", f"a {type(arch).__name__}", "str(arch)"):
            text = str(arch)
            if found.require(text.splitlines() == [text], "text", text, "a text must be one line that is not empty"):
                return Member(arch, text)
        return None

    def texts(self, members: Sequence[Member]) -> None:
        """Check that texts, equality and hashes belong together."""
        found = self._findings
        for member in members:
            self._text(member)
        for one, other in pairwise(members):
            with found.asking("hash", one.text, "comparing it"):
                said = f"it equals {shown(other.text)}, which has another text"
                found.require(one.arch != other.arch, "hash", one.text, said)
        nonsense = "no architecture?"
        try:
            read = self._space.parse(nonsense)
        except UsageError:
            return
        except Exception as error:
            said = f"parse({nonsense!r}) must raise UsageError, got {reason_of(error)}"
            found.problem("text", None, said)
            return
        found.problem("text", None, f"parse({nonsense!r}) must raise UsageError, got {shown(repr(read))}")

    def _text(self, member: Member) -> None:
        """Check one member's text, and that what is read from it is the member."""
        found, arch, text = self._findings, member.arch, member.text
        with found.asking("text", text, "parse(str(arch))"):
            read = self._space.parse(text)
            said = f"what is read from its text has another: {shown(str(read))}"
            if found.require(str(read) == text, "text", text, said):
                said = f"parse(str(arch)) does not equal it: {shown(repr(read))}"
                found.require(bool(read == arch), "text", text, said)
                with found.asking("hash", text, "hash(arch)"):
                    said = "it equals parse(str(arch)) with another hash"
                    found.require(read != arch or hash(read) == hash(arch), "hash", text, said)
                    hash(arch)

    def positions(self, members: Sequence[Member]) -> None:
        """Check that positions and members of an enumerable space belong together."""
        found, space = self._findings, self._space
        if not isinstance(space, EnumerableSpace):
            return
        whole = 0
        with found.asking("index", None, "len(space)"):
            whole = len(space)
            found.require(whole > 0, "index", None, f"a space has members, got a length of {whole}")
        for member in members:
            self._position(space, member, whole)
        texts: dict[str, int] = {}
        for i in dict.fromkeys((*spread(range(whole), _POSITIONS), *([whole - 1] if whole else []))):
            with found.asking("index", None, f"the member at position {i} of {whole}"):
                arch = space[i]
                text = str(arch)
                position = space.index(arch)
                if text in texts:
                    found.problem("index", text, f"it is at positions {texts[text]} and {i}")
                elif position != i:
                    found.problem("index", text, f"it is at position {i}, but its index is {position!r}")
                texts[text] = i
        self._end(space, whole)

    def _position(self, space: EnumerableSpace[Architecture], member: Member, whole: int) -> None:
        found, text = self._findings, member.text
        with found.asking("index", text, "its index"):
            position = space.index(member.arch)
            integral = isinstance(position, int) and not isinstance(position, bool)
            said = f"its index must be an int from 0 to {whole - 1}, got {position!r}"
            if found.require(integral and 0 <= position < whole, "index", text, said):
                there = str(space[position])
                said = f"its index is {position}, but there is {shown(there)}"
                found.require(there == text, "index", text, said)

    def _end(self, space: EnumerableSpace[Architecture], whole: int) -> None:
        """See whether there are members behind the last."""
        try:
            beyond = space[whole]
            text = str(beyond)
            is_member = str(space.parse(text)) == text and space.index(beyond) == whole
        except Exception:  # as it should be: whatever a space says of what is none of its members
            return
        said = f"it is at position {whole}, where by len(space) = {whole} there is no member"
        self._findings.require(not is_member, "index", text, said)

    def moves(self, member: Member, turn: int) -> tuple[list[Member], list[Member]]:
        """Check the neighbours of a member.

        Returns:
            Some of its random neighbours, and those of all neighbours whose keys are to be looked at.
        """
        return self._mutated(member), self._listed(member, turn)

    @contextmanager
    def _moving(self, method: str, text: str) -> Iterator[None]:
        """A space without moves says so by NotImplementedError; whatever else it raises is a problem."""
        with self._findings.asking("moves", text, method):
            try:
                yield
            except NotImplementedError:
                said = f"{method} is not implemented: the space can be scored, not searched by moves"
                self._findings.note("moves", None, said)

    def _mutated(self, member: Member) -> list[Member]:
        found, text = self._findings, member.text
        moved: list[Architecture] = []
        chosen: list[Member] = []
        with self._moving("mutate(arch, 0, i)", text):
            before = random_states()
            moved = [self._space.mutate(member.arch, 0, i) for i in range(2)]
            self._no_global_draws(before, "moves", text, "mutate")
        for i, arch in enumerate(moved):
            neighbour = self.member(arch)
            if neighbour is None:
                continue
            with found.asking("moves", text, f"mutate(arch, 0, {i}) for the second time"), other_random_states(2):
                again = str(self._space.mutate(member.arch, 0, i))
                said = f"mutate(arch, 0, {i}) gives {shown(neighbour.text)}, and then {shown(again)}"
                found.require(again == neighbour.text, "moves", text, said)
            if neighbour.text == text:
                found.problem("moves", text, f"mutate(arch, 0, {i}) gives the architecture itself")
            elif self.is_member(neighbour, f"mutate(arch, 0, {i})", text, "moves"):
                chosen.append(neighbour)
        return chosen

    def _listed(self, member: Member, turn: int) -> list[Member]:
        found, text = self._findings, member.text
        listed: list[Architecture] = []
        again: list[str] = []
        with self._moving("neighbours(arch)", text):
            before = random_states()
            once = list(self._space.neighbours(member.arch))
            self._no_global_draws(before, "moves", text, "neighbours")
            with other_random_states(3):
                again = list(map(str, self._space.neighbours(member.arch)))
            listed = once
        known = [neighbour for neighbour in map(self.member, listed) if neighbour is not None]
        texts = [neighbour.text for neighbour in known]
        found.require(again == texts, "moves", text, "neighbours(arch) differ, or their order, when asked for twice")
        found.require(text not in texts, "moves", text, "neighbours(arch) contain the architecture itself")
        twice = next((one for one in texts if texts.count(one) > 1), None) if len(set(texts)) < len(texts) else None
        found.require(twice is None, "moves", text, f"neighbours(arch) contain {shown(twice or '')} more than once")
        others = [neighbour for neighbour in known if neighbour.text != text]
        lost = {
            neighbour.text
            for neighbour in spread(others, _MEMBERS, turn)
            if not self.is_member(neighbour, "neighbours(arch)", text, "moves")
        }
        return spread([neighbour for neighbour in others if neighbour.text not in lost], _KEYED, turn)

    def is_member(self, given: Member, source: str, text: str | None, kind: Kind) -> bool:
        """Whether what the space gives is in it: its text can be read, and where members have positions it has one.

        Args:
            given: what is asked about.
            source: the call that gave it.
            text: of the architecture that the call was about, if any.
            kind: of the problem that it is otherwise.
        """
        found, space = self._findings, self._space
        try:
            read = str(space.parse(given.text))
        except Exception as error:
            said = f"{source} gives {shown(given.text)}, which parse refuses: {reason_of(error)}"
            return found.require(False, kind, text, said)
        said = f"{source} gives {shown(given.text)}, which parse reads as {shown(read)}"
        fine = found.require(read == given.text, kind, text, said)
        if isinstance(space, EnumerableSpace):
            with found.asking(kind, text, f"the index of {shown(given.text)} from {source}"):
                position, whole = space.index(given.arch), len(space)
                said = f"{source} gives {shown(given.text)}, whose index is {position!r}, not from 0 to {whole - 1}"
                fine &= found.require(0 <= position < whole, kind, text, said)
        return fine

    def key(self, member: Member) -> Keyed | None:
        """Ask for a member's key, twice."""
        found, space, text = self._findings, self._space, member.text
        with found.asking("key", text, "its key"):
            key = space.key(member.arch)
            if not found.require(isinstance(key, str), "key", text, f"its key must be a str, got {key!r}"):
                return None
            with other_random_states(4):
                again = space.key(member.arch), space.key(space.parse(text))
            differs = next((shown(str(one)) for one in again if one != key), None)
            said = f"its key is {shown(key)}, and when asked again {differs}"
            if found.require(differs is None, "key", text, said):
                self._among_all(member, key)
                return Keyed(member, key)
        return None

    def _among_all(self, member: Member, key: str) -> None:
        space, found = self._space, self._findings
        if not (isinstance(space, EnumerableSpace) and isinstance(space, KeyedAtOnce)):
            return
        if not self._asked_all_keys:
            self._asked_all_keys = True
            with found.asking("key", None, "all_keys()"):
                if len(space) <= _ALL_KEYS_MOST:
                    keys = space.all_keys()
                    said = f"all_keys() gives {len(keys)} keys for {len(space)} members"
                    if found.require(len(keys) == len(space), "key", None, said):
                        self._all_keys = keys
        if self._all_keys is not None:
            theirs = self._all_keys[space.index(member.arch)]
            said = f"its key is {shown(key)}, but in all_keys() {shown(theirs)}"
            found.require(theirs == key, "key", member.text, said)
