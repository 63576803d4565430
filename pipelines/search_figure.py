"""The figure of the study of searches: accuracy against trained models, a panel for each use of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by the colour-blind; dashes say the same.
LINES: dict[str, tuple[str, str, str]] = {
    "": ("without scores", "#000000", "--"),
    "synflow": ("synflow", "#0072B2", "-"),
    "aznas": ("AZ-NAS", "#D55E00", "-."),
    "parzc-free": ("ParZC without training", "#009E73", (0, (5, 1))),  # type: ignore[dict-item]
    "parzc-learnt": ("ParZC of labels", "#CC79A7", (0, (1, 1))),  # type: ignore[dict-item]
}
TITLES = {"warm-up": "warm-up", "moves": "moves", "both": "warm-up and moves"}


def figure(record: dict[str, Any], path: Path) -> None:
    """Draw all cases."""
    rows = record["rows"]
    panels = list(dict.fromkeys((row["algorithm"], row["role"]) for row in rows if row["role"]))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    drawn, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.3 * lines), squeeze=False, layout="constrained"
    )
    low = min(row["mean"][min(9, row["budget"] - 1)] for row in rows)
    high = max(max(row["mean"]) for row in rows)
    for at, ax in enumerate(axes.flat):
        if at >= len(panels):
            ax.set_axis_off()
            continue
        algorithm, role = panels[at]
        for row in rows:
            if row["algorithm"] == algorithm and row["role"] in ("", role):
                _line(ax, row)
        goal = record["options"]["goal"]
        ax.axhline(goal, color="#888888", lw=0.8)
        ax.set_xscale("log")
        last = max(row["budget"] for row in rows)
        ticks = [tick for tick in (10, 20, 50, 100, 200, 300) if tick <= last]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        margin = 0.05 * (high - low) or 0.1
        ax.set(xlim=(min(10, last / 2), last), ylim=(low - margin, max(high, goal) + margin))
        ax.set(title=f"{algorithm}, {TITLES[role]}", xlabel="trained models")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy of the best by validation")
    handles = {line.get_label(): line for ax in axes.flat for line in ax.get_lines()}
    named = [name for name, *_ in LINES.values() if name in handles]
    drawn.legend([handles[name] for name in named], named, loc="outside lower center", ncols=len(named), frameon=False)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def _line(ax: Axes, row: dict[str, Any]) -> None:
    name, colour, style = LINES[row["guide"]]
    mean, error = np.array(row["mean"]), np.array(row["error"])
    models = np.arange(1, len(mean) + 1)
    ax.plot(models, mean, color=colour, ls=style, lw=1.5, label=name)
    ax.fill_between(models, mean - error, mean + error, color=colour, alpha=0.18, lw=0)
