"""The page and the figure of the study of all proxies on NAS-Bench-201."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from nasbench201_published import (
    AT_THAT_BATCH,
    BATCH,
    EXPLANATIONS,
    FIGURES,
    SOURCES,
    TEST,
    TOLERANCE,
    VOTE,
    Figure,
    comparison,
)

from zcpipe.rank import NAMED

Cases = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Difference:
    """Our rho less a published one, in one case."""

    figure: Figure
    case: str
    ours: float

    @property
    def value(self) -> float:
        """How far ours is above; sources that give absolute values are compared with ours."""
        ours = abs(self.ours) if SOURCES[self.figure.source].absolute else self.ours
        return ours - float(self.figure.spearman or 0)

    @property
    def large(self) -> bool:
        """Whether it wants an explanation."""
        return abs(self.value) > TOLERANCE


def differences(cases: Cases) -> Iterator[Difference]:
    """Compare every published rho with every case that has the proxy, each source on its own terms."""
    for figure_ in FIGURES:
        source = SOURCES[figure_.source]
        for name, case in cases.items():
            row = case["correlations"][comparison(source)].get(figure_.proxy)
            if figure_.spearman is not None and row and row["spearman"] is not None:
                yield Difference(figure_, name, row["spearman"])


def explained(proxy: str, batch: int) -> str | None:
    """Return why a proxy differs at a batch size, None where that is not known."""
    if proxy not in EXPLANATIONS or (proxy in AT_THAT_BATCH and batch != BATCH):
        return None
    return EXPLANATIONS[proxy].format(batch=batch)


def unexplained(cases: Cases, batch: int = BATCH) -> list[str]:
    """Return the proxies with a large difference and no explanation."""
    large = dict.fromkeys(found.figure.proxy for found in differences(cases) if found.large)
    return [proxy for proxy in large if explained(proxy, batch) is None]


def page(record: dict[str, Any]) -> str:
    """Render the results."""
    cases: Cases = record["cases"]
    lines = [
        "# Every proxy on NAS-Bench-201",
        "",
        f"Made by `pipelines/nasbench201_proxies.py` at batch {record['batch_size']}, seed {record['seed']}; every",
        "number is in `nasbench201_proxies.json`. Correlations are of raw values with CIFAR-10 test accuracy after 200",
        "epochs, signed. A case is what goes in (noise, or data: real images) and the protocol (paper: each proxy",
        "under its own paper's recipe; fused: all read off one pass). Per-sample proxies are scored on fewer cells.",
        "",
        "![correlations, and choosing an aggregate](nasbench201_proxies.png)",
        "",
        *_cases(cases),
        *_correlations(cases),
        *_differences(cases, record["batch_size"]),
    ]
    for name, case in cases.items():
        if "choice" in case:
            lines += _choice(name, case["choice"])
    return "\n".join(lines) + "\n"


def _cases(cases: Cases) -> list[str]:
    lines = ["| case | cells | aggregates |", "|---|---|---|"]
    for name, case in cases.items():
        made = [entry for entry in NAMED if entry in case["correlations"][TEST]]
        lines.append(f"| {name} | {case['cells']} | {', '.join(made) or '-'} |")
    return lines


def _correlations(cases: Cases) -> list[str]:
    """Render Kendall and Spearman of every proxy and aggregate; a dagger marks what differs from a published rho."""
    marked = {(found.figure.proxy, found.case) for found in differences(cases) if found.large}
    lines = [
        "",
        "## Correlations",
        "",
        f"Kendall / Spearman. A dagger marks a rho that differs by more than {TOLERANCE} from a published one;",
        "all differences and their explanations are in the next section.",
        "",
        f"| proxy | {' | '.join(cases)} | published |",
        f"|---|{'---|' * len(cases)}---|",
    ]
    for proxy in dict.fromkeys(name for case in cases.values() for name in case["correlations"][TEST]):
        cells = []
        for name, case in cases.items():
            row = case["correlations"][TEST].get(proxy)
            dagger = " †" if (proxy, name) in marked else ""
            failed = f" ({row['failed']} failed)" if row and row["failed"] else ""
            cells.append(f"{_pair(row['kendall'], row['spearman'])}{dagger}{failed}" if row else "")
        quoted = [f"{f.source} {_pair(f.kendall, f.spearman)}" for f in FIGURES if f.proxy == proxy]
        lines.append(f"| {proxy} | {' | '.join(cells)} | {'; '.join(quoted)} |")
    votes = {name: case["correlations"][TEST].get("vote") for name, case in cases.items()}
    shares = [f"{_number(row['pair_accuracy'])} ({name})" for name, row in votes.items() if row]
    if shares:
        lines += ["", f"The vote orders this share of the pairs rightly (published: {VOTE}): {', '.join(shares)}."]
    lines += ["", "Sources:", "", *(f"- {name}: {source.text}." for name, source in SOURCES.items())]
    return lines


def _differences(cases: Cases, batch: int) -> list[str]:
    """Render, for each proxy with a large difference, all its differences and the explanation."""
    found = list(differences(cases))
    proxies = dict.fromkeys(one.figure.proxy for one in found if one.large)
    lines = ["", f"## Differences above {TOLERANCE}", ""]
    if not proxies:
        return [*lines, "None."]
    lines += [
        "Ours less the published rho, each source on its own terms (target, one cell of each key, absolute values).",
        "",
        f"| proxy | source | published | {' | '.join(cases)} |",
        f"|---|---|---|{'---|' * len(cases)}",
    ]
    for figure_ in FIGURES:
        of = {one.case: one for one in found if one.figure == figure_}
        if any(one.large for one in of.values()):
            cells = [f"{of[name].value:+.3f}{' †' if of[name].large else ''}" if name in of else "" for name in cases]
            lines.append(f"| {figure_.proxy} | {figure_.source} | {figure_.spearman} | {' | '.join(cells)} |")
    lines += ["", *(f"- {proxy}: {explained(proxy, batch) or '**not explained yet**'}" for proxy in proxies)]
    return lines


def _choice(name: str, choice: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"## An aggregate chosen on {choice['chosen_on']} cells: {name}",
        "",
        "One cell each of as many keys. The best log-rank recipes of each size out of AZ-NAS's one pass and counts, by",
        "Kendall's tau on those cells alone:",
        "",
        "| recipe | Kendall on them |",
        "|---|---|",
    ]
    lines += [f"| {', '.join(step['recipe'])} | {_number(step['kendall'])} |" for step in choice["path"]]
    if choice["passed_over"]:
        lines += ["", f"Not to be chosen: {'; '.join(f'{p} {why}' for p, why in choice['passed_over'].items())}."]
    lines += [
        "",
        f"Frozen, and judged on the {choice['judged_on']} cells whose keys do not occur among those. What leaving a",
        "proxy out costs is Kendall's tau with it less tau without it.",
        "",
        "| recipe | Kendall | Spearman | pairs | cells | failed | leaving one out costs |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe, row in choice["judged"].items():
        lost = ", ".join(f"{proxy} {_number(value)}" for proxy, value in row["leave_one_out"].items())
        numbers = " | ".join(_number(row[kind]) for kind in ("kendall", "spearman", "pair_accuracy"))
        named = f"{recipe}: {', '.join(row['proxies'])}" if recipe.startswith("chosen") else recipe
        lines.append(f"| {named} | {numbers} | {row['n']} | {row['failed']} | {lost or '-'} |")
    return lines


def _pair(kendall: float | None, spearman: float | None) -> str:
    return f"{_number(kendall)} / {_number(spearman)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 0.001 else f"{value:.4f}".rstrip("0")


def figure(cases: Cases, path: Path) -> None:
    """Draw rho of every proxy by case beside the published ones, and how selection rises and is judged."""
    names = list(dict.fromkeys(name for case in cases.values() for name in case["correlations"][TEST]))
    height = max(4.0, 0.22 * len(names))
    left, right = plt.subplots(1, 2, figsize=(11, height), layout="constrained")[1]
    rows = {name: len(names) - place for place, name in enumerate(names)}
    quoted = [(abs(f.spearman), rows[f.proxy]) for f in FIGURES if f.spearman is not None and f.proxy in rows]
    if quoted:
        left.plot(*zip(*quoted, strict=True), "|", color="black", markersize=10, label="published")
    for name, case in cases.items():
        found = case["correlations"][TEST]
        points = [(abs(row["spearman"]), rows[proxy]) for proxy, row in found.items() if row["spearman"] is not None]
        left.plot(*zip(*points, strict=True), "o" if not case["per_sample"] else "x", markersize=4, label=name)
        if "choice" in case:
            taus = [step["kendall"] for step in case["choice"]["path"]]
            (line,) = right.plot(
                range(1, len(taus) + 1), taus, "o-", markersize=3, label=f"{name}: on the chosen cells"
            )
            judged = case["choice"]["judged"]["chosen"]["kendall"]
            right.plot(len(taus), judged, "*", color=line.get_color(), label=f"{name}: on other keys")
    left.set_yticks(list(rows.values()), list(rows), fontsize=7)
    left.set(xlabel="|Spearman| with test accuracy", title="proxies and aggregates")
    right.set(xlabel="proxies in the recipe", ylabel="Kendall tau of the log-rank aggregate", title="choosing a recipe")
    right.locator_params(axis="x", integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    left.figure.savefig(path, dpi=80)
    plt.close(left.figure)
