"""NAS-Bench-201 is the benchmark's: its order, its counts, its classes, its networks."""

import hashlib
import json
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zcpipe import get_space, initialise
from zcpipe.errors import UsageError
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.spaces.base import slot_of
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


@st.composite
def relatives(draw):
    """Two cells of one key, any two of its class."""
    classes = key_classes(SPACE)
    index = draw(st.integers(0, 15624))
    members = np.flatnonzero(classes.class_of == classes.class_of[index])
    return SPACE[int(draw(st.sampled_from(members.tolist())))], SPACE[index]


@settings(max_examples=60)
@given(relatives(), st.integers(0, 100))
def test_members_of_a_class_compute_one_function(pair, seed):
    """With the weights of corresponding layers a member gives what its representative does."""
    representative, member = pair
    ours, theirs = (SPACE.build(cell, "cifar10").model.double() for cell in (member, representative))
    slots = SPACE.common_slots("cifar10").layers
    initialise(theirs, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in theirs.parameters():
        if parameter.ndim == 1:  # batch norms and biases would be the same everywhere
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    correspondence = SPACE.correspondence(representative, member, "cifar10")
    assert list(correspondence) == [slot_of(name, slots) for name in weighted_layers(member, False)]
    weights, given = theirs.state_dict(), {}
    for name in ours.state_dict():
        slot = next((slot for slot in correspondence if name.startswith(f"{slot}.")), None)
        given[name] = weights[name if slot is None else correspondence[slot] + name.removeprefix(slot)]
    ours.load_state_dict(given)
    x = images(seed).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-8)


def test_correspondence_of_cells_of_different_keys_is_refused():
    with pytest.raises(UsageError, match="different functions"):
        SPACE.correspondence(SPACE[0], SPACE[1], "cifar10")


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
    assert built.blocks == SPACE.common_slots("cifar10").blocks
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


class TestSlots:
    """Every place for a weighted layer has one name, whatever the cell."""

    def test_are_the_98_of_the_full_network(self):
        slots = SPACE.common_slots("cifar10").layers
        assert len(slots) == len(set(slots)) == 1 + 15 * 6 + 2 * 3 + 1
        assert slots[:3] == ("stem", "cells.0.layers.0", "cells.0.layers.1")
        assert slots[31:35] == ("cells.5.conv_a", "cells.5.conv_b", "cells.5.downsample", "cells.6.layers.0")
        assert slots[-2:] == ("cells.16.layers.5", "classifier")

    @settings(max_examples=20)
    @given(cells, st.booleans())
    def test_weighted_layers_fill_different_ones_in_their_order(self, cell, full):
        slots = SPACE.common_slots("cifar10").layers
        positions = [slots.index(slot_of(name, slots)) for name in weighted_layers(cell, full)]
        assert positions == sorted(set(positions))

    def test_all_are_filled_where_every_edge_is_a_convolution(self):
        slots = SPACE.common_slots("cifar10").layers
        assert [slot_of(name, slots) for name in weighted_layers(Cell(("nor_conv_1x1",) * 6), False)] == list(slots)

    @pytest.mark.parametrize("layer", ["cells.5.layers.1.op.1", "stems.0", "cells.3", ""])
    def test_a_layer_of_no_slot_is_named(self, layer):
        with pytest.raises(UsageError, match=f"layer '{layer}' fills no slot"):
            slot_of(layer, SPACE.common_slots("cifar10").layers)


def weighted_layers(cell, full):
    model = SPACE.build(cell, "cifar10", full=full).model
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


