"""The page of the study of searches: what a reader wants first, the whole table, and what was measured how."""

from __future__ import annotations

import json
import math
from typing import Any

from parzc_sections import table, wrapped
from search_stages import FREE, GUIDES, LEARNER, LEARNT, PARAMETERS, PUBLISHED, WEIGHTS

NAMES = {"synflow": "synflow", "aznas": "AZ-NAS", FREE: "ParZC without training", LEARNT: "ParZC of labels"}
SIGNIFICANT = 0.05
PUBLISHED_SPEED_UP = 4  # Abdelfattah et al., ICLR 2021, on NAS-Bench-101

Row = dict[str, Any]


def page(record: dict[str, Any]) -> str:
    """Render the results."""
    rows, options, of = record["rows"], record["options"], record["facts"]
    algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
    lines = [
        "# Searches: how many models scores save",
        "",
        f"Simulated searches of {of['identity']['space']} ({of['rows']} architectures, {of['models']} models that "
        f"differ by key). `{of['target']}` guides; what is reported is `{of['report']}` of the model with the best "
        f"target so far. This is after how many trained models it is {options['goal']:.1f}, the median of "
        f"{rows[0]['seeds']} seeds. {of['good']} models are as good as that; the one with the best target has "
        f"{of['best_by_target']:.2f}, the best of all {of['best']:.2f}.",
        "",
        *(line for algorithm in algorithms for line in _sentences(algorithm, record)),
        "",
        *_published(rows),
        "",
        "![Accuracy against trained models](search.png)",
        "",
        "Shades are standard errors over the seeds.",
        "",
        "## All cases",
        "",
        *_table(record),
        "",
        *_predictors(record),
        "",
        *_protocol(record),
        "",
        *_reproduction(record),
    ]
    return "\n".join(wrapped(lines)) + "\n"


def _sentences(algorithm: str, record: dict[str, Any]) -> list[str]:
    """Say what an algorithm needs without scores, and which scores clearly save or cost models."""
    plain, *guided = [row for row in record["rows"] if row["algorithm"] == algorithm]
    compared = sum(bool(row["role"]) for row in record["rows"])
    clear = [row for row in guided if row["p"] * compared < SIGNIFICANT]
    sooner = sorted((row for row in clear if row["sooner"] > row["later"]), key=lambda row: row["median"] or math.inf)
    later = [row for row in clear if row["sooner"] < row["later"]]
    text = f"- `{algorithm}` without scores is there {_needs(plain)}."
    if sooner:
        text += f" Clearly sooner: {'; '.join(f'{_named(row)}, {_needs(row)}, {_speed(row)}' for row in sooner)}."
    if later:
        text += f" Clearly later: {'; '.join(f'{_named(row)}, {_needs(row)}' for row in later)}."
    open_ = [_named(row) for row in guided if row not in clear]
    return [text + (f" No clear difference: {'; '.join(open_)}." if open_ else "")]


def _needs(row: Row) -> str:
    share = f"{_got(row)} of {row['seeds']} seeds"
    if row["median"] is None:
        return f"in {share} within {row['budget']} models"
    return f"after {row['median']:g} models ({share})"


def _named(row: Row) -> str:
    by = "a warm-up and moves" if row["role"] == "both" else "moves" if row["role"] == "moves" else "a warm-up"
    return f"{by} by {NAMES[row['guide']]}"


def _speed(row: Row) -> str:
    """Render the speed-up."""
    if row["speed_up"] is None:
        return "how many times as fast cannot be told, for without scores the median is beyond the budget"
    return f"{row['speed_up']:.1f} times as fast"


def _interval(row: Row) -> str:
    ends = ["beyond" if end is None else f"{end:.1f}" for end in (row["speed_up_low"], row["speed_up_high"])]
    return " to ".join(ends)


def _published(rows: list[Row]) -> list[str]:
    told = [row for row in rows if row.get("speed_up")]
    if not told:
        return []
    most = max(told, key=lambda row: row["speed_up"])
    return [
        f"Abdelfattah et al. (ICLR 2021) report up to {PUBLISHED_SPEED_UP} times on NAS-Bench-101. The largest here, "
        f"over the same algorithm without scores, is that of `{most['algorithm']}` with {_named(most)}: {_speed(most)} "
        f"(95 % of resampled seeds: {_interval(most)})."
    ]


def _table(record: dict[str, Any]) -> list[str]:
    points = record["points"]
    goal = record["options"]["goal"]
    head = ["algorithm", "scores", *(f"{point} models" for point in points)]
    head += [f"seeds at {goal:.1f}", "median models", "speed-up", "95 % of resamples", "sooner, later"]
    body = []
    for row in record["rows"]:
        accuracies = [_accuracy(row, point) for point in points]
        speed = ["", "", ""]
        if row["role"]:
            value = row["speed_up"]
            told = row["median"] is not None and value is not None
            speed = [f"{value:.2f}" if told else "-", _interval(row), f"{row['sooner']}, {row['later']}"]
        scores = f"{row['role']}: {NAMES[row['guide']]}" if row["role"] else "none"
        body.append(
            [f"`{row['algorithm']}`", scores, *accuracies, f"{_got(row)} of {row['seeds']}", _median(row), *speed]
        )
    return table(head, body)


