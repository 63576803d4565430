"""TransNAS-Bench-101's cells are the benchmark's: its counts, its computation, its texts."""

import hashlib
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import classify, conv, norm, randomise, relu_conv_norm
from suite_zero import MICRO, sizes
from torch import nn

from zcpipe import get_space, initialise, open_table
from zcpipe.errors import UsageError
from zcpipe.proxies import resolve
from zcpipe.run import Archs, RunSpec, run
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.scoring.rows import ClassScorer
from zcpipe.scoring.size import count
from zcpipe.spaces.base import EnumerableSpace, slot_of
from zcpipe.spaces.classes import key_classes
from zcpipe.spaces.transnasbench101_micro import EDGES, Cell

SPACE = get_space("transnasbench101_micro")
TASK = "class_scene"
SLOTS = SPACE.common_slots(TASK).layers
cells = st.integers(0, 4095).map(SPACE.__getitem__)


def cell(text):
    return SPACE.parse(f"64-41414-{text}")


def images(seed, pixels=32):
    x = torch.randn(3, 3, pixels, pixels, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def weighted_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize("text", MICRO)
def test_sizes_are_those_that_suite_zero_published(text):
    assert sizes(SPACE, cell(text)) == MICRO[text]


@settings(max_examples=10)
@given(cells, st.sampled_from(["class_object", "class_scene"]))
def test_size_is_that_of_the_full_network(arch, task):
    with torch.device("meta"):
        model = SPACE.build(arch, task, full=True).model
    assert count(model, [torch.empty(1, 3, 256, 256)]) == SPACE.size(arch, task)


def reference(weights, arch, x):
    """The network written out: edges of the first of two cells that start modules 0, 2 and 4 are strided."""
    x = norm(weights, "stem.0.1", conv(weights, "stem.0.0", x, 2))
    x = relu_conv_norm(weights, "stem.1", x, 2)
    for number in range(10):
        reduces = number in (0, 4, 8)
        n, c, h, w = x.shape
        shape = (n, 2 * c, h // 2, w // 2) if reduces else (n, c, h, w)
        nodes = [x, *(x.new_zeros(shape) for _ in range(3))]
        for edge, ((source, target), operation) in enumerate(zip(EDGES, arch.operations, strict=True)):
            name, strided = f"cells.{number}.layers.{edge}", reduces and source == 0
            if not arch.live[edge]:
                continue
            if operation in (2, 3):
                y = relu_conv_norm(weights, name, nodes[source], 1 + strided)
            elif strided:
                even, odd = x.relu()[:, :, ::2, ::2], x.relu()[:, :, 1::2, 1::2]
                halves = [conv(weights, f"{name}.halves.{i}", part) for i, part in enumerate((even, odd))]
                y = norm(weights, f"{name}.norm", torch.cat(halves, 1))
            else:
                y = nodes[source]
            nodes[target] = nodes[target] + y
        x = nodes[3]
    return classify(weights, x)


@settings(max_examples=20)
@given(cells, st.booleans())
def test_computes_what_the_published_network_does(arch, full):
    model = SPACE.build(arch, TASK, full=full).model.double()
    weights = randomise(model, torch.Generator().manual_seed(0))
    x = images(0).double()
    torch.testing.assert_close(model(x), reference(weights, arch, x), rtol=1e-6, atol=1e-6)


def test_a_strided_skip_of_an_odd_side_reads_a_zero_beyond_the_border():
    model = SPACE.build(cell("0_00_100"), TASK).model.cells[0].layers["3"].double()
    randomise(model, torch.Generator().manual_seed(0))
    x = torch.randn(2, 64, 5, 7, dtype=torch.float64)
    padded = F.pad(x, (0, 1, 0, 1))
    even = F.conv2d(x.relu(), model.halves[0].weight, stride=2)
    odd = F.conv2d(padded.relu()[:, :, 1::2, 1::2], model.halves[1].weight)
    expected = F.batch_norm(torch.cat([even, odd], 1), None, None, model.norm.weight, model.norm.bias, training=True)
    assert expected.shape == (2, 128, 3, 4)
    torch.testing.assert_close(model(x), expected)


class TestSpace:
    def test_has_4096_cells_in_the_order_of_their_texts(self):
        texts = [str(arch) for arch in SPACE]
        assert isinstance(SPACE, EnumerableSpace)
        assert len(SPACE) == len(set(texts)) == 4096
        assert texts == sorted(texts)
        assert (texts[0], texts[-1]) == ("64-41414-0_00_000", "64-41414-3_33_333")

    @given(cells)
    def test_parse_and_index_invert_text_and_position(self, arch):
        assert SPACE.parse(str(arch)) == arch
        assert SPACE[SPACE.index(arch)] == arch

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "expected '64-41414-'"),
            ("64-1234-basic", "expected '64-41414-'"),
            ("64-41414-102333", "nodes of 1, 2 and 3"),
            ("64-41414-1_02", "nodes of 1, 2 and 3"),
            ("64-41414-1_02_3334", "nodes of 1, 2 and 3"),
            ("64-41414-1_02_334", "got '4'"),
            ("64-41414-1_02_33²", "got '²'"),
        ],
    )
    def test_malformed_text_is_named(self, text, says):
        with pytest.raises(UsageError, match="malformed cell") as caught:
            SPACE.parse(text)
        assert says in str(caught.value)

    @given(st.text(max_size=20) | st.from_regex(r"64-41414-[0-4_]{6,9}"))
    def test_parse_never_fails_otherwise(self, text):
        with suppress(UsageError):
            assert str(SPACE.parse(text)) == text.strip()

    @given(cells, st.integers(0, 1000), st.integers(0, 1000))
    def test_neighbours_differ_in_one_edge_and_mutations_are_neighbours(self, arch, seed, i):
        neighbours = SPACE.neighbours(arch)
        assert len(set(neighbours)) == 18
        for other in neighbours:
            assert sum(a != b for a, b in zip(arch.operations, other.operations, strict=True)) == 1
        assert SPACE.mutate(arch, seed, i) in neighbours
        assert SPACE.mutate(arch, seed, i) == SPACE.mutate(arch, seed, i)

    def test_samples_are_a_permutation_that_needs_no_earlier_draw(self):
        draws = [SPACE.sample(7, i) for i in range(4096)]
        assert set(draws) == set(SPACE)
        assert SPACE.sample(7, 30) == draws[30] != SPACE.sample(8, 30)
        with pytest.raises(UsageError, match="4096"):
            SPACE.sample(7, 4096)

    def test_what_is_not_there_is_named(self):
        with pytest.raises(UsageError, match="cells 0 to 4095"):
            SPACE[4096]
        with pytest.raises(UsageError, match="class_scene"):
            SPACE.size(SPACE[0], "class_scenes")


