"""Rows of key classes: the function is scored once, sizes are each member's own, repeats give mean and spread."""

import math

import numpy as np
import pytest

from zcpipe import get_space
from zcpipe.proxies import resolve
from zcpipe.run import RunSpec
from zcpipe.scoring.rows import ClassScorer
from zcpipe.spaces.classes import key_classes

SPACE = get_space("nasbench201")
FOUR = tuple(proxy.name for proxy in resolve("aznas"))


def scorer(**fields):
    return ClassScorer(
        RunSpec.model_validate({"space": SPACE.name, "dataset": "cifar10", "proxies": FOUR, "batch_size": 2, **fields})
    )


def class_of(key):
    """Representative and members of a key."""
    members = [cell for cell in SPACE if SPACE.key(cell) == key]
    return SPACE[int(key_classes(SPACE).representative[key_classes(SPACE).class_of[SPACE.index(members[0])]])], members


def test_members_share_the_function_and_keep_their_own_sizes():
    representative, members = class_of("c3(x)")
    rows = scorer().score(representative, members)
    assert len({row["expressivity"] for row in rows}) == len({row["trainability"] for row in rows}) == 1
    for cell, row in zip(members, rows, strict=True):
        size = SPACE.size(cell, "cifar10")
        assert (row["params"], row["macs"], row["complexity"]) == (size.params, size.macs, size.macs)
    assert len({row["params"] for row in rows}) > 1
    assert {row["status"] for row in rows} == {"ok"}


def test_a_row_depends_on_seed_and_key_alone():
    representative, members = class_of("c1(x)+x")
    alone = scorer().score(representative, members[-1:])[0]
    again = scorer()
    again.score(SPACE[13714], [SPACE[13714]])  # whatever was scored before
    together = again.score(representative, members)[-1]
    for name in (*FOUR, "params", "macs"):
        assert alone[name] == together[name]
    assert np.array_equal(alone["expressivity@block"], together["expressivity@block"])
    assert scorer(seed=1).score(representative, members[-1:])[0]["trainability"] != alone["trainability"]


def test_repeats_store_mean_and_spread():
    cell = SPACE[13714]
    row = scorer(repeats=3).score(cell, [cell])[0]
    single = scorer().score(cell, [cell])[0]
    assert row["expressivity"] != single["expressivity"]
    assert row["expressivity"] == pytest.approx(single["expressivity"], rel=0.2)
    assert row["expressivity_sd"] > 0
    assert row["complexity"] == single["complexity"]
    assert row["complexity_sd"] == 0
    assert row["expressivity"] == pytest.approx(float(np.sum(row["expressivity@block"])), rel=1e-5)


def test_infinite_scores_have_no_spread():
    representative, members = class_of("x")
    row = scorer(repeats=2).score(representative, members[:1])[0]
    assert row["trainability"] == -math.inf
    assert row["trainability_sd"] is None
    assert row["status"] == "ok"


def test_columns_say_what_they_hold():
    columns = {column.name: column for column in scorer().columns}
    assert list(columns) == [*FOUR, "params", "macs", "expressivity@block", "trainability@block"]
    assert columns["expressivity@block"].slots == SPACE.block_slots("cifar10")
    assert columns["trainability@block"].slots == SPACE.block_slots("cifar10")[1:]
    assert columns["macs"].unit == "MAC"
    assert {columns[name].direction for name in FOUR} == {"higher"}
