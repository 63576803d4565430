"""NAS-Bench-201 is the benchmark's: its order, its counts, its classes, its networks."""

import hashlib
import itertools
from contextlib import suppress

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe import get_space, initialise
from zcpipe.errors import UsageError
from zcpipe.spaces.classes import key_classes
from zcpipe.spaces.nasbench201 import EDGES, OPERATIONS, Cell

SPACE = get_space("nasbench201")
cells = st.integers(0, 15624).map(SPACE.__getitem__)


def test_has_the_benchmarks_order(data):
    texts = pq.read_table(data("nasbench201_cifar10.parquet"))["arch"].to_pylist()
    assert [str(SPACE[i]) for i in range(len(SPACE))] == texts


def test_order_never_moves():
    """The order rests on the standard library's shuffle: this digest notices if that ever changes."""
    text = "\n".join(str(cell) for cell in SPACE)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    assert digest == "dc9b07f188f1c662"


@given(cells)
def test_parse_and_index_invert_text_and_position(cell):
    assert SPACE.parse(str(cell)) == cell
    assert SPACE[SPACE.index(cell)] == cell


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "3 nodes"),
        ("|none~0|+|none~0|none~1|", "3 nodes"),
        ("|none~0|+|none~0|+|none~0|none~1|none~2|", "node 2"),
        ("|none~0|+|none~0|none~2|+|none~0|none~1|none~2|", "'~1'"),
        ("|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|", "unknown operation 'conv'"),
        ("|nor_conv_3x~0|+|none~0|none~1|+|none~0|none~1|none~2|", "nor_conv_3x3"),
        ("|||none~0|||+||none~0|none~1|+|none~0|none~1|none~2|", "did you mean"),
        ("none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "node 1"),
    ],
)
def test_malformed_text_is_named(text, says):
    with pytest.raises(UsageError, match="malformed cell") as caught:
        SPACE.parse(text)
    assert says in str(caught.value)


@given(st.text(max_size=60))
def test_parse_never_fails_otherwise(text):
    with suppress(UsageError):
        assert str(SPACE.parse(text)) == text.strip()


def test_keys_make_5260_classes_numbered_by_their_smallest_member():
    classes = key_classes(SPACE)
    assert len(classes.representative) == 5260
    assert (classes.class_of[classes.representative] == range(5260)).all()
    assert (classes.representative[1:] > classes.representative[:-1]).all()
    assert sum(SPACE.key(cell) != "0" for cell in SPACE) == 15284  # cells that connect input to output


@settings(max_examples=15)
@given(st.integers(0, 15624))
def test_members_of_a_class_compute_one_function(index):
    """With equal weights on corresponding edges a member and its representative give the same maps."""
    classes = key_classes(SPACE)
    one, other = SPACE[int(classes.representative[classes.class_of[index]])], SPACE[index]
    networks = [SPACE.build(cell, "cifar10", cells_per_stage=1).model for cell in (one, other)]
    for network in networks:
        initialise(network).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = [edge for edge, live in enumerate(one.live) if live and one.operations[edge].startswith("nor")]
    second = [edge for edge, live in enumerate(other.live) if live and other.operations[edge].startswith("nor")]
    assert len(first) == len(second)
    expected = networks[0](x)
    assert any(
        torch.allclose(expected, _with_edges(networks, dict(zip(order, first, strict=True)))(x))
        for order in itertools.permutations(second)
    )


def _with_edges(networks, origin):
    """Give the second network the first one's weights, edge by edge as ``origin`` says."""
    source, target = networks
    state = {}
    for name in target.state_dict():
        parts = name.split(".")
        if parts[0] == "cells" and parts[2] == "layers":
            parts[3] = str(origin[int(parts[3])])
        value = source.state_dict().get(".".join(parts))
        if value is None or value.shape != target.state_dict()[name].shape:
            return lambda x: torch.full((2, 10), torch.nan, dtype=x.dtype)  # this correspondence does not even fit
        state[name] = value
    target.load_state_dict(state)
    return target