class TestKeys:
    def test_make_1376_classes(self):
        assert len(key_classes(SPACE).representative) == 1376

    def test_never_change(self):
        """Tables are keyed and random streams scoped by these texts."""
        keys = SPACE.all_keys()
        assert hashlib.blake2b("\n".join(keys).encode(), digest_size=8).hexdigest() == "6c155ea02732abbd"
        assert [SPACE.key(SPACE[i]) for i in range(0, len(SPACE), 50)] == keys[::50]

    def test_tell_strided_skips_from_identities(self):
        def key(text):
            return SPACE.key(cell(text))

        assert key("0_00_000") == key("0_03_012") == "0"
        assert key("0_00_100") == key("1_00_010") == key("0_10_001") == key("1_01_001") == "s(x)"
        assert key("1_00_110") == "s#1(x)+s#2(x)"
        assert key("1_01_111") == "2s#1(x)+s#2(x)"
        assert key("3_00_010") == key("0_00_300") == "c3(x)"
        assert key("1_00_030") == "c3(s(x))" != key("3_00_010")

    @given(cells, st.permutations([1, 2]))
    def test_ignore_the_order_of_the_inner_nodes(self, arch, order):
        """Relabelling nodes 1 and 2 is possible where no edge joins them, and changes nothing."""
        if arch.operations[2]:
            return
        rename = {0: 0, 3: 3, 1: order[0], 2: order[1]}
        operations = [0] * 6
        for (source, target), operation in zip(EDGES, arch.operations, strict=True):
            if operation:
                operations[EDGES.index((rename[source], rename[target]))] = operation
        assert SPACE.key(Cell(tuple(operations))) == SPACE.key(arch)

    @settings(max_examples=12)
    @given(st.data())
    def test_members_of_a_class_compute_one_function(self, data):
        """With the weights of corresponding layers a member gives what its representative does."""
        classes = key_classes(SPACE)
        index = data.draw(st.integers(0, 4095))
        members = np.flatnonzero(classes.class_of == classes.class_of[index])
        representative, member = SPACE[int(data.draw(st.sampled_from(members.tolist())))], SPACE[index]
        ours, theirs = (SPACE.build(arch, TASK).model.double() for arch in (member, representative))
        weights = randomise(theirs, torch.Generator().manual_seed(0))
        correspondence = SPACE.correspondence(representative, member, TASK)
        assert list(correspondence) == [slot_of(name, SLOTS) for name in weighted_layers(ours)]
        edges = {edge_of(slot): edge_of(other) for slot, other in correspondence.items()}
        with torch.no_grad():
            for name, parameter in ours.named_parameters():
                edge = edge_of(name)
                parameter.copy_(weights[edges.get(edge, edge) + name.removeprefix(edge)])
        x = images(1).double()
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)

    def test_correspondence_of_cells_of_different_keys_is_refused(self):
        with pytest.raises(UsageError, match="different functions"):
            SPACE.correspondence(SPACE[0], SPACE[4095], TASK)


def edge_of(name):
    """The edge that a layer or parameter belongs to, such as ``cells.3.layers.2``."""
    return ".".join(name.split(".")[:4])


