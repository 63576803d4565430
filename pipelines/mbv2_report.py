"""The page and the figure of the study of searches in mbv2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from parzc_sections import table, wrapped

# Okabe and Ito's colours, told apart by the colour-blind; dashes say the same.
STYLES = (("#0072B2", "-"), ("#D55E00", "-."), ("#000000", ":"))
PUBLISHED = "#009E73"


def page(record: dict[str, Any]) -> str:
    """Render the results."""
    side, budget, seeds = record["resolution"], record["budget"], record["seeds"]
    limits = record["limits"]
    lines = [
        "# AZ-NAS's search of mbv2",
        "",
        f"Searches within the published limits, {budget:,} candidates each, {seeds} seeds, by AZ-NAS's four proxies "
        f"on noise of {side} x {side} pixels at batch {record['batch_size']}, {record['workers']} worker processes. "
        "Limits are of FLOPs as the published code counts them, at 224 x 224 pixels, and of layers. Aggregates are "
        "log-ranks in one population for each limit: all candidates of all its searches, and the three networks that "
        "the published searches (100,000 candidates, 224 x 224) found; 0 would be the best by every proxy.",
        "",
        *_sentences(limits),
        "",
        "![Best aggregate against candidates](mbv2_search.png)",
        "",
        "Shades are from the worst to the best seed.",
        "",
        "## What was searched",
        "",
        *table(
            ["limit", "proposals", "candidates", "of proposals", "failed", "most FLOPs", "most layers", "CPU s each"],
            [_searched(of, case) for of in limits for case in of["cases"]],
        ),
        "",
        "CPU seconds hold everything of the search's processes, their start too. Of all proposals the others were "
        "beyond the limits, or candidates already.",
        "",
        "## What was found",
        "",
        *table(
            ["limit", "proposals", "seed", "found as", "aggregate", "FLOPs", "layers", "params", "network"],
            [_pick(of, case["case"], pick) for of in limits for case in of["cases"] for pick in case["picks"]],
        ),
        "",
        "A network is written as stem and blocks: E and K are expansion and kernel, in brackets channels that enter "
        "and leave, stride, channels of the bottleneck, sub-layers.",
        "",
        "## The published networks in these populations",
        "",
        *table(
            ["limit", "place", "aggregate", "network"],
            [
                [
                    of["limit"],
                    "failed" if one["place"] is None else f"{one['place']:,} of {of['population']:,}",
                    "-" if one["aggregate"] is None else f"{one['aggregate']:.2f}",
                    short(one["arch"]),
                ]
                for of in limits
                for one in of["published"]
            ],
        ),
        "",
        "## Small images for large ones",
        "",
        f"Spearman's rho between {side} x {side} and 224 x 224 pixels, of candidates taken evenly from the histories "
        "of the first way of proposing; aggregates are among these.",
        "",
        *table(
            ["limit", "networks", *_compared(record)],
            [
                [one["limit"], str(one["networks"]), *(_rho(one[name]) for name in _compared(record))]
                for one in record["full_size"]
            ],
        ),
        "",
        "## Again",
        "",
        "`pipelines/mbv2_search.py`, whose `--help` says how. One of these searches is",
        "",
        "```",
        "zcpipe search --space mbv2 --algorithm aznas --scores live --dataset imagenet \\",
        f"    --resolution {side} --batch-size {record['batch_size']} --max-flops {limits[0]['limit']} \\",
        f"    --max-layers {limits[0]['layers']} --budget {budget} --seeds {seeds} --workers {record['workers']} \\",
        "    --out searches/mbv2",
        "```",
        "",
        "The numbers are in [mbv2_search.json](mbv2_search.json).",
    ]
    return "\n".join(wrapped(lines)) + "\n"


def _sentences(limits: list[dict[str, Any]]) -> list[str]:
    """Say for each limit what the best of each way is, and where the published networks are."""
    said = []
    for of in limits:
        bests = [f"{case['case']} {max(pick['aggregate'] for pick in case['picks']):.2f}" for case in of["cases"]]
        found = sorted(one["place"] for one in of["published"] if one["place"] is not None)
        places = ", ".join([*(f"{place:,}" for place in found), *["failed"] * (len(of["published"]) - len(found))])
        kept = max(case["most_flops"] for case in of["cases"]), max(case["most_layers"] for case in of["cases"])
        said.append(
            f"- {of['limit']} FLOPs, {of['layers']} layers: no candidate has more than {kept[0] / 1e6:.2f}M FLOPs or "
            f"{kept[1]} layers. Best aggregates: {'; '.join(bests)}. Of {of['population']:,} the published networks "
            f"are at places {places}."
        )
    return said


def short(text: str) -> str:
    """Write a network as its stem's channels and its blocks."""
    stem = re.findall(r"SuperConvK3BNRELU\(3,(\d+),", text)
    return f"`{' '.join([*stem, *re.findall(r'SuperResIDW(E[^)]*[)])', text)])}`"


def _searched(of: dict[str, Any], case: dict[str, Any]) -> list[str]:
    cpu = case["cpu_seconds"]
    return [
        of["limit"],
        case["case"],
        f"{case['candidates']:,}",
        f"{case['tries']:,}",
        str(case["failed"]),
        f"{case['most_flops'] / 1e6:.2f}M",
        str(case["most_layers"]),
        "-" if cpu is None else f"{cpu / case['candidates']:.3f}",
    ]


def _pick(of: dict[str, Any], case: str, pick: dict[str, Any]) -> list[str]:
    return [
        of["limit"],
        case,
        str(pick["seed"]),
        f"{pick['number'] + 1:,}",
        f"{pick['aggregate']:.2f}",
        f"{pick['flops'] / 1e6:.1f}M",
        str(pick["layers"]),
        f"{pick['params'] / 1e6:.2f}M",
        short(pick["arch"]),
    ]


def _compared(record: dict[str, Any]) -> list[str]:
    return [name for name in record["full_size"][0] if name not in ("limit", "networks")]


def _rho(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def figure(record: dict[str, Any], path: Path) -> None:
    """Draw how far the best aggregate so far is from 0 against the candidates scored, a panel for each limit."""
    limits = record["limits"]
    drawn, axes = plt.subplots(1, len(limits), figsize=(4.4 * len(limits), 3.6), squeeze=False, layout="constrained")
    for ax, of in zip(axes.flat, limits, strict=True):
        for case, (colour, style) in zip(of["cases"], STYLES, strict=True):
            ax.plot(record["points"], _below(case["curve"]), color=colour, ls=style, lw=1.6, label=case["case"])
            ax.fill_between(record["points"], _below(case["low"]), _below(case["high"]), color=colour, alpha=0.15, lw=0)
        for number, one in enumerate(of["published"]):
            label = "networks that the published searches found" if not number else None
            ax.axhline(*_below([one["aggregate"]]), color=PUBLISHED, lw=0.9, ls=(0, (6, 2)), label=label)
        ax.set(title=f"{of['limit']} FLOPs, {of['layers']} layers", xlabel="candidates scored")
        ax.set_yscale("log")
        ax.invert_yaxis()
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("best aggregate so far, below 0 by")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def _below(aggregates: list[float | None]) -> list[float]:
    return [float("nan") if value is None else -value for value in aggregates]
