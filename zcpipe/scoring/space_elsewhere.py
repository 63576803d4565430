"""Whether a space says the same in every process: a run asks it in many, and a resumed run in others than before.

What depends on the order of a set of texts or on ``hash`` is the same for as long as one process asks; so two more are
asked here, in which texts have other hashes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from itertools import zip_longest

from zcpipe.errors import CapabilityError
from zcpipe.registry import import_path
from zcpipe.scoring.space_findings import Findings, Kind, shown
from zcpipe.spaces import get_space, list_spaces
from zcpipe.spaces.base import Architecture, DescribesCells, DrawsByDataset, Slots, Space

_SEEDS = ("1", "2")  # of the hashes of texts
_START = "from zcpipe.scoring.space_elsewhere import answer; answer()"

Answers = dict[str, list[str]]  # what was asked for -> what came, as texts
_Question = Callable[[Space[Architecture], Architecture, str], Iterable[str]]


def _network(space: Space[Architecture], arch: Architecture, dataset: str) -> list[str]:
    built = space.build(arch, dataset)
    return [*built.blocks, *(f"{name} {tuple(p.shape)}" for name, p in built.model.named_parameters())]


def _names(slots: Slots | None) -> list[str]:
    return [] if slots is None else [*slots.blocks, *slots.layers]


def _cells(space: Space[Architecture], arch: Architecture, _: str) -> list[str]:
    if not isinstance(space, DescribesCells):
        return []
    chosen = zip(space.cell_codes.items(), space.cell_code(arch), strict=True)
    return [f"{choice} {symbols[number]}" for (choice, symbols), number in chosen]


_QUESTIONS: Mapping[str, tuple[Kind, _Question]] = {
    "its key": ("key", lambda space, arch, _: [space.key(arch)]),
    "mutate(arch, 0, 0)": ("moves", lambda space, arch, _: [str(space.mutate(arch, 0, 0))]),
    "neighbours(arch)": ("moves", lambda space, arch, _: map(str, space.neighbours(arch))),
    "its slots": ("layers", lambda space, arch, dataset: _names(space.slots(arch, dataset))),
    "its network": ("build", _network),
    "its cells": ("cells", _cells),
}
_DRAWS, _COMMON = "sample(0, i)", "common_slots"
_KINDS: Mapping[str, Kind] = {_DRAWS: "sample", _COMMON: "layers", **{what: k for what, (k, _) in _QUESTIONS.items()}}


def compare_processes(space: Space[Architecture], dataset: str, texts: Sequence[str], findings: Findings) -> None:
    """Ask an installed space about its draws and about some architectures, here and in two other processes.

    Args:
        space: one that is not what other processes find installed under its name is not asked.
        dataset: for which networks are built.
        texts: of the architectures; as many are drawn.
        findings: where it goes if the processes differ.
    """
    if space.name not in list_spaces() or get_space(space.name) is not space:
        return
    request = json.dumps({"space": space.name, "dataset": dataset, "texts": list(texts)})
    with ThreadPoolExecutor(len(_SEEDS)) as pool:
        others = [pool.submit(_ask_another, seed, request) for seed in _SEEDS]
        here = _answers(space, dataset, texts)
        for other in others:
            with findings.asking("space", None, "asking it in another process"):
                for text, ours, theirs in zip((None, *texts), here, other.result(), strict=True):
                    _compare(text, ours, theirs, findings)


def answer() -> None:
    """Answer the request that is on standard input: all that such a process does."""
    request = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):  # what a space prints is no answer
        answers = _answers(get_space(request["space"]), request["dataset"], request["texts"])
    json.dump(answers, sys.stdout)


def _ask_another(seed: str, request: str) -> list[Answers]:
    done = subprocess.run(  # noqa: S603 - our own module in our own interpreter
        [sys.executable, "-P", "-c", _START],
        env={**os.environ, "PYTHONPATH": import_path(), "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        input=request,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CapabilityError(": ".join([f"it ended with code {done.returncode}", *done.stderr.splitlines()[-1:]]))
    answers: list[Answers] = json.loads(done.stdout)
    return answers


def _answers(space: Space[Architecture], dataset: str, texts: Sequence[str]) -> list[Answers]:
    """Return what is said of the space itself, then of each architecture."""
    draw = partial(space.sample_for, dataset, 0) if isinstance(space, DrawsByDataset) else partial(space.sample, 0)
    of_space = {
        **_answer(_DRAWS, lambda: (str(draw(i)) for i in range(len(texts)))),
        **_answer(_COMMON, lambda: _names(space.common_slots(dataset))),
    }
    return [of_space, *(_answers_of(space, dataset, text) for text in texts)]


def _answers_of(space: Space[Architecture], dataset: str, text: str) -> Answers:
    def ask(question: _Question) -> Iterable[str]:
        return question(space, space.parse(text), dataset)

    answers: Answers = {}
    for what, (_, question) in _QUESTIONS.items():
        answers |= _answer(what, partial(ask, question))
    return answers


def _answer(what: str, ask: Callable[[], Iterable[str]]) -> Answers:
    try:
        return {what: list(map(str, ask()))}
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a space is anybody's code; that it raises is found by other checks
        return {what: [type(error).__name__]}


def _compare(text: str | None, ours: Answers, theirs: Answers, findings: Findings) -> None:
    for what, here in ours.items():
        differing = (
            f"{shown(one or '')} and {shown(other or '')}"
            for one, other in zip_longest(here, theirs[what])
            if one != other
        )
        first = next(differing, None)
        said = f"{what} is not the same in every process: {first}; does it depend on the order of a set, or on hash?"
        findings.require(first is None, _KINDS[what], text, said)
