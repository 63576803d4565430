"""NAS-Bench-101's networks: parameters as published, outputs as described, slots, a run."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from zcpipe import get_space, initialise, open_table
from zcpipe.errors import UsageError
from zcpipe.proxies import get_proxy
from zcpipe.run import RunSpec, run
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.scoring.size import count
from zcpipe.spaces.base import slot_of
from zcpipe.spaces.graphs import NASBENCH101_OPERATIONS
from zcpipe.spaces.nasbench101 import vertex_channels

SPACE = get_space("nasbench101")
CONV3, CONV1, POOL = NASBENCH101_OPERATIONS
# The example of the benchmark's README, and the cell of its first record.
EXAMPLE = SPACE.parse(
    "111100.00001.0001.001.10.1:input,conv3x3-bn-relu,conv1x1-bn-relu,maxpool3x3,conv3x3-bn-relu,conv3x3-bn-relu,output"
)
FIRST_RECORD = SPACE.parse(
    "100110.10000.1001.010.10.1:input,conv3x3-bn-relu,maxpool3x3,conv3x3-bn-relu,conv3x3-bn-relu,conv1x1-bn-relu,output"
)

cells = st.integers(0, 423_623).map(SPACE.__getitem__)
small_cells = st.integers(0, 2_531).map(SPACE.__getitem__)  # of at most five vertices


def graph(vertices, *edges):
    matrix = np.zeros((vertices, vertices), int)
    for edge in edges:
        matrix[edge] = 1
    return matrix


# Graph, channels of input and output, and those of the vertices: as the benchmark's own tests have them.
CHANNELS = [
    (graph(2, (0, 1)), 1, 5, [1, 5]),
    (graph(4, (0, 1), (1, 2), (2, 3)), 8, 16, [8, 16, 16, 16]),
    (graph(5, (0, 1), (0, 2), (1, 3), (2, 3), (3, 4)), 16, 8, [16, 8, 8, 8, 8]),
    (graph(4, (0, 1), (0, 2), (1, 3), (2, 3)), 8, 15, [8, 8, 7, 15]),
    (graph(5, (0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)), 8, 8, [8, 3, 3, 2, 8]),
    (graph(5, (0, 1), (1, 2), (1, 3), (2, 4), (3, 4)), 8, 9, [8, 5, 5, 4, 9]),
    (graph(5, (0, 1), (0, 3), (1, 2), (1, 4), (2, 3), (3, 4)), 8, 15, [8, 8, 7, 7, 15]),
]


class Reference:
    """The network by its description: the weights are taken from a list, in the order in which they are used."""

    def __init__(self, matrix, operations, weights):
        self.matrix, self.operations, self.weights = matrix, operations, iter(weights)

    def conv(self, x, channels, kernel):
        weight, scale, shift = (next(self.weights) for _ in range(3))
        assert weight.shape == (channels, x.shape[1], kernel, kernel)
        x = F.conv2d(x, weight, padding=kernel // 2)
        mean = x.mean((0, 2, 3), keepdim=True)
        x = (x - mean) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (x * scale[:, None, None] + shift[:, None, None]).clamp(min=0)

    def channels_of(self, vertex, channels):
        last = len(self.matrix) - 1
        ends = [v for v in range(1, last) if self.matrix[v][last]]
        if vertex in ends:
            sizes = [len(part) for part in np.array_split(range(channels), len(ends))]
            return sizes[ends.index(vertex)]
        return max(self.channels_of(w, channels) for w in range(1, last) if self.matrix[vertex][w])

    def cell(self, x, channels):
        last = len(self.matrix) - 1
        made, ends = {}, []
        for v in range(1, last):
            width = self.channels_of(v, channels)
            total = 0
            for w in range(1, v):
                if self.matrix[w][v]:
                    assert made[w].shape[1] - width in (0, 1)
                    total = total + made[w][:, :width]
            if self.matrix[0][v]:
                total = total + self.conv(x, width, 1)
            if self.operations[v] == POOL:
                made[v] = F.max_pool2d(F.pad(total, (1, 1, 1, 1), value=-np.inf), 3, 1)
            else:
                made[v] = self.conv(total, width, {CONV3: 3, CONV1: 1}[self.operations[v]])
            if self.matrix[v][last]:
                ends.append(made[v])
        y = torch.cat(ends, 1) if ends else 0
        return y + self.conv(x, channels, 1) if self.matrix[0][last] else y

    def __call__(self, x, stem, cells):
        x = self.conv(x, stem, 3)
        for stack in range(3):
            if stack:
                x = F.max_pool2d(x, 2)
            for _ in range(cells):
                x = self.cell(x, stem << stack)
        weight, bias = self.weights
        return x.mean((2, 3)) @ weight.T + bias


def images(seed, size=8):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(seed))


def filled(model, seed):
    """A model with weights, and norms that are not all the same."""
    initialise(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


class TestNetworks:
    """Networks compute what the benchmark's do, with as many parameters."""

    @pytest.mark.parametrize(("matrix", "inputs", "outputs", "channels"), CHANNELS)
    def test_channels_are_those_of_the_benchmarks_own_tests(self, matrix, inputs, outputs, channels):
        assert vertex_channels(matrix, inputs, outputs) == channels

    @pytest.mark.parametrize(
        ("text", "params"),
        [
            (str(EXAMPLE), 2_694_282),  # printed in the benchmark's notebook
            (str(FIRST_RECORD), 8_555_530),  # the benchmark's first record
            (
                "10000.1111.001.01.1:input,maxpool3x3,maxpool3x3,maxpool3x3,maxpool3x3,output",
                227_274,
            ),  # the fewest here
            (f"111100.10000.1000.100.10.1:input,{','.join([CONV3] * 5)},output", 49_979_274),  # the benchmark's most
        ],
    )
    def test_parameters_are_the_benchmarks(self, text, params):
        cell = SPACE.parse(text)
        assert SPACE.size(cell, "cifar10").params == params
        assert sum(p.numel() for p in SPACE.build(cell, "cifar10").model.parameters()) == params

    @settings(max_examples=15)
    @given(cells)
    def test_size_is_that_of_the_network(self, cell):
        model = SPACE.build(cell, "cifar10").model
        assert count(model, [torch.empty(2, 3, 32, 32)]) == SPACE.size(cell, "cifar10")

    @settings(max_examples=60)
    @given(cells | small_cells, st.sampled_from([1, 6, 16]), st.sampled_from([1, 2, 3]), st.integers(0, 100))
    def test_outputs_are_those_of_the_description(self, cell, stem, repeats, seed):
        assume(stem >= 6 or cell.adjacency[1:, -1].sum() < 2)  # else vertices have no channels
        model = filled(SPACE.build(cell, "cifar10", stem, repeats).model, seed).double()
        x = images(seed).double()
        reference = Reference(cell.adjacency.tolist(), cell.operations, model.parameters())
        torch.testing.assert_close(model(x), reference(x, stem, repeats), rtol=1e-6, atol=1e-8)

    @settings(max_examples=25)
    @given(cells, st.integers(0, 100))
    def test_native_operations_compute_the_same(self, cell, seed):
        model = filled(SPACE.build(cell, "cifar10", 16, 2).model, seed).double().requires_grad_(False)
        model.to(memory_format=torch.channels_last)
        x = images(seed).double().contiguous(memory_format=torch.channels_last)
        plain = model(x)
        with fast_operations(dict(model.named_modules())):
            torch.testing.assert_close(model(x), plain, rtol=1e-6, atol=1e-8)

    def test_full_is_the_same_since_nothing_is_dead(self):
        for cell in (EXAMPLE, SPACE[0]):
            names = [list(SPACE.build(cell, "cifar10", full=full).model.state_dict()) for full in (False, True)]
            assert names[0] == names[1]
            model = filled(SPACE.build(cell, "cifar10", 8, 1).model, 0)
            model(images(0)).sum().backward()
            assert all(parameter.grad is not None for parameter in model.parameters())

    def test_weights_of_cells_are_their_own(self):
        model = SPACE.build(EXAMPLE, "cifar10").model
        assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))

    def test_unknown_dataset_names_the_near_one(self):
        for ask in (SPACE.size, SPACE.slots, SPACE.build):
            with pytest.raises(UsageError, match="did you mean cifar10"):
                ask(EXAMPLE, "cifar100")


