"""AZ-NAS's search on the command line; a part of `zcpipe.cli_search`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from zcpipe.cli_search_options import AZNAS, Live, exit_if_failed, note_missing, note_unknown, tell
from zcpipe.printing import counted, finite, number, print_grid, print_json

if TYPE_CHECKING:
    from zcpipe.search import AzNasFound, AzNasSpec, TruthAccuracy
    from zcpipe.table import Table

_SHOWN = 10  # picks that are printed

Pick = dict[str, Any]


def search_aznas(
    fields: Mapping[str, Any],
    proxies: str,
    source: Live | Table,
    costs: Mapping[str, Any],
    accuracy: TruthAccuracy | None,
    out: Path,
    as_json: bool,
) -> None:
    """Search by scores, and print what was found; the exit code is 3 where candidates lack any.

    Args:
        fields: of the search's spec, but for how candidates are scored.
        proxies: what is aggregated.
        source: of the scores.
        costs: of the front (`zcpipe.cli_search_options.make_costs`).
        accuracy: what is reported of the picks.
        out: the search's directory.
        as_json: print JSON.
    """
    from zcpipe.progress import candidates_done
    from zcpipe.proxies import resolve
    from zcpipe.run import RunSpec
    from zcpipe.search import AzNasSpec, TableScores, aznas_search
    from zcpipe.search.aznas import HISTORY

    names = tuple(proxy.name for proxy in resolve(proxies))
    run = source.spec(names) if isinstance(source, Live) else RunSpec.of(source.identity, names)
    spec = AzNasSpec.model_validate({**fields, "run": run})
    _note_sub_space(spec)
    with candidates_done("searching") as progress:
        ask = partial(aznas_search, spec, out, costs=costs["costs"], latency=costs["latency"], progress=progress)
        if isinstance(source, Live):
            found = ask(source.workers, source.timeout, tell, cluster=source.cluster, memory=source.memory)
        else:
            table = TableScores.read(source, names)
            note_missing(table)
            found = ask(table=table)
    picks = _judged(found.picks(), accuracy)
    _note(found, picks, accuracy)
    note_unknown(found.costs.unknown({arch for one in found.searches for arch in one.archs}), "candidate")
    if as_json:
        print_json(_record(found, picks, accuracy, out))
    else:
        _print(found, picks, accuracy, out)
    failed = (one for each in found.searches for one in each.scored if one.status != "ok")
    exit_if_failed(Counter(one.reason for one in failed), f"in {out / HISTORY}")


def _note_sub_space(spec: AzNasSpec) -> None:
    """Say which of a union's spaces evolution searches, since mutations stay in theirs."""
    from zcpipe.spaces import get_space
    from zcpipe.spaces.nds import NdsSpace

    space = get_space(spec.run.space)
    if spec.proposals == "evolution" and isinstance(space, NdsSpace) and len(space.families) > 1:
        typer.echo(
            f"note: of the {len(space.families)} sub-spaces of {space.name} evolution searches that of its first "
            f"random network, the first word of what it finds; name one (--space {space.name}/darts), or draw from all "
            "(--proposals random)",
            err=True,
        )


def _judged(picks: Sequence[Pick], accuracy: TruthAccuracy | None) -> list[Pick]:
    """Return picks with what is known of their accuracies, NaN where nothing is."""
    if accuracy is None:
        return list(picks)
    judged = []
    for pick, known in zip(picks, accuracy.known([pick["arch"] for pick in picks]).tolist(), strict=True):
        trained = accuracy.train(pick["arch"]) if known else None
        judged.append(
            {
                **pick,
                "accuracy": math.nan if trained is None else trained.accuracy,
                "report": math.nan if trained is None else trained.report,
            }
        )
    return judged


def _note(found: AzNasFound, picks: Sequence[Pick], accuracy: TruthAccuracy | None) -> None:
    """Say what is not as it was asked for: searches that ended early, picks without a truth."""
    from zcpipe.search.algorithms.aznas import TRIES

    if early := sum(one.ended == "nothing" for one in found.searches):
        typer.echo(
            f"note: {counted(early, 'search')} ended before the budget was spent: there is no further candidate, or "
            f"{TRIES:,} proposals in a row were none",
            err=True,
        )
    if accuracy is not None and (missing := sum(math.isnan(pick["accuracy"]) for pick in picks)):
        typer.echo(f"note: {counted(missing, 'pick')} without a value of {accuracy.target!r} in the truth", err=True)


def _best(picks: Sequence[Pick], accuracy: TruthAccuracy | None) -> tuple[float, float]:
    """Return the mean over the picks of what is reported, of the target where nothing is, and its standard error."""
    from zcpipe.search.result import mean_and_error

    if accuracy is None:
        return math.nan, math.nan
    column = "accuracy" if accuracy.report is None else "report"
    return mean_and_error(np.array([pick[column] for pick in picks], np.float64))


def _record(found: AzNasFound, picks: Sequence[Pick], accuracy: TruthAccuracy | None, out: Path) -> dict[str, Any]:
    mean, error = _best(picks, accuracy)
    record = finite(
        {
            "out": str(out),
            "algorithm": AZNAS,
            "target": None if accuracy is None else accuracy.target,
            "report": None if accuracy is None else accuracy.report,
            "budget": found.spec.budget,
            "seeds": found.spec.seeds,
            "best_accuracy_mean": mean,
            "best_accuracy_se": error,
            "failed": found.failed,
            "missing": found.missing,
        }
    )
    record["picks"] = [finite(pick) for pick in picks]
    record["front"] = [finite(row) for row in found.fronts().to_pylist()]
    return record


def _print(found: AzNasFound, picks: Sequence[Pick], accuracy: TruthAccuracy | None, out: Path) -> None:
    from zcpipe.search.aznas import FLOPS
    from zcpipe.search.costs import FRONT

    known = {} if accuracy is None else {"accuracy": accuracy.target, "report": accuracy.report}
    accuracies = {column: name for column, name in known.items() if name is not None}
    counts = ["params", "macs", *([FLOPS] if picks and FLOPS in picks[0] else [])]
    print_grid(
        ["seed", "scored", "number", "aggregate", *accuracies.values(), *counts, "arch"],
        [
            [
                *(str(pick[name]) for name in ("seed", "scored", "number")),
                number(pick["aggregate"]),
                *("-" if math.isnan(pick[column]) else number(pick[column]) for column in accuracies),
                *(f"{pick[name]:.0f}" for name in counts),
                pick["arch"],
            ]
            for pick in picks[:_SHOWN]
        ],
    )
    if len(picks) > _SHOWN:
        typer.echo(f"{len(picks) - _SHOWN} more picks in {out}, or with --json", err=True)
    scored = counted(sum(len(one.archs) for one in found.searches), "candidate")
    front = counted(sum(len(one.front) for one in found.searches), "candidate")
    lacking = f"{found.failed} failed" + (f", {found.missing} without what was never run" if found.missing else "")
    said = f"{out}: {scored} scored, {lacking}, over {counted(found.spec.seeds, 'seed')}; {front} in {FRONT}"
    mean, error = _best(picks, accuracy)
    if accuracy is not None and not math.isnan(mean):
        spread = "" if math.isnan(error) else f" +- {error:.3f}"
        said += f"; {accuracy.report or accuracy.target} {mean:.3f}{spread}"
    typer.echo(said, err=True)
