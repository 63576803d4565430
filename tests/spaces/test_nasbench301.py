"""NAS-Bench-301: DARTS's cells at the benchmark's own scale, and a run over them."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from genotype_cases import relabelled
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zcpipe
from zcpipe.errors import UsageError
from zcpipe.run import RunSpec, run
from zcpipe.scoring.rows import ClassScorer
from zcpipe.spaces.base import slot_of
from zcpipe.spaces.nasbench301 import NASBENCH301
from zcpipe.table import open_table

DARTS_V2 = (  # the second-order cells of the DARTS paper, lower inputs first
    "nasbench301 w16 d8 normal |sep_conv_3x3~0|sep_conv_3x3~1|+|sep_conv_3x3~0|sep_conv_3x3~1|"
    "+|skip_connect~0|sep_conv_3x3~1|+|skip_connect~0|dil_conv_3x3~2|@2,3,4,5 "
    "reduce |max_pool_3x3~0|max_pool_3x3~1|+|max_pool_3x3~1|skip_connect~2|"
    "+|max_pool_3x3~0|skip_connect~2|+|max_pool_3x3~1|skip_connect~2|@2,3,4,5"
)
AZNAS = ("expressivity", "progressivity", "trainability", "complexity", "grad_norm")


def test_is_installed():
    assert zcpipe.get_space("nasbench301") is NASBENCH301
    assert list(NASBENCH301.datasets) == ["cifar10"]


@given(st.integers(0, 10**9))
def test_every_node_reads_two_nodes(i):
    arch = NASBENCH301.sample(0, i)
    assert (arch.width, arch.depth) == (16, 8)
    for cell in (arch.normal, arch.reduce):
        assert all(first < second for (_, first), (_, second) in cell.nodes)
        assert "none" not in dict(cell.edges)


@given(st.integers(0, 10**9))
def test_every_member_is_made_of_choices_of_its_own(i):
    arch = NASBENCH301.sample(0, i)
    numbers = []
    for cell in (arch.normal, arch.reduce):
        for node, ((first, low), (second, high)) in enumerate(cell.nodes, start=2):
            numbers += [list(itertools.combinations(range(node), 2)).index((low, high))]
            numbers += [NASBENCH301.operations.index(operation) for operation in (first, second)]
    assert NASBENCH301.choose(numbers) == arch
    assert len(numbers) == len(NASBENCH301.choices)
    assert all(number < options for number, options in zip(numbers, NASBENCH301.choices, strict=True))
    assert math.prod(NASBENCH301.choices) == (1 * 3 * 6 * 10 * 7**8) ** 2  # as many as there are members


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("w16 d8", "w32 d8"), "got w32 d8, expected w16 d8"),
        (("w16 d8", "w16 d8 aux"), "got w16 d8 aux, expected w16 d8"),
        (
            ("|sep_conv_3x3~0|sep_conv_3x3~1|", "|sep_conv_3x3~1|sep_conv_3x3~0|"),
            "node 2 reads 1 and 0, expected two in",
        ),
        (("|sep_conv_3x3~0|sep_conv_3x3~1|", "|sep_conv_3x3~1|sep_conv_3x3~1|"), "node 2 reads 1 and 1"),
        (("sep_conv_3x3", "none"), "unknown operation 'none'"),
        (("nasbench301", "darts"), "begin with 'nasbench301', not 'darts'"),
    ],
)
def test_others_are_refused(change, says):
    assert str(NASBENCH301.parse(DARTS_V2)) == DARTS_V2
    with pytest.raises(UsageError) as caught:
        NASBENCH301.parse(DARTS_V2.replace(*change, 1))
    assert says in str(caught.value)


def test_size_of_the_darts_network_is_the_papers():
    """DARTS states 3.3 million parameters for its cells with 20 cells of 36 channels; here they are few."""
    arch = NASBENCH301.parse(DARTS_V2)
    assert f"{NASBENCH301.size(replace(arch, width=36, depth=20), 'cifar10').params / 1e6:.1f}" == "3.3"
    assert NASBENCH301.size(arch, "cifar10").params < 300_000


def test_a_run_fills_rows_and_puts_statistics_into_their_slots(tmp_path):
    spec = RunSpec(
        space="nasbench301",
        dataset="cifar10",
        proxies=AZNAS,
        selection={"kind": "sample", "n": 3},
        batch_size=2,
    )
    run(spec, tmp_path / "table")
    rows = open_table(tmp_path / "table").to_arrow().to_pylist()
    assert sorted(row["arch"] for row in rows) == sorted(str(NASBENCH301.sample(0, i)) for i in range(3))
    for row in rows:
        arch = NASBENCH301.parse(row["arch"])
        slots = NASBENCH301.slots(arch, "cifar10")
        assert row["status"] == "ok"
        assert row["key"] == NASBENCH301.key(arch)
        assert (row["params"], row["macs"]) == tuple(vars(NASBENCH301.size(arch, "cifar10")).values())
        assert len(row["expressivity@block"]) == len(slots.blocks) == 9
        assert np.sum(row["expressivity@block"]) == pytest.approx(row["expressivity"], rel=1e-6)
        model = NASBENCH301.build(arch, "cifar10").model
        layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        filled = {slot_of(name, set(slots.layers)) for name in layers}
        values = dict(zip(slots.layers, row["grad_norm@layer"], strict=True))
        assert sum(values.values()) == pytest.approx(row["grad_norm"], rel=1e-5)
        assert {slot for slot, value in values.items() if value} <= filled
        assert values["stem.0"] and values["classifier"]


def test_members_of_a_key_share_their_scores_in_slots_of_their_own():
    arch = NASBENCH301.sample(0, 0)
    shuffle = random.Random(2)
    other = replace(arch, normal=relabelled(arch.normal, shuffle), reduce=relabelled(arch.reduce, shuffle))
    spec = RunSpec(space="nasbench301", dataset="cifar10", proxies=AZNAS, batch_size=2)
    ours, theirs = ClassScorer(spec).score(arch, [arch, other])
    assert all(ours[name] == theirs[name] for name in (*AZNAS, "params", "macs"))
    values = [
        dict(zip(NASBENCH301.slots(member, "cifar10").layers, row["grad_norm@layer"].tolist(), strict=True))
        for member, row in ((arch, ours), (other, theirs))
    ]
    moved = NASBENCH301.correspondence(arch, other, "cifar10")
    assert any(slot != origin for slot, origin in moved.items())
    assert {slot: values[1][slot] for slot in moved} == {slot: values[0][origin] for slot, origin in moved.items()}
    assert not any(value for slot, value in values[1].items() if slot not in moved)