class TestSlots:
    """Slots are stem, cells and classifier; a pool before a stack belongs to the cell behind it."""

    def test_of_one_cell(self):
        slots = SPACE.slots(SPACE.parse(f"101.11.1:input,{CONV3},{POOL},output"), "cifar10")
        assert slots.blocks == ("stem", *(f"cells.{i}" for i in range(9)))
        assert slots.layers[:5] == (
            "stem",
            "cells.0.layers.input_1",
            "cells.0.layers.vertex_1",
            "cells.0.layers.input_3",
            "cells.1.layers.input_1",
        )
        assert len(slots.layers) == 1 + 9 * 3 + 1
        assert SPACE.common_slots("cifar10") is None

    @settings(max_examples=30)
    @given(cells)
    def test_layers_fill_them_in_order(self, cell):
        built, slots = SPACE.build(cell, "cifar10"), SPACE.slots(cell, "cifar10")
        layers = [name for name, m in built.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert [slot_of(name, slots.layers) for name in layers] == list(slots.layers)
        assert built.blocks == slots.blocks
        assert SPACE.correspondence(cell, cell, "cifar10") == {slot: slot for slot in slots.layers}

    def test_blocks_halve_the_pixels_where_a_stack_begins(self):
        built = SPACE.build(EXAMPLE, "cifar10", 16)
        shapes = []
        for name in built.blocks:
            hook = lambda _m, _x, y: shapes.append(tuple(y.shape[1:]))  # noqa: E731
            built.model.get_submodule(name).register_forward_hook(hook)
        built.model(torch.zeros(2, 3, 32, 32))
        assert shapes == [(16, 32, 32)] * 4 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3

    def test_correspondence_of_cells_of_different_keys_is_refused(self):
        with pytest.raises(UsageError, match="different keys"):
            SPACE.correspondence(SPACE[0], SPACE[1], "cifar10")


def test_a_run_of_az_nas_fills_the_slots(tmp_path):
    texts = (f"110.10.1:input,{POOL},{CONV1},output", f"101.11.1:input,{CONV1},{POOL},output", "1:input,output")
    proxies = ("expressivity", "progressivity", "trainability", "complexity", "l2_norm")
    fields = {"selection": {"kind": "archs", "texts": texts}, "batch_size": 2, "proxies": proxies}
    spec = RunSpec.model_validate({"space": SPACE.name, "dataset": "cifar10", **fields})
    run(spec, tmp_path / "t")
    init = get_proxy("l2_norm").recipe.init
    rows = open_table(tmp_path / "t").to_arrow().to_pylist()
    assert [row["index"] for row in rows] == sorted(SPACE.index(SPACE.parse(text)) for text in texts)
    for row in rows:
        cell = SPACE.parse(row["arch"])
        assert (row["status"], row["key"]) == ("ok", SPACE.key(cell))
        assert (row["params"], row["macs"]) == (SPACE.size(cell, "cifar10").params, SPACE.size(cell, "cifar10").macs)
        assert row["complexity"] == row["macs"]
        assert row["expressivity"] == pytest.approx(sum(row["expressivity@block"]), rel=1e-5)
        assert (len(row["expressivity@block"]), len(row["trainability@block"])) == (10, 9)
        model = initialise(SPACE.build(cell, "cifar10").model, init=init, space=SPACE.name, scope=row["key"])
        norms = [m.weight.norm().item() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(norms) == len(SPACE.slots(cell, "cifar10").layers)
        assert row["l2_norm@layer"] == pytest.approx(norms, rel=1e-5)
