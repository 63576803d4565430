"""The page of the study of ParZC: what a reader wants first, then each stage, and how to use and repeat it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from parzc_sections import above, best, free, plus_minus, section, table, tau, wrapped
from parzc_stages import Rows, clear, label, learners, paired, parameters

from zcpipe.parzc.predictors import PREDICTORS

TREES = ("extra-trees", "boosted-trees")


def page(record: dict[str, Any]) -> str:
    """Render the results."""
    lines = [
        "# Learned rankings: which predictor, and how many labels",
        "",
        *_opening(record["nasbench201"]),
        "",
        *_elsewhere(record["spaces"]),
        "",
        "![Kendall's tau by the number of labels](parzc.png)",
        "",
        *_protocol(record["nasbench201"]),
        "",
        *_usage(),
        "",
        *_departures(),
        "",
        *_parameters(),
    ]
    for name in record:
        lines += ["", *section(name, record)]
    return "\n".join(wrapped([*lines, "", *_reproduction(record["ablation"])])) + "\n"


def _opening(stage: dict[str, Any]) -> list[str]:
    rows: Rows = stage["rows"]
    counts, without = dict(learners(rows, "others")), free(rows, "others")
    body = []
    for samples, own in counts.items():
        trees, ridge, top = best(own, *TREES), best(own, "ridge"), best(own)
        cells = [tau(best(own, "parzc")), tau(best(own, "mabn")), f"{tau(trees)} `{label(trees)}`"]
        cells += [f"{tau(ridge)} `{label(ridge)}`", f"{tau(without[samples])} `{without[samples]['method']}`"]
        body.append([samples, *cells, f"`{label(top)}`"])
    parzc = {samples: best(own, "parzc") for samples, own in counts.items()}
    passed = {samples: above(own, parzc[samples]) for samples, own in counts.items()}
    lines = [
        "Kendall's tau on NAS-Bench-201's CIFAR-10 test accuracy, of architectures whose key was not learnt from:",
        "",
        *table(["labels", "`parzc`", "`mabn`", "best trees", "ridge", "no training", "best by the mean"], body),
        "",
        "**Which predictor.** " + _which(passed, parzc),
        "",
        "**How many labels.** " + _how_many(parzc, without),
    ]
    return lines


def _which(passed: dict[int, list[str]], parzc: dict[int, dict[str, Any]]) -> str:
    """Say whether the default is the one to use."""
    better = [f"{', '.join(names)} at {samples} labels" for samples, names in passed.items() if names]
    text = "`parzc`, the default of `zcpipe parzc train`"
    if not better:
        text += ": no other predictor here is above it by more than two standard errors at any number of labels."
    else:
        text += f", except where another is above it by more than two standard errors: {'; '.join(better)}."
    gaps = {samples: (row.get("difference"), row.get("difference_error")) for samples, row in parzc.items()}
    ahead = [str(samples) for samples, gap in gaps.items() if clear(*gap) > 0]
    behind = [str(samples) for samples, gap in gaps.items() if clear(*gap) < 0]
    told = [f"above the best trees at {', '.join(ahead)} labels"] if ahead else []
    told += [f"below them at {', '.join(behind)}"] if behind else []
    return text + (f" It is {' and '.join(told)}." if told else " From the best trees it differs at no number clearly.")


def _how_many(parzc: dict[int, dict[str, Any]], without: dict[int, dict[str, Any]]) -> str:
    """Say from how many labels on learning pays, and what more of them give."""
    worth = [n for n, row in parzc.items() if row["kendall"] - 2 * row.get("kendall_error", 0) > _size(without[n])]
    counts = list(parzc)
    lasting = [n for at, n in enumerate(counts) if set(counts[at:]) <= set(worth)]
    if lasting:
        text = f"From {lasting[0]} labels on `parzc` is above all that needs no training."
    else:
        text = "With the most of these labels `parzc` is not clearly above all that needs no training."
    steps = []
    for fewer, more in pairwise(counts):
        gap, error = paired(parzc[more], parzc[fewer])
        steps.append(f"{fewer} to {more}: {plus_minus(gap, error, sign=True)}")
    return text + (f" What more labels give: {'; '.join(steps)}." if steps else "")


def _size(row: dict[str, Any]) -> float:
    """Return how well a column ranks in its own direction, as the best of all does: without its sign."""
    return abs(row["kendall"])


def _elsewhere(stage: dict[str, Any]) -> list[str]:
    """Say in a sentence for each space what learning gives there."""
    lines = ["**On other spaces**, with the parameters chosen on NAS-Bench-201:", ""]
    for name, population in stage["populations"].items():
        without = free(population["rows"], "others")
        told = []
        for samples, own in learners(population["rows"], "others"):
            row = best(own, "parzc")
            gap = plus_minus(row.get("difference"), row.get("difference_error"), sign=True)
            told.append(
                f"{samples} labels: `parzc` {tau(row)} ({gap} to the best trees), no training "
                f"{plus_minus(_size(without[samples]), without[samples].get('kendall_error'))} "
                f"(`{without[samples]['method']}`)"
            )
        lines.append(f"- {name}: {'; '.join(told)}.")
    lines += [f"- {name}: not measured, for {why}." for name, why in stage["missing"].items()]
    return lines


def _protocol(stage: dict[str, Any]) -> list[str]:
    sizes = {samples: own[0]["n_test"] for samples, own in learners(stage["rows"], "others")}
    of, most = stage["facts"], max(sizes)
    harder = free(stage["rows"], "others")[most]
    (easier,) = (
        row
        for row in stage["rows"]
        if (row["method"], row["samples"], row["split"]) == (harder["method"], most, "published")
    )
    tested = ", ".join(f"{size} with {samples} labels" for samples, size in sizes.items())
    return [
        "## What is measured",
        "",
        "A predictor learns the validation accuracy of n architectures drawn at random, and is tested by how it ranks",
        "others by test accuracy; each draw is the same for all predictors. Features and aggregates see every",
        "architecture of the table, without labels.",
        "",
        '- Split **"others"**, which all conclusions are drawn from: architectures whose key is none of those learnt',
        "  from. Architectures with one key compute the same function: one of them learnt from gives the others away.",
        f"  NAS-Bench-201's {of['rows']} cells have {of['keys']} keys, and drawing cells at random draws the keys of",
        "  many cells first. So leaving out all cells of the keys drawn leaves a smaller test set of another kind:",
        f"  {tested} (the fewest of the draws). With {most} labels the best without training,",
        f"  `{harder['method']}`, has tau {_size(harder):.3f} on those and {_size(easier):.3f} on the",
        f"  {easier['n_test']} of all cells that it has values of: learnt rankings differ between the splits for that",
        "  reason, too.",
        '- Split **"published"**: all architectures, those learnt from among them, as ParZC\'s code tests.',
        "- **No training**: the best of all proxies, counts, aggregates and training-free ParZC that have values of",
        "  all architectures tested on, chosen by its tau on them; so are the best trees and ridge. That favours them.",
        "  What lacks values of some and is above it on the others is named beside. The aggregates `stages` and",
        "  `stages_and_more` were chosen by labels of 700 cells of NAS-Bench-201 (`nasbench201_proxies.md`).",
        "",
        "How the default was chosen: `parzc`'s members, the encoding and what a learner is shown of the targets were",
        "tried on NAS-Bench-201's CIFAR-10, and are frozen for all other spaces. What is said of NAS-Bench-201",
        "flatters the default by as much as that choice fitted it; the other spaces had no say. The published code",
        "chooses its parameters by the test correlation, tests on architectures learnt from, predicts by a single draw",
        "of the weights and reuses CIFAR-10's statistics for ImageNet16-120. Here what is learnt on NAS-Bench-201 are",
        "validation accuracies, no key learnt from is tested on, predictions are means over draws of the weights, and",
        "each population has its own statistics.",
    ]


def _usage() -> list[str]:
    return [
        "## Use",
        "",
        "A table with statistics (`zcpipe run`) and the accuracies of some of its architectures are all it needs:",
        "",
        "```sh",
        'pip install "zcpipe[parzc]"',
        "zcpipe parzc train TABLE --truth truth.parquet --target cifar10_val_200 --samples 156 --out model.safetensors",
        "zcpipe parzc predict model.safetensors TABLE --out predicted.parquet  # mean, std and rank of each",
        "zcpipe parzc evaluate TABLE --truth truth.parquet --target cifar10_test_200 \\",
        "    --train-target cifar10_val_200 --samples 78,156 --seeds 10 --workers 2",
        "zcpipe parzc importance TABLE --truth truth.parquet --target cifar10_val_200 --samples 469 --figure nodes.png",
        "zcpipe parzc tune TABLE --truth truth.parquet --target cifar10_val_200 --samples 156 --predictor mabn",
        "```",
        "",
        "`--predictor mabn` trains ParZC's network instead of the default, `mabn-published` the form of its code, and",
        "`--init MODEL` starts a network from another's weights. A model is refused on a table of another recipe or",
        "one that lacks its features. Where a table has grown by networks with places that none had in training, those",
        "rows are not predicted, and the column `reason` of the file says so. Without `--samples` all labelled",
        "architectures are learnt from.",
    ]


def _departures() -> list[str]:
    return [
        "## Where the published features are not met",
        "",
        "`--encoding minmax` scales each architecture's values of a statistic to [0, 1], and `--alignment packed` puts",
        "them one after the other, as the published code does. What they start from differs:",
        "",
        "- **Logarithms.** `synflow`, `synflow_bn` and `dss` are scaled as the natural logarithms that a table keeps,",
        "  for those of deep networks fit no float. The published code scales synflow itself, of which the largest",
        "  layer may leave all others near 0; logarithms alone keep the order within an architecture.",
        "- **Sums.** A statistic is the sum over a layer's weights, for a proxy is the sum of its statistics. The",
        "  published code takes the mean over the weights for snip, synflow, plain, grasp and fisher, so that there",
        "  large layers do not weigh more; grad_norm and l2_norm are the same in both.",
        "- **Empty places.** With `--alignment slots`, the default, a place that an architecture lacks, or that is",
        "  dead, counts as 0 when the smallest and largest value are taken, for a list does not say which of its",
        "  values are such; among logarithms 0 may lie anywhere. Published lists are filled up with zeros after the",
        "  scaling.",
        "- **Dead layers.** With `--alignment packed` layers that are not live are left out, so that a place counts",
        "  live nodes. Published lists hold a 0 for each, which counts when the smallest and largest are taken.",
        "- **Scalars.** Proxies and counts, which the published features are without, go to [0, 1] over the",
        "  population.",
        "",
        "What each does to the ranking was not measured; the encodings beside each other are below.",
    ]


def _parameters() -> list[str]:
    rows = []
    for name in PREDICTORS:
        for field, value in parameters(name, {}).items():
            nested = value.items() if field == "settings" else [("", value)]
            rows += [[f"`{name}`", f"{field}.{own}".rstrip("."), f"`{json.dumps(one)}`"] for own, one in nested]
    return [
        "## Parameters",
        "",
        'A file of `--parameters` is JSON such as `{"predictor": "mabn", "parameters": {"settings": {"epochs": 90}}}`,',
        "with any of these that are to differ from their defaults; `zcpipe parzc tune` writes one. What each is for",
        "stands with its class in `zcpipe/parzc/predictors/` and with `zcpipe.parzc.training.Settings`.",
        "",
        *table(["predictor", "parameter", "default"], rows),
    ]


def _reproduction(stage: dict[str, Any]) -> list[str]:
    counts = ",".join(str(samples) for samples in dict.fromkeys(row["samples"] for row in stage["rows"]))
    return [
        "## Repeat it",
        "",
        "```sh",
        "zcpipe run --space nasbench201 --dataset cifar10 \\",
        "    --proxies aznas,nasbench_suite_zero,grad_norm_global,linear_regions,meco,num_layers,\\",
        "stage_expressivity,swap,synflow_bn,zico \\",
        "    --inputs npz:data/cifar10_train_1000.npz --batch-size 16 --workers 2 --out runs/parzc/nasbench201",
        "ZCPIPE_DATA=data python pipelines/spaces.py --batch-size 8 --resolution 128 \\",
        "    --images npz:data/cifar10_train_1000.npz --workers 2",
        f"ZCPIPE_DATA=data python pipelines/parzc.py --workers 2 --ablation-samples {counts} \\",
        f"    --ablation-seeds {stage['seeds']}",
        "```",
        "",
        "Each stage is printed alone by `--stages nasbench201`, `spaces`, `ablation`, `calibration` or `speed`; what",
        "was computed is kept and not repeated. Every row is in `parzc.parquet`: the mean over the draws,",
        "its standard error and, where something was learnt, Kendall's tau of each draw.",
    ]