@given(cells, st.permutations([1, 2]))
def test_key_ignores_the_order_of_the_inner_nodes(cell, order):
    """Relabelling nodes 1 and 2 is possible where no edge joins them, and changes nothing."""
    if cell.operations[2] != "none":
        return
    rename = {0: 0, 3: 3, 1: order[0], 2: order[1]}
    operations = ["none"] * 6
    for (source, target), operation in zip(EDGES, cell.operations, strict=True):
        if operation != "none":
            operations[EDGES.index((rename[source], rename[target]))] = operation
    assert SPACE.key(Cell(tuple(operations))) == SPACE.key(cell)


def test_keys_never_change():
    """Tables are keyed and random streams scoped by these texts."""
    keys = SPACE.all_keys()
    assert hashlib.blake2b("\n".join(keys).encode(), digest_size=8).hexdigest() == "7d7a1be02d0aad1a"
    assert [SPACE.key(SPACE[i]) for i in range(0, len(SPACE), 50)] == keys[::50]


def test_keys_are_those_of_the_twin(native, monkeypatch):
    keys = SPACE.all_keys()
    monkeypatch.setenv("ZCPIPE_NO_NATIVE", "1")
    assert SPACE.all_keys() == keys


def test_key_counts_multiplicity_and_passes_skips_through():
    def key(*operations):
        return SPACE.key(Cell(operations))

    skip, none, conv = "skip_connect", "none", "nor_conv_3x3"
    assert key(none, none, none, skip, none, none) == "x"
    assert key(skip, none, none, skip, skip, none) == "2x"
    assert key(conv, none, none, none, skip, none) == key(none, none, none, conv, none, none) == "c3(x)"
    assert key(conv, conv, none, none, skip, skip) == "c3#1(x)+c3#2(x)"
    assert key(none, none, conv, none, none, conv) == "0"


@pytest.mark.parametrize(("index", "params", "macs"), [(13714, "1.073", "153.27"), (3558, "0.858", "121.82")])
def test_sizes_are_the_benchmarks(index, params, macs):
    size = SPACE.size(SPACE[index], "cifar10")
    assert (f"{size.params / 1e6:.3f}", f"{size.macs / 1e6:.2f}") == (params, macs)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet16-120"])
def test_size_of_a_cell_without_dead_edges_is_that_of_its_network(dataset):
    from zcpipe.scoring.size import count

    cell = SPACE[13714]
    assert all(cell.live)
    model = SPACE.build(cell, dataset).model
    images = torch.empty(2, *SPACE.datasets[dataset].input_shape)
    assert count(model, [images]) == SPACE.size(cell, dataset)


@settings(max_examples=20)
@given(cells)
def test_network_holds_the_live_edges_and_names_its_blocks(cell):
    built = SPACE.build(cell, "cifar10")
    assert built.blocks == SPACE.block_slots("cifar10")
    assert len(built.blocks) == 18
    for module in built.model.cells:
        if hasattr(module, "layers"):
            assert [int(edge) for edge in module.layers] == [edge for edge in range(6) if cell.live[edge]]
    model = initialise(built.model)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@given(st.integers(0, 2**31))
@settings(max_examples=10)
def test_samples_are_a_permutation_that_needs_no_earlier_draw(seed):
    draws = [SPACE.sample(seed, i) for i in range(50)]
    assert len(set(draws)) == 50
    assert SPACE.sample(seed, 30) == draws[30]
    with pytest.raises(UsageError, match="15625"):
        SPACE.sample(seed, 15625)


def test_all_samples_of_a_seed_are_the_space():
    assert {SPACE.sample(7, i) for i in range(len(SPACE))} == set(SPACE)


@given(cells, st.integers(0, 1000), st.integers(0, 1000))
def test_neighbours_differ_in_one_edge_and_mutations_are_neighbours(cell, seed, i):
    neighbours = SPACE.neighbours(cell)
    assert len(set(neighbours)) == len(EDGES) * (len(OPERATIONS) - 1)
    for other in neighbours:
        assert sum(a != b for a, b in zip(cell.operations, other.operations, strict=True)) == 1
    assert SPACE.mutate(cell, seed, i) in neighbours
    assert SPACE.mutate(cell, seed, i) == SPACE.mutate(cell, seed, i)


def test_unknown_dataset_names_the_near_one():
    with pytest.raises(UsageError, match="cifar100"):
        SPACE.size(SPACE[0], "cifar1000")