class TestSlots:
    def test_are_the_81_of_the_full_network(self):
        assert SPACE.slots(SPACE[7], TASK) == SPACE.common_slots(TASK)
        assert len(SLOTS) == len(set(SLOTS)) == 2 + 3 * (3 * 3 + 3) + 7 * 6 + 1
        assert SLOTS[:6] == (
            "stem.0",
            "stem.1",
            "cells.0.layers.0.op",
            "cells.0.layers.0.halves.0",
            "cells.0.layers.0.halves.1",
            "cells.0.layers.1.op",
        )
        assert SLOTS[8] == "cells.0.layers.2"
        assert SLOTS[-2:] == ("cells.9.layers.5", "classifier")

    @settings(max_examples=30)
    @given(cells, st.booleans())
    def test_weighted_layers_fill_different_ones_in_their_order(self, arch, full):
        with torch.device("meta"):
            built = SPACE.build(arch, TASK, full=full)
        assert built.blocks == SPACE.common_slots(TASK).blocks
        assert set(built.blocks) <= dict(built.model.named_modules()).keys()
        positions = [SLOTS.index(slot_of(name, SLOTS)) for name in weighted_layers(built.model)]
        assert positions == sorted(set(positions))


class TestFull:
    """Dead edges are there and run, at the shapes of the published network, and nothing else knows of it."""

    @settings(max_examples=20)
    @given(cells, st.booleans())
    def test_outputs_and_gradients_are_those_of_the_pruned_network(self, arch, fast):
        outcomes = []
        for full in (False, True):
            model = initialise(SPACE.build(arch, TASK, full=full).model).to(memory_format=torch.channels_last)
            x = images(0).requires_grad_()
            modules = dict(model.named_modules())
            with untouched(modules), fast_operations(modules if fast else {}):
                y = model(x)
                outcomes.append((y, *torch.autograd.grad((y * y).sum() + x.sum(), x)))
        for pruned, whole in zip(*outcomes, strict=True):
            assert torch.equal(pruned, whole)

    @pytest.mark.parametrize("text", ["0_03_300", "0_31_130", "1_03_003", "0_01_333", "3_00_000"])
    def test_every_relu_reads_what_the_published_network_gives_it(self, text):
        """Also where nothing reaches its node: zeros of the node's shape, whose channels nwot counts."""
        arch = cell(text)
        model = initialise(SPACE.build(arch, TASK, full=True).model).requires_grad_(False)
        seen = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(lambda _m, x, _y, name=name: seen.setdefault(name, x[0]))
        model(images(0, 64))
        for edge, ((source, _), operation) in enumerate(zip(EDGES, arch.operations, strict=True)):
            if operation in (2, 3):
                strided = seen[f"cells.0.layers.{edge}.op.0"]
                assert strided.shape == ((3, 64, 16, 16) if source == 0 else (3, 128, 8, 8))
                assert seen[f"cells.1.layers.{edge}.op.0"].shape == (3, 128, 8, 8)

    def test_scores_that_count_dead_layers_are_those_of_the_twins(self, monkeypatch):
        """The native passes show them zeros of the same shapes; some bits of codes differ by rounding."""
        arch, found = cell("0_03_300"), []
        spec = {"space": SPACE.name, "dataset": TASK, "proxies": ("nwot",), "batch_size": 2}
        for without in ("0", "1"):
            monkeypatch.setenv("ZCPIPE_NO_NATIVE", without)
            found.append(ClassScorer(RunSpec.model_validate(spec)).score(arch, [arch])[0]["nwot"])
        assert found[0] == pytest.approx(found[1], rel=1e-6)


class TestScoring:
    def test_a_run_of_aznas(self, tmp_path):
        texts = ["64-41414-1_00_010", "64-41414-0_00_100", "64-41414-2_01_130", "64-41414-0_00_000"]
        proxies = (*(proxy.name for proxy in resolve("aznas")), "synflow")
        fields = {"space": SPACE.name, "dataset": "class_object", "proxies": proxies, "batch_size": 2}
        run(RunSpec.model_validate({**fields, "selection": Archs(texts=texts)}), tmp_path / "table")
        rows = {row["arch"]: row for row in open_table(tmp_path / "table").to_arrow().to_pylist()}
        assert {row["status"] for row in rows.values()} == {"ok"}
        member, representative, other, dead = (rows[text] for text in texts)
        assert {len(row["expressivity@block"]) for row in rows.values()} == {11}
        assert member["expressivity@block"] == representative["expressivity@block"] != other["expressivity@block"]
        assert dead["expressivity"] == dead["progressivity"] == float("-inf")
        for row in rows.values():
            with torch.device("meta"):
                model = SPACE.build(SPACE.parse(row["arch"]), "class_object").model
            filled = {slot_of(name, SLOTS) for name in weighted_layers(model)}
            if row is not dead:
                scored = {slot for slot, value in zip(SLOTS, row["synflow@layer"], strict=True) if value}
                assert scored == filled
        skips = [SLOTS.index(f"cells.4.layers.{edge}.halves.1") for edge in (0, 3)]
        assert member["synflow@layer"][skips[0]] == representative["synflow@layer"][skips[1]] != 0
