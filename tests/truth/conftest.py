"""Small files in NATS-Bench's official forms, and the real ones where they are."""

import bz2
import pickle
from collections import OrderedDict

import numpy as np
import pytest

ARCHS = [
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|",
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
]
SETS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}
SEEDS = {"12": (111,), "200": (777, 888, 999)}


def accuracy(index, dataset, split, epochs, seed):
    """The accuracy the files of these tests state, different for everything it may be confused with."""
    return 10 + index + list(SETS).index(dataset) * 7 + SETS[dataset].index(split) * 2 + epochs / 100 + seed / 1e4


def training(index, dataset, epochs, seed):
    """One record, with every key of the official ones."""
    curve = {
        f"{split}@{epoch}": accuracy(index, dataset, split, epochs, seed) - (epochs - 1 - epoch)
        for split in SETS[dataset]
        for epoch in range(epochs - 3, epochs)
    }
    losses = OrderedDict((epoch, 2.5) for epoch in range(epochs))
    return {
        "name": "infer.tiny", "train_acc1es": OrderedDict(losses), "train_acc5es": OrderedDict(losses),
        "train_losses": losses, "train_times": OrderedDict(losses), "arch_config": {"channel": 16, "num_cells": 5},
        "params": 0.1 + index, "flop": 15.5 + index, "seed": f"{seed:04d}", "epochs": epochs,
        "latency": [np.float64(0.0125)], "eval_names": list(SETS[dataset]), "eval_acc1es": OrderedDict(curve),
        "eval_times": OrderedDict(curve), "eval_losses": OrderedDict(curve), "net_state_dict": None,
    }  # fmt: skip


def cell(index):
    """One architecture's content."""
    return OrderedDict(
        (
            hp,
            {
                "arch_index": index,
                "arch_str": ARCHS[index],
                "all_results": OrderedDict(
                    ((dataset, seed), training(index, dataset, int(hp), seed)) for dataset in SETS for seed in seeds
                ),
                "dataset_seed": {dataset: list(seeds) for dataset in SETS},
                "clear_net_done": True,
            },
        )
        for hp, seeds in SEEDS.items()
    )


def store(path, content):
    """Pickle as the benchmark does, compressed if the name says so."""
    data = pickle.dumps(content, protocol=4)
    path.write_bytes(bz2.compress(data) if path.suffix == ".pbz2" else data)
    return path


def meta():
    return {"meta_archs": ARCHS, "total_archs": len(ARCHS), "arch2infos": None, "evaluated_indexes": set()}


@pytest.fixture
def files():
    """The helpers above, for tests that make their own files."""

    class Files:
        archs, sets, seeds = ARCHS, SETS, SEEDS
        accuracy, cell, store, meta = map(staticmethod, (accuracy, cell, store, meta))

    return Files


@pytest.fixture(params=[".pickle.pbz2", ".pickle"])
def directory(tmp_path, request):
    """The directory form, without the file of cell 1."""
    place = tmp_path / "NATS-tss-v1_0-3ffb9-simple"
    place.mkdir()
    store(place / f"meta{request.param}", meta())
    for index in (0, 2):
        store(place / f"{index:06d}{request.param}", cell(index))
    return place


@pytest.fixture(params=[".pickle.pbz2", ".pickle"])
def whole(tmp_path, request):
    """The single-file form with all three cells."""
    content = {
        "meta_archs": ARCHS,
        "arch2infos": OrderedDict((index, cell(index)) for index in (2, 0, 1)),
        "evaluated_indexes": {0, 1, 2},
    }
    return store(tmp_path / f"NATS-tss-v1_0-3ffb9{request.param}", content)
