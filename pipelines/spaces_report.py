"""The page and the figure of the study of other spaces than NAS-Bench-201."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

Populations = dict[str, dict[str, Any]]

# Spearman's rho on all of NAS-Bench-101 (ICLR 2021, absolute) or 10,000 of it (validation accuracy, NASLib's networks).
PUBLISHED = {
    "ICLR 2021, absolute": {"grad_norm": 0.198, "snip": 0.164, "fisher": 0.257, "synflow": 0.372, "jacob_cov": 0.378},
    "NAS-Bench-Suite-Zero": {
        "epe_nas": 0.00,
        "fisher": -0.28,
        "macs": 0.36,
        "grad_norm": -0.25,
        "jacob_cov": -0.29,
        "l2_norm": 0.50,
        "nwot": 0.31,
        "params": 0.37,
        "plain": -0.32,
        "snip": -0.19,
        "synflow": 0.31,
        "zen": 0.59,
    },
}


def page(record: dict[str, Any]) -> str:
    """Render the results."""
    populations: Populations = record["populations"]
    lines = [
        "# Cheap proxies on NDS and NAS-Bench-101",
        "",
        f"Made by `pipelines/spaces.py` at batch {record['batch_size']}, seed {record['seed']}; every number is in",
        "`spaces_ranking.json`. Correlations are of raw values with accuracy, signed, with the interval that holds",
        f"95 % of {record['resamples']} bootstraps over the networks (`zcpipe correlate --bootstrap`). Networks are",
        "few: what differs by less than an interval's width may not differ. A dash is a proxy that is the same for",
        "all, as those are that count patterns over the batch where it is small.",
        "",
        "![correlations with intervals](spaces_ranking.png)",
        "",
        "| population | networks | data set | pixels | inputs | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {p['networks']} | {p['dataset']} | {p['resolution']} | {p['inputs']} | {p['target']} |"
        for name, p in populations.items()
    ]
    for kind in ("spearman", "kendall"):
        lines += ["", f"## {kind.capitalize()}", "", f"| proxy | {' | '.join(populations)} |"]
        lines.append(f"|---|{'---|' * len(populations)}")
        lines += [
            f"| {name} | {' | '.join(cell(p['rows'].get(name), kind) for p in populations.values())} |"
            for name in _names(populations)
        ]
    if "nasbench101" in populations:
        lines += _published(populations["nasbench101"]["rows"])
    return "\n".join(lines) + "\n"


def _published(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "## NAS-Bench-101 beside published figures",
        "",
        f"Spearman's rho. {' and '.join(PUBLISHED)}: of other samples, batches and, for the latter, networks.",
        "",
        f"| proxy | ours | {' | '.join(PUBLISHED)} |",
        f"|---|---|{'---|' * len(PUBLISHED)}",
    ]
    for name in dict.fromkeys(proxy for figures in PUBLISHED.values() for proxy in figures):
        quoted = " | ".join(str(figures.get(name, "")) for figures in PUBLISHED.values())
        lines.append(f"| {name} | {cell(rows.get(name), 'spearman')} | {quoted} |")
    return lines


def _names(populations: Populations) -> list[str]:
    return list(dict.fromkeys(name for population in populations.values() for name in population["rows"]))


def cell(row: dict[str, Any] | None, kind: str) -> str:
    """Render a correlation with its interval."""
    if row is None or row[kind] is None:
        return "-"
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    return f"{row[kind]:.3f} [{row[f'{kind}_low']:.2f}, {row[f'{kind}_high']:.2f}]{failed}"


def figure(populations: Populations, path: Path) -> None:
    """Draw Spearman's rho of every proxy and aggregate with its interval, a panel for each population."""
    names = _names(populations)
    height = max(4.0, 0.2 * len(names))
    size = (2.6 * len(populations) + 1.5, height)
    drawn, panels = plt.subplots(1, len(populations), figsize=size, sharey=True, squeeze=False, layout="constrained")
    places = {name: len(names) - place for place, name in enumerate(names)}
    for axes, (name, population) in zip(panels[0], populations.items(), strict=True):
        rows = [row for row in population["rows"].values() if row["spearman"] is not None]
        rho = [row["spearman"] for row in rows]
        below = [max(0.0, row["spearman"] - row["spearman_low"]) for row in rows]
        above = [max(0.0, row["spearman_high"] - row["spearman"]) for row in rows]
        axes.errorbar(rho, [places[row["name"]] for row in rows], xerr=[below, above], fmt="o", markersize=3, lw=1)
        axes.axvline(0, color="black", lw=0.6)
        axes.set(title=f"{name} ({population['networks']})", xlim=(-1, 1), xlabel="Spearman")
        axes.grid(alpha=0.3)
    panels[0][0].set_yticks(list(places.values()), list(places), fontsize=7)
    drawn.savefig(path, dpi=130)
    plt.close(drawn)