class TestFull:
    """The full network: dead edges are there and run, and nothing else knows of it."""

    @settings(max_examples=50)
    @given(cells, st.sampled_from(["cifar10", "cifar100", "imagenet16-120"]))
    def test_has_the_benchmarks_parameters(self, cell, dataset):
        model = SPACE.build(cell, dataset, full=True).model
        assert sum(p.numel() for p in model.parameters()) == SPACE.size(cell, dataset).params

    @settings(max_examples=20)
    @given(cells, st.booleans())
    def test_outputs_and_gradients_are_those_of_the_pruned_network(self, cell, fast):
        """Bit for bit, also where whole cells are one step of autograd."""
        outcomes = []
        for full in (False, True):
            model = initialise(SPACE.build(cell, "cifar10", 1, full=full).model).to(memory_format=torch.channels_last)
            x = images(0).requires_grad_()
            modules = dict(model.named_modules())
            with untouched(modules), fast_operations(modules if fast else {}):
                y = model(x)
                outcomes.append((y, *torch.autograd.grad((y * y).sum() + x.sum(), x)))
        (y, gradient), (full_y, full_gradient) = outcomes
        assert torch.equal(y, full_y)
        assert torch.equal(gradient, full_gradient)

    @settings(max_examples=20)
    @given(cells)
    def test_dead_layers_get_no_gradient(self, cell):
        model = initialise(SPACE.build(cell, "cifar10", 1, full=True).model)
        model(images(0)).sum().backward()
        for index, module in enumerate(model.cells):
            for edge, layer in getattr(module, "layers", {}).items():
                for parameter in layer.parameters():
                    assert (parameter.grad is not None) == cell.live[int(edge)], (index, edge)

    @settings(max_examples=30)
    @given(cells, st.booleans())
    def test_every_layer_reads_what_the_published_network_gives_it(self, cell, fast):
        """Hooks see each layer's input: the sum of all the edges into its node, zeros from "none"."""
        model = initialise(SPACE.build(cell, "cifar10", 1, full=True).model).requires_grad_(False)
        modules = dict(model.named_modules())
        seen = {}
        for name, module in modules.items():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(lambda _m, x, _y, name=name: seen.setdefault(name, x[0]))
        with untouched(modules), fast_operations(modules if fast else {}), torch.no_grad():
            x = modules["stem"](images(0))
            model(images(0))
            inputs = {name: value for name, value in seen.items() if name.startswith("cells.0.")}
            nodes = [x]
            for target in (1, 2, 3):
                total = torch.zeros_like(x)
                for edge in [edge for edge, ends in enumerate(EDGES) if ends[1] == target]:
                    if cell.operations[edge] == "none":
                        continue
                    source = nodes[EDGES[edge][0]]
                    if cell.operations[edge].startswith("nor"):
                        torch.testing.assert_close(inputs.pop(f"cells.0.layers.{edge}.op.0"), source)
                    total = total + modules[f"cells.0.layers.{edge}"](source)
                nodes.append(total)
        assert not inputs


def images(seed):
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", [f"arch{i:02d}" for i in range(0, 24, 2)])
def test_published_scores_of_whole_networks_need_the_full_one(data, name):
    """Reference values that count dead layers: NASWOT's log-determinant, written out, and the norms of the weights."""
    values = json.loads(data("reference/values.json").read_text())["values"][name]
    model = SPACE.build(SPACE.parse(values["arch_str"]), "cifar10", cells_per_stage=1, full=True).model
    initialise(model)  # batch norms: 1 and 0
    weights = {key: torch.from_numpy(array) for key, array in np.load(data(f"reference/{name}.npz")).items()}
    assert {key for key, parameter in model.named_parameters() if parameter.ndim > 1} <= weights.keys()
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    kernel = np.zeros((16, 16))

    def add_codes(_module, inputs, _output):
        code = (inputs[0].flatten(1) > 0).numpy().astype(np.float64)
        kernel[:] += code @ code.T + (1 - code) @ (1 - code).T

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(add_codes)
    with torch.no_grad():
        model.train()(torch.from_numpy(np.load(data("reference/batch16.npz"))["x"]))
    published = values["naslib_f32"]
    assert np.linalg.slogdet(kernel)[1] == pytest.approx(published["nwot"], rel=1e-6)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    norms = sum(layer.weight.detach().norm().item() for layer in layers)
    assert norms == pytest.approx(published["l2_norm"], rel=1e-6)


def test_networks_share_nothing_though_their_layers_are_constructed_once():
    cell = SPACE[0]
    first = SPACE.build(cell, "cifar10").model
    kept = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    with torch.no_grad():
        for tensor in first.state_dict().values():
            tensor.fill_(7)
    for module in first.modules():
        module.train(False).register_forward_hook(lambda *_: None)
    second = SPACE.build(cell, "cifar10").model
    torch.testing.assert_close(second.state_dict(), kept, rtol=0, atol=0)
    assert all(module.training and not module._forward_hooks for module in second.modules())