def _accuracy(row: Row, point: int) -> str:
    if point > row["budget"]:
        return ""
    return f"{row['mean'][point - 1]:.2f} ± {row['error'][point - 1]:.2f}"


def _predictors(record: dict[str, Any]) -> list[str]:
    rows = record["predictors"]
    points = [point for point in record["points"] if point <= rows[0]["budget"]] or [rows[0]["budget"]]
    body = [
        [
            _learner(row),
            *(_accuracy(row, point) for point in points),
            f"{_got(row)} of {row['seeds']}",
            _median(row),
            f"{row['cpu_seconds'] / row['seeds']:.1f}",
        ]
        for row in rows
    ]
    head = ["predictor", *(f"{point} models" for point in points), f"seeds at {record['options']['goal']:.1f}"]
    given = [f"`{row['predictor']}` {json.dumps(row['parameters'])}" for row in rows if row.get("parameters")]
    return [
        "## Which predictor",
        "",
        f"Predictor search over {rows[0]['seeds']} seeds. Parameters that differ from defaults: "
        f"{'; '.join(dict.fromkeys(given)) or 'none'}. CPU seconds hold making the features where they were made.",
        "",
        *table([*head, "median models", "CPU seconds a search"], body),
    ]


def _learner(row: Row) -> str:
    told = [f"`{row['predictor']}`"]
    told += [f"warm-up by {NAMES[row['guide']]}"] if row["guide"] else []
    told += [f"pre-trained on its ranking of {row['pretrain']}"] if row.get("pretrain") else []
    return ", ".join(told)


def _got(row: Row) -> int:
    return sum(when is not None for when in row["reached"])


def _median(row: Row) -> str:
    return f"> {row['budget']}" if row["median"] is None else f"{row['median']:g}"


def _protocol(record: dict[str, Any]) -> list[str]:
    options = record["options"]
    seeds = record["rows"][0]["seeds"]
    statistics = ", ".join(f"`{name}`" for name in PUBLISHED)
    return [
        "## What is measured",
        "",
        f"Each case is searched under {seeds} seeds. Budgets are trained models, of which those of one key count once. "
        "Searches of one seed draw the same random architectures, save REINFORCE, which draws its own.",
        "",
        f"- A warm-up scores {options['scored']} random architectures. Random search trains the best of them in order; "
        f"evolution's pool is filled by the {options['kept']} best; REINFORCE is first rewarded by the score's ranks "
        f"of as many that it draws itself, and trains the {options['kept']} best of these; predictor search begins "
        "with a first round of the best.",
        "- Moves take the best of a parent's neighbours by the score, and one time in four a random one. Only "
        "evolution has moves.",
        f"- Predictor search fits `{PARAMETERS['predictor']['predictor']}` with "
        f"`{PARAMETERS['predictor']['parameters']}` to all columns of the table that have values.",
        "- AZ-NAS ranks its four proxies among the architectures that are scored for a warm-up, or among a parent's "
        "neighbours.",
        f"- ParZC without training is the log-rank of the {WEIGHTS} node sums of {statistics} over the whole table: it "
        "needs all architectures scored, not only those of a warm-up.",
        f"- ParZC of labels is the predictor `{LEARNER}` that has learnt from the first {options['labels']} models of "
        "random search under the same seed. They are trained, so that they are the first of the search and count "
        "against its budget. Predictor search learns from what it trains by itself and is not guided so.",
        "",
        "The accuracy that is reported may fall, for a model with a better target is not always better.",
        "",
        "The speed-up is the median of the models needed without scores over that with them; its interval is of "
        'resampled seeds, where seeds that do not get there count as beyond all numbers: "beyond" in it says that '
        "the median without scores is, and 0.0 that the one with them is. The last column counts the seeds that are "
        "there sooner and later than the same seed without scores. Clear is what a sign test of these counts gives a "
        f"probability below {SIGNIFICANT:g}, divided by the number of comparisons here.",
        "",
        "Scoring is not counted: a warm-up scores more architectures than are ever trained, at a fraction of the cost "
        "of a training each ([nasbench201_proxies.md](nasbench201_proxies.md)).",
    ]


def _reproduction(record: dict[str, Any]) -> list[str]:
    took = sum(row["cpu_seconds"] for row in [*record["rows"], *record["predictors"]])
    return [
        "## Again",
        "",
        f"`pipelines/search.py`, whose `--help` says how; all cases took {took / 60:.0f} minutes of one CPU core, with "
        f"{len(GUIDES)} scores. The numbers are in [search.json](search.json).",
    ]
