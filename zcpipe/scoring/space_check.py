"""Whether a space keeps its contract, asked of a few architectures before a run scores thousands.

A space that does not keep it mostly makes no errors: a key that leaves out a choice gives networks the scores of
others, a slot in the wrong place names the wrong layer. `check_space` finds what can be found by asking: see
`zcpipe.spaces.base` for the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from zcpipe.errors import UsageError, asking, unknown_name
from zcpipe.scoring.space_elsewhere import compare_processes
from zcpipe.scoring.space_extras import ExtraChecks
from zcpipe.scoring.space_findings import Finding, Findings, spread
from zcpipe.scoring.space_functions import Functions
from zcpipe.scoring.space_members import Keyed, Member, MemberChecks
from zcpipe.scoring.space_networks import NetworkChecks
from zcpipe.spaces.base import Architecture, EnumerableSpace, LimitsResolution, MovesFromNetwork, Space

SAMPLE = 20
_SHOWN = 3  # problems of each kind
_PAIRS = 2  # of one key that are compared for each architecture
_CLASS = 2  # others of a key that are compared with the first among all samples


@dataclass(frozen=True)
class Report:
    """What was found of a space.

    Attributes:
        space: its name.
        dataset: for which networks were built.
        resolution: side of the images of forwards that compute something, None for the data set's own.
        architectures: how many draws were checked.
        neighbours: and how many of their neighbours' networks.
        compared: pairs with one key, whose networks' outputs were compared.
        problems: where the space does not keep its contract.
        notes: what its user should know of and does no harm.
    """

    space: str
    dataset: str
    resolution: int | None
    architectures: int
    neighbours: int
    compared: int
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    def lines(self) -> list[str]:
        """Say what was found: the first problems of each kind, the notes, and how much was checked."""
        kinds: dict[str, list[Finding]] = {}
        for problem in self.problems:
            kinds.setdefault(problem.kind, []).append(problem)
        lines: list[str] = []
        for kind, of_kind in kinds.items():
            lines += map(str, of_kind[:_SHOWN])
            if (left := len(of_kind) - _SHOWN) > 0:
                lines.append(f"{kind}: {left} more, which --json has")
        lines += [f"note: {note}" for note in self.notes]
        count = len(self.problems)
        verdict = "no problem found" if not count else "1 problem" if count == 1 else f"{count} problems"
        return [
            *lines,
            f"{self.space} on {self.dataset}: {self.architectures} architectures and {self.neighbours} neighbours "
            f"checked, {self.compared} pairs with one key compared: {verdict}",
        ]


def check_space(
    space: Space[Architecture],
    sample: int = SAMPLE,
    dataset: str | None = None,
    resolution: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Check on random architectures and some of their neighbours that a space keeps its contract.

    Whatever the space raises is a problem of the report.

    Args:
        space: anything that should be a `zcpipe.spaces.base.Space`.
        sample: how many architectures are drawn.
        dataset: for which networks are built; by default the space's first.
        resolution: side of the images on which networks with one key are compared; by default the data set's own, or
            64 where that is larger and the networks take it. Everything else is checked at the data set's own.
        progress: told (architectures done, architectures in all).

    Raises:
        UsageError: ``sample`` or ``resolution`` is below 1, or the space has no such data set or resolution.
    """
    for option, value in (("sample", sample), ("resolution", resolution)):
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, got {value}")
    findings = Findings()
    members = MemberChecks(space, findings)
    name = str(getattr(space, "name", type(space).__name__))
    whole = False
    with findings.asking("space", None, "asking for what every space has"):
        whole = members.space()
    if not whole:
        return Report(name, dataset or "", resolution, 0, 0, 0, findings.problems, findings.notes)
    dataset = next(iter(space.datasets)) if dataset is None else dataset
    if dataset not in space.datasets:
        raise unknown_name("dataset", dataset, space.datasets)
    if resolution is not None and isinstance(space, LimitsResolution):
        with asking(name, f"whether it takes images of {resolution} pixels"):
            space.check_resolution(resolution)
    functions = Functions(space, dataset, resolution, findings)
    checks = _Checks(members, NetworkChecks(space, dataset, functions, findings), functions)
    drawn: list[Member] = []
    with _one_thread(), findings.asking("space", None, "a question"):
        drawn += members.draws(sample, dataset)
        members.texts(drawn)
        members.positions(drawn)
        drawn = [*_initial(space, members, findings), *drawn]
        extras = ExtraChecks(space, dataset, members, findings, sample)
        for i, member in enumerate(drawn):
            extras.check(member)
            checks.check(member, i)
            progress(i + 1, len(drawn))
        checks.finish(len(space) if isinstance(space, EnumerableSpace) else None)
        compare_processes(space, dataset, [member.text for member in drawn], findings)
    return Report(
        space=name,
        dataset=dataset,
        resolution=functions.side,
        architectures=len(drawn),
        neighbours=checks.neighbours,
        compared=functions.compared,
        problems=findings.problems,
        notes=findings.notes,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute as a run does: small networks gain nothing from more threads, and lose much beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _initial(space: Space[Architecture], members: MemberChecks, findings: Findings) -> list[Member]:
    """Return the network with which searches start, where a space has one."""
    if isinstance(space, MovesFromNetwork):
        with findings.asking("moves", None, "initial()"):
            member = members.member(space.initial())
            return [] if member is None else [member]
    return []


class _Checks:
    """All that is asked of one architecture after the other."""

    def __init__(self, members: MemberChecks, networks: NetworkChecks, functions: Functions) -> None:
        self._members = members
        self._networks = networks
        self._functions = functions
        self._drawn: list[Keyed] = []
        self._checked: dict[str, bool] = {}  # by text: whether the networks could be built
        self._compared: set[tuple[str, str]] = set()
        self.neighbours = 0

    def check(self, member: Member, turn: int) -> None:
        """Check a member's key and networks, its neighbours, and what shares a key among them."""
        keyed = self._members.key(member)
        if not self._network(member):
            return
        mutated, listed = self._members.moves(member, turn)
        for neighbour in mutated[:1]:
            self.neighbours += neighbour.text not in self._checked
            self._network(neighbour, compared=False)
        if keyed is None:
            return
        self._drawn.append(keyed)
        near = {one.text: one for one in (*mutated, *listed)}.values()
        pairs = _pairs([keyed, *(one for one in map(self._members.key, near) if one is not None)])
        with_member = [pair for pair in pairs if pair[0] is keyed]
        others = [pair for pair in pairs if pair[0] is not keyed]
        self._compare([*spread(with_member, _PAIRS, turn), *spread(others, 1, turn)])

    def _network(self, member: Member, compared: bool = True) -> bool:
        if member.text not in self._checked:
            self._checked[member.text] = self._networks.network(member, compared)
        return self._checked[member.text]

    def finish(self, members: int | None) -> None:
        """Check what only all draws together show.

        Args:
            members: how many the space has, None where that is not known.
        """
        self._networks.ghosts(members)
        pairs = _pairs(self._drawn)
        self._compare([pair for pair in pairs if pair[1] in [p[1] for p in pairs if p[0] is pair[0]][:_CLASS]])

    def _compare(self, pairs: Iterable[tuple[Keyed, Keyed]]) -> None:
        for one, other in pairs:
            texts = (one.member.text, other.member.text)
            if texts not in self._compared and texts[::-1] not in self._compared:
                self._compared.add(texts)
                self._functions.compare(one, other)


def _pairs(members: Iterable[Keyed]) -> list[tuple[Keyed, Keyed]]:
    """Pair the first with a key with all others that have it."""
    first: dict[str, Keyed] = {}
    pairs = []
    for member in members:
        if first.setdefault(member.key, member) is not member:
            pairs.append((first[member.key], member))
    return pairs
