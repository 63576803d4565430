"""The same search under several seeds: one after the other, or at once where nothing is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from zcpipe.parzc.parallel import HERE, Pool, Progress, as_done
from zcpipe.run.rows import one_thread
from zcpipe.search.journal import Journal, Record
from zcpipe.search.loop import Outcome, Search, Trial, run, train, trial_of
from zcpipe.spaces.base import Architecture

A = TypeVar("A", bound=Architecture)


def search_seeds(
    search: Search[A],
    seeds: Sequence[int],
    journal: Journal,
    pool: Pool = HERE,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Search once under each seed.

    Trainings that are measured are recorded one by one, and seeds follow one another in this process; where accuracies
    are looked up, a seed is recorded when it is done.

    Args:
        search: what, among what, how.
        seeds: each once.
        journal: of the search; what it holds is not done again.
        pool: where to look accuracies up.
        progress: told (models trained so far, models in all).

    Returns:
        The outcomes, in the order of the seeds, the same whatever the pool.

    Raises:
        TrainingError: a training failed and is not to be passed over; what came before is recorded.
        ZcpipeError: what an algorithm raises.
    """
    total = len(seeds) * search.budget.trained
    found = {} if search.accuracy.measured else _finished(search, journal)
    left = [seed for seed in seeds if seed not in found]

    def tell(trained: int) -> None:  # of the seeds that are not found yet
        if progress is not None:
            done = sum(seed in found for seed in seeds)
            progress(done * search.budget.trained + trained, total)

    for number, outcome in _outcomes(search, left, journal, pool, tell):
        found[left[number]] = outcome
        if not search.accuracy.measured:
            journal.append(_record(search, outcome))
        tell(0)
    return [found[seed] for seed in seeds]


def _outcomes(
    search: Search[A], seeds: Sequence[int], journal: Journal, pool: Pool, tell: Callable[[int], None]
) -> Iterator[tuple[int, Outcome]]:
    if search.accuracy.measured:
        for number, seed in enumerate(seeds):  # with all threads, which training may use
            yield number, _measure(search, seed, journal, tell)
    elif pool.workers is None and pool.cluster is None:
        for number, seed in enumerate(seeds):
            yield number, _look_up(search, seed, journal, tell)
    else:
        yield from as_done(run, search, seeds, pool, one_thread)


def _measure(search: Search[A], seed: int, journal: Journal, tell: Callable[[int], None]) -> Outcome:
    known = {
        record["arch"]: trial_of(record)
        for record in journal.found
        if record["kind"] == "trained" and record["seed"] == seed
    }
    return run(search, seed, known, lambda trial: journal.append(trial.record(seed)), tell)


def _look_up(search: Search[A], seed: int, journal: Journal, tell: Callable[[int], None]) -> Outcome:
    def note(trial: Trial) -> None:
        if trial.failure:
            journal.append(trial.record(seed))

    with one_thread():
        return run(search, seed, record=note, progress=tell)


def _finished(search: Search[A], journal: Journal) -> dict[int, Outcome]:
    """Return the outcomes of seeds that earlier processes finished within the same budget."""
    return {
        record["seed"]: Outcome(
            record["seed"],
            tuple(train(search, search.candidates.space.parse(text)) for text in record["archs"]),
            record["ended"],
        )
        for record in journal.found
        if record["kind"] == "seed" and record["budget"] == _budget(search)
    }


def _record(search: Search[A], outcome: Outcome) -> Record:
    """Return what a journal holds of a finished seed: what came of each training can be looked up again."""
    archs = [trial.arch for trial in outcome.trials]
    return {"kind": "seed", "seed": outcome.seed, "budget": _budget(search), "archs": archs, "ended": outcome.ended}


def _budget(search: Search[A]) -> list[float | None]:
    return [search.budget.trained, search.budget.seconds]
