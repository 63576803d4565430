"""Choosing a log-rank recipe on a few cells and judging it on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import study
from nasbench201_population import Population
from nasbench201_published import TEST

from zcpipe import get_space
from zcpipe.proxies import groups
from zcpipe.rank import Named, correlate, leave_one_out, log_rank, ranks
from zcpipe.rank.population import correlate_columns

CHOSEN = 700  # cells that a recipe is chosen on: the first draws of the space's sample
GAIN = 0.001  # of Kendall's tau that one more proxy must bring


def choose(population: Population, chosen: int, seed: int) -> dict[str, Any]:
    """Choose a recipe on the first draws, and judge it where no key is among theirs.

    Returns:
        ``path``: what forward selection added and the tau it reached on the chosen cells; ``candidates`` and
        ``passed_over``: what it chose from, and why not from others; ``judged``: the frozen recipe and its rivals on
        the other cells.
    """
    space = get_space("nasbench201")
    listed = [space.index(space.sample(seed, i)) for i in range(chosen)]
    here = np.isin(population.index, listed)
    cells, others = population.cut(here), population.cut(~np.isin(population.keys, population.keys[here]))
    names, passed_over = candidates(cells)
    path = forward_selection(cells, names)
    recipe = [name for name, _ in path]
    four = groups()["aznas"]
    rivals = {"chosen": recipe, "aznas": four, "aznas and synflow": (*four, "synflow"), "params": ("params",)}
    return {
        "chosen_on": len(cells.index),
        "judged_on": len(others.index),
        "candidates": names,
        "passed_over": passed_over,
        "path": [{"added": name, "kendall": tau} for name, tau in path],
        "judged": {name: judge(others, of) for name, of in rivals.items() if set(of) <= set(others.columns) and of},
    }


def candidates(cells: Population) -> tuple[list[str], dict[str, str]]:
    """Return what can be chosen from, and why the rest cannot."""
    names: list[str] = []
    passed_over = {}
    seen: dict[bytes, str] = {}
    for name, values in cells.columns.items():
        if name not in cells.directions:
            passed_over[name] = "has no direction"
        elif np.isnan(values).any():
            passed_over[name] = f"failed on {int(np.isnan(values).sum())} of the cells"
        else:
            first = seen.setdefault(ranks(values, cells.directions[name]).tobytes(), name)
            if first == name:
                names.append(name)
            else:
                passed_over[name] = f"ranks as {first} does"
    return names, passed_over


def forward_selection(cells: Population, names: Sequence[str]) -> list[tuple[str, float]]:
    """Add the proxy that raises the aggregate's tau most, of equals the first, until none raises it by `GAIN`."""
    path: list[tuple[str, float]] = []
    while len(path) < len(names):
        taken = [name for name, _ in path]
        taus = {name: _tau(cells, [*taken, name]) for name in names if name not in taken}
        best = max(taus, key=lambda name: taus[name])
        if taus[best] < (path[-1][1] + GAIN if path else -1):
            break
        path.append((best, taus[best]))
    return path


def _tau(cells: Population, names: Sequence[str]) -> float:
    scores = log_rank({name: cells.columns[name] for name in names}, cells.directions)
    tau = correlate(scores, cells.truth[TEST], TEST).kendall
    return -1.0 if np.isnan(tau) else tau  # a constant proxy orders nothing


def judge(others: Population, recipe: Sequence[str]) -> dict[str, Any]:
    """Correlate a recipe on cells it was not chosen on, and what each of its proxies contributes."""
    columns = {name: others.columns[name] for name in recipe}
    made = Named("recipe", "logrank", tuple(recipe), "")
    row = correlate_columns(columns, others.directions, others.truth[TEST], TEST, [made])[-1]
    lost = leave_one_out(columns, others.directions, others.truth[TEST]) if len(recipe) > 1 else {}
    return {**study.without_nan(asdict(row)), "proxies": list(recipe), "leave_one_out": study.without_nan(lost)}
