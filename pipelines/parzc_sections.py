"""What the page of the study of ParZC says of each stage: tables, and sentences made of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from textwrap import wrap
from typing import Any

from parzc_published import CAVEAT, LOGS
from parzc_speed import PUBLISHED_EPOCHS
from parzc_stages import Rows, clear, label, learners, paired
from scipy import stats

SPLITS = {
    "others": "architectures whose key is none of those learnt from",
    "published": "all architectures, those learnt from among them",
}


def section(name: str, record: dict[str, Any]) -> list[str]:
    """Render one stage."""
    render: dict[str, Callable[[dict[str, Any]], list[str]]] = {
        "nasbench201": _nasbench201,
        "spaces": _spaces,
        "ablation": _ablation,
        "calibration": _calibration,
        "speed": _speed,
    }
    return wrapped(render[name](record[name]))


def wrapped(lines: Iterable[str]) -> list[str]:
    """Break what is longer than a line, save tables and headings."""
    broken = []
    for line in lines:
        kept = len(line) <= 120 or line[:1] in ("|", "#")
        indent = "  " if line.startswith(("- ", "  ")) else ""
        broken += [line] if kept else wrap(line, 120, subsequent_indent=indent, break_long_words=False)
    return broken


def plus_minus(mean: float | None, error: float | None, sign: bool = False) -> str:
    """Render a mean with its standard error; a dash where there is none."""
    if mean is None:
        return "-"
    return f"{mean:{'+' if sign else ''}.3f}" + ("" if error is None else f" ± {error:.3f}")


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Render a table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]


def free(rows: Rows, which: str) -> dict[int, dict[str, Any]]:
    """Return, by the number of samples, the best of what needs no training."""
    return {row["samples"]: row for row in rows if row.get("best_free") and row["split"] == which}


def free_of_fewer(rows: Rows, which: str) -> dict[int, dict[str, Any]]:
    """Return what is above the best of what needs no training on fewer architectures than that ranks, if anything is.

    Strengths are compared without their signs, so that nothing that may be better is left unsaid.
    """
    found: dict[int, dict[str, Any]] = {}
    for samples, whole in free(rows, which).items():
        own = [row for row in rows if (row["samples"], row["split"]) == (samples, which) and "taus" not in row]
        fewer = [row for row in own if row["n_test"] < whole["n_test"] and row.get("kendall") is not None]
        top = max(fewer, key=lambda row: abs(row["kendall"]), default=whole)
        if abs(top["kendall"]) > abs(whole["kendall"]):
            found[samples] = top
    return found


def of_fewer(row: dict[str, Any] | None) -> str:
    """Render what `free_of_fewer` found; a dash where it found nothing."""
    return "-" if row is None else f"{tau(row)} `{row['method']}` of {row['n_test']}"


def best(rows: Rows, *methods: str) -> dict[str, Any]:
    """Return the row with the highest mean of those of some methods, or of all."""
    own = [row for row in rows if (row["method"] in methods or not methods) and row.get("kendall") is not None]
    return max(own, key=lambda row: row["kendall"])


def tau(row: dict[str, Any], **options: bool) -> str:
    """Render Kendall's tau of a row."""
    return plus_minus(row.get("kendall"), row.get("kendall_error"), **options)


def facts(of: dict[str, Any]) -> str:
    """Say what a table is."""
    spec, left_out = of["spec"], of["left_out"]
    text = (
        f"{of['rows']} architectures with {of['keys']} keys, {of['labelled']} of them labelled; "
        f"{len(spec['statistics'])} statistics and {len(spec['proxies'])} proxies and counts, encoded as "
        f"{spec['encoding']} by {spec['alignment']}"
    )
    return text + (f"; left out, for more than 1 % of the rows lack them: {', '.join(left_out)}" if left_out else "")


def _nasbench201(stage: dict[str, Any]) -> list[str]:
    rows, of = stage["rows"], stage["facts"]
    recipe = of["identity"]["recipe"]
    lines = [
        "## NAS-Bench-201",
        "",
        f"{facts(of)}. Proxies at batch {recipe['batch_size']} on {recipe['inputs'].partition(':')[0]} inputs. Learnt:",
        f"`{of['train_target']}`; tested: `{of['target']}`; {stage['seeds']} draws of labels, mean ± standard error of",
        "Kendall's tau.",
    ]
    for which, meaning in SPLITS.items():
        lines += ["", f'### Split "{which}": {meaning}', "", *_by_samples(rows, which)]
    counts = dict(learners(rows, "others"))
    names = [label(row) for row in next(iter(counts.values()))]
    gaps = {samples: [_gap(row) for row in own] for samples, own in counts.items()}
    lines += [
        "",
        "### Difference to the best trees",
        "",
        'Split "others", draw by draw, to the best by its mean of extra trees and boosted trees on proxies, statistics',
        "and both: which one is chosen by the same numbers, which favours the trees a little.",
        "",
        *table(
            ["labels", *counts],
            [
                ["best trees", *(f"`{own[0].get('compared_with', '-')}`" for own in counts.values())],
                *([f"`{name}`", *(gap[at] for gap in gaps.values())] for at, name in enumerate(names)),
            ],
        ),
    ]
    return lines + _beside_logs(rows)


