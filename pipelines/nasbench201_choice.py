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
from zcpipe.spaces.classes import key_classes
from zcpipe.spaces.permutation import permuted

CHOSEN = 700  # cells that a recipe is chosen on: representatives of the first keys of a permutation
GAIN = 0.001  # of Kendall's tau that one more proxy must bring
WIDTH, MOST = 15, 5  # of the search: recipes kept at each size, and proxies in a recipe
# What AZ-NAS's one pass gives, and counts.
ONE_PASS = (
    *("params", "expressivity", "progressivity", "trainability"),
    *("stage_expressivity", "num_layers"),
)


def choose(population: Population, chosen: int, seed: int) -> dict[str, Any]:
    """Choose recipes on one cell each of some keys, and judge them on all cells of other keys.

    Keys are drawn, not cells: half of all cells share a key with 700 random cells, since light keys have many members,
    and what is left would be another space.

    Returns:
        ``path``: the best recipe of each size out of one pass, and its tau on the chosen cells; ``candidates`` and
        ``passed_over``: what could be chosen from, and why not from others; ``judged``: the recipe, the best out of any
        passes and their rivals on the other cells.
    """
    here = np.isin(population.index, listed(population, chosen, seed))
    cells, others = population.cut(here), population.cut(~np.isin(population.keys, population.keys[here]))
    names, passed_over = candidates(cells)
    path = best_recipes(cells, [name for name in names if name in ONE_PASS])
    recipe = path[-1][0]
    four = groups()["aznas"]
    rivals = {
        "chosen": recipe,
        "chosen out of any passes": best_recipes(cells, names)[-1][0],
        "aznas": four,
        "aznas and synflow": (*four, "synflow"),
        "params": ("params",),
    }
    return {
        "chosen_on": len(cells.index),
        "judged_on": len(others.index),
        "candidates": names,
        "passed_over": passed_over,
        "path": [{"recipe": list(names), "kendall": tau} for names, tau in path],
        "judged": {name: judge(others, of) for name, of in rivals.items() if set(of) <= set(others.columns) and of},
    }


def listed(population: Population, chosen: int, seed: int) -> list[int]:
    """Return the representatives of the first keys of a permutation, as far as the population has them."""
    representatives = key_classes(get_space("nasbench201")).representative
    keys = len(representatives)
    drawn = np.array([representatives[permuted(keys, seed, "nasbench201:keys", i)] for i in range(keys)])
    there = drawn[np.isin(drawn, population.index)]
    return [int(index) for index in there[:chosen]]


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


def best_recipes(cells: Population, names: Sequence[str]) -> list[tuple[tuple[str, ...], float]]:
    """Search for the log-rank recipe of highest tau, size by size, until one more proxy brings less than `GAIN`."""
    path: list[tuple[tuple[str, ...], float]] = []
    kept: list[tuple[str, ...]] = [()]
    while len(path) < MOST:
        larger = dict.fromkeys(
            tuple(sorted((*recipe, name))) for recipe in kept for name in names if name not in recipe
        )
        taus = {recipe: _tau(cells, recipe) for recipe in larger}
        kept = sorted(taus, key=lambda recipe: (-taus[recipe], recipe))[:WIDTH]
        if not kept or taus[kept[0]] < (path[-1][1] + GAIN if path else -1):
            break
        path.append((kept[0], taus[kept[0]]))
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
