"""The figure of the study of ParZC: Kendall's tau by the number of labels, a panel for each space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator
from parzc_sections import best, free
from parzc_stages import Rows, learners

# Okabe and Ito's colours, told apart by the colour-blind; markers say the same.
LINES = {
    "parzc": (("parzc",), "#0072B2", "o"),
    "mabn": (("mabn",), "#D55E00", "s"),
    "best trees": (("extra-trees", "boosted-trees"), "#009E73", "^"),
    "ridge": (("ridge",), "#CC79A7", "v"),
}
FREE = "no training"
FREE_COLOUR = "#000000"


def figure(record: dict[str, Any], path: Path) -> None:
    """Draw all spaces that were measured."""
    populations = record["spaces"]["populations"]
    panels = {"NAS-Bench-201": record["nasbench201"]["rows"], **{n: p["rows"] for n, p in populations.items()}}
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    drawn, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for at, ax in enumerate(axes.flat):
        if at >= len(panels):
            ax.set_axis_off()
            continue
        name = list(panels)[at]
        _panel(ax, panels[name], name)
    for ax in axes[:, 0]:
        ax.set_ylabel("Kendall's tau, other keys")
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def _panel(ax: Axes, rows: Rows, name: str) -> None:
    counts = dict(learners(rows, "others"))
    ends: list[tuple[float, str, str]] = []
    for text, (methods, colour, marker) in LINES.items():
        own = [best(of_count, *methods) for of_count in counts.values()]
        _line(ax, list(counts), own, colour, marker)
        ends.append((own[-1]["kendall"], text, colour))
    without = list(free(rows, "others").values())
    _line(ax, list(counts), without, FREE_COLOUR, "x", "--")
    ends.append((abs(without[-1]["kendall"]), FREE, FREE_COLOUR))
    ax.set_xscale("log")
    ax.set_xticks(list(counts), [str(n) for n in counts])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    first, last = min(counts), max(counts)
    ax.set_xlim(first / 1.1, max(last, first * 1.5) * (max(last, first * 1.5) / first) ** 0.45)
    ax.set(title=name, xlabel="labels")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    _name(ax, ends, last)


def _line(
    ax: Axes, counts: list[int], rows: Sequence[dict[str, Any]], colour: str, marker: str, style: str = "-"
) -> None:
    taus = [abs(row["kendall"]) if row.get("best_free") else row["kendall"] for row in rows]
    errors = [row.get("kendall_error", 0.0) for row in rows]
    ax.errorbar(counts, taus, yerr=errors, color=colour, marker=marker, markersize=4, lw=1.4, ls=style, capsize=2)


def _name(ax: Axes, ends: list[tuple[float, str, str]], last: int) -> None:
    """Write each line's name behind its end, no two over each other."""
    low, high = ax.get_ylim()
    step = 0.075 * (high - low)
    at = -float("inf")
    for value, text, colour in sorted(ends):
        at = max(value, at + step)
        ax.annotate(
            text, (last, value), (last * 1.08, at), color=colour, fontsize=8, va="center", annotation_clip=False
        )