def _gap(row: dict[str, Any]) -> str:
    return plus_minus(row.get("difference"), row.get("difference_error"), sign=True)


def _by_samples(rows: Rows, which: str) -> list[str]:
    counts, without = dict(learners(rows, which)), free(rows, which)
    names = [label(row) for row in next(iter(counts.values()))]
    body = [["tested on", *(own[0]["n_test"] for own in counts.values())]]
    body += [[f"`{name}`", *(tau(own[at]) for own in counts.values())] for at, name in enumerate(names)]
    body.append(["best without training", *(f"{tau(row)} `{row['method']}`" for row in without.values())])
    if fewer := free_of_fewer(rows, which):
        body.append(["above it, on fewer", *(of_fewer(fewer.get(samples)) for samples in counts)])
    for name in ("params", "macs"):
        sizes = [row for row in rows if row["method"] == name and row["split"] == which]
        body.append([f"`{name}`", *(tau(row) for row in sizes)])
    return table(["labels", *counts], body)


def _beside_logs(rows: Rows) -> list[str]:
    counts = dict(learners(rows, "published"))
    body = [[f"logged: {name}", *(taus.get(samples, "-") for samples in counts)] for name, taus in LOGS.items()]
    names = ("parzc", "mabn", "mabn-published")
    body += [[f"`{name}`", *(tau(best(own, name)) for own in counts.values())] for name in names]
    return ["", "### Beside the published code's logs", "", CAVEAT, "", *table(["labels", *counts], body)]


def _spaces(stage: dict[str, Any]) -> list[str]:
    populations: dict[str, dict[str, Any]] = stage["populations"]
    lines = [
        "## Other spaces",
        "",
        "The parameters chosen on NAS-Bench-201, frozen. Each population has one accuracy, which is learnt and tested;",
        f"{stage['seeds']} draws of labels, mean ± standard error of Kendall's tau on architectures with other keys.",
        "Populations are small: the standard errors are of the draws alone, not of which architectures there are.",
        "",
        *(f"- {name}: {facts(p['facts'])}; `{p['facts']['target']}`." for name, p in populations.items()),
        *(f"- {name}: **not measured**, for {why}." for name, why in stage["missing"].items()),
    ]
    for at, share in enumerate(stage["shares"] if populations else []):
        held = {name: list(learners(p["rows"], "others"))[at] for name, p in populations.items()}
        without = {name: free(p["rows"], "others")[held[name][0]] for name, p in populations.items()}
        fewer = {name: free_of_fewer(p["rows"], "others").get(held[name][0]) for name, p in populations.items()}
        names = [label(row) for row in next(iter(held.values()))[1]]
        body = [
            ["labels", *(samples for samples, _ in held.values())],
            ["tested on", *(own[0]["n_test"] for _, own in held.values())],
            *([f"`{name}`", *(_named(own, name) for _, own in held.values())] for name in names),
            ["best without training", *(f"{tau(row)} `{row['method']}`" for row in without.values())],
            *([["above it, on fewer", *map(of_fewer, fewer.values())]] if any(fewer.values()) else []),
            ["`parzc` less the best trees", *(_gap(best(own, "parzc")) for _, own in held.values())],
        ]
        lines += ["", f"### With {share} labelled", "", *table(["", *held], body)]
    return lines


def _named(rows: Rows, name: str) -> str:
    return next((tau(row) for row in rows if label(row) == name), "-")


def _ablation(stage: dict[str, Any]) -> list[str]:
    rows: Rows = stage["rows"]
    counts = list(dict.fromkeys(row["samples"] for row in rows))
    changed = [row for row in rows if row["factor"] != "default"]
    lines = [
        "## One thing changed at a time",
        "",
        f'NAS-Bench-201, split "others", {stage["seeds"]} draws of labels. In brackets the difference to the default',
        "of the same predictor under the same draws, ± its standard error. Something helps or harms where the",
        "difference exceeds two standard errors.",
    ]
    if stage["seeds"] > 1:
        chance = 2 * stats.t.sf(2, stage["seeds"] - 1)
        lines[-1] += (
            f" If nothing mattered, {chance:.0%} of the comparisons, {chance * len(changed):.0f} of {len(changed)}, "
            "would exceed them by chance: a single one, of a few thousandths, means little."
        )
    for base in dict.fromkeys(row["base"] for row in rows):
        cases: dict[tuple[str, str], Rows] = {}
        for row in rows:
            if row["base"] == base:
                cases.setdefault((row["factor"], row["value"]), []).append(row)
        body = [[factor, value, *(_changed(row) for row in own)] for (factor, value), own in cases.items()]
        lines += ["", f"### `{base}`", "", *table(["what", "instead", *(f"{n} labels" for n in counts)], body), ""]
        lines += verdicts(base, [row for row in changed if row["base"] == base])
    return lines


def _changed(row: dict[str, Any]) -> str:
    if row["factor"] == "default":
        return tau(row)
    return f"{tau(row)} ({plus_minus(row['difference'], row['difference_error'], sign=True)})"


def verdicts(base: str, rows: Rows) -> list[str]:
    """Say what helps, what harms and what does neither, from the paired differences to the default."""
    told: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for factor, value in dict.fromkeys((row["factor"], row["value"]) for row in rows):
        own = [row for row in rows if (row["factor"], row["value"]) == (factor, value)]
        signs = [clear(row["difference"], row["difference_error"]) for row in own]
        for sign in (1, -1):
            where = [
                f"{row['samples']} labels ({row['difference']:+.3f})"
                for row, found in zip(own, signs, strict=True)
                if found == sign
            ]
            if where:
                told[sign].append(f"{factor} {value} at {', '.join(where)}")
        if not any(signs):
            told[0].append(f"{factor} {value}")
    heads = {1: "Helps", -1: "Harms", 0: "Shows no difference at any number of labels"}
    return [f"- {heads[sign]} (`{base}`): {'; '.join(found) or 'nothing'}." for sign, found in told.items()]


def _calibration(stage: dict[str, Any]) -> list[str]:
    rows: Rows = stage["rows"]
    counts = list(dict.fromkeys(row["samples"] for row in rows))
    names = dict.fromkeys((row["method"], row["features"]) for row in rows)
    body = []
    for method, features in names:
        own = [row for row in rows if (row["method"], row["features"]) == (method, features)]
        body.append([f"`{label(own[0])}`", *(f"{_share(r['coverage_68'])} / {_share(r['coverage_95'])}" for r in own)])
    lines = [
        "## Calibration",
        "",
        f"Which share of the architectures with other keys has its `{stage['train_target']}`, the target that was",
        "learnt, within the central 68 % / 95 % interval of the predicted mean and deviation, taken as normal. Less",
        "than 68 / 95: the predictor is too sure; more: too unsure. Boosted trees and ridge give no deviation.",
        "",
        *table(["labels", *counts], body),
        "",
    ]
    most = counts[-1]
    for row in rows:
        if row["samples"] == most and row["coverage_95"] is not None:
            found = 100 * row["coverage_95"]
            verdict = "too sure" if found < 92 else "too unsure" if found > 98 else "about right"
            lines.append(f"- `{label(row)}` at {most} labels: {verdict} ({found:.0f} % where 95 % are meant).")
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _speed(stage: dict[str, Any]) -> list[str]:
    body = [
        [f"`{row['method']}`" if "rows_timed" not in row else f"{row['method']} (estimated)", *_seconds(row)]
        for row in stage["rows"]
    ]
    made = stage["encode_wall"]
    own = next(row for row in stage["rows"] if row["method"] == "parzc")
    total = own["fit_wall"] + own["predict_wall"]
    estimated = next(row for row in stage["rows"] if "rows_timed" in row)
    return [
        "## Speed",
        "",
        f"Learning from {stage['samples']} architectures and predicting {stage['predicted']}, {stage['features']}",
        f"features, on one thread of a machine with {stage['cores']} cores and a load of {stage['load']:.1f} when it",
        f"began; timed once. `parzc` takes {total:.0f} s in all; making the features takes {made:.0f} s more, whoever",
        "learns from them.",
        "",
        *table(["predictor", "fit, s (CPU)", "predict, s (CPU)", "both, s"], body),
        "",
        f"At its published size the published form is estimated: one epoch over {estimated['rows_timed']} rows (a",
        "training of two epochs less one of one) and one prediction of them were timed, and multiplied to",
        f"{stage['samples']} rows, {PUBLISHED_EPOCHS} epochs and {stage['predicted']} predictions of one draw each.",
    ]


def _seconds(row: dict[str, Any]) -> list[str]:
    pairs = [f"{row[f'{part}_wall']:.1f} ({row[f'{part}_cpu']:.1f})" for part in ("fit", "predict")]
    return [*pairs, f"{row['fit_wall'] + row['predict_wall']:.1f}"]


def above(rows: Rows, own: dict[str, Any]) -> list[str]:
    """Name what learns and ranks better than a row of the same number of samples by two standard errors."""
    found = [(row, *paired(row, own)) for row in rows if row is not own]
    return [
        f"`{label(row)}` ({plus_minus(gap, error, sign=True)})" for row, gap, error in found if clear(gap, error) > 0
    ]
