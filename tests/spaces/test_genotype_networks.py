"""Networks of cells are the published ones: in size, in what they compute, in their nodes."""

import math
from dataclasses import replace

import pytest
import torch
from genotype_cases import NDS, SPACES, drawn, entries, relabelled
from genotype_reference import Reference, copy_weights, leaves
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zcpipe import initialise, score
from zcpipe.errors import UsageError
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.scoring.size import count
from zcpipe.spaces.base import slot_of
from zcpipe.spaces.genotype_cells import Cell

DARTS, ENAS = NDS["darts"], NDS["enas"]
WEIGHTED = (nn.Conv2d, nn.Linear)


class TestSizes:
    """Numbers of parameters and multiply-accumulates are the files'."""

    @pytest.mark.parametrize("family", NDS)
    def test_are_those_of_every_official_entry(self, data, family):
        space = NDS[family]
        for entry in entries(data, family):
            arch = space.from_entry(entry["net"])
            assert space.size(arch, "imagenet").params == entry["params"]
            assert space.published_flops(arch, "imagenet") == entry["flops"]

    @pytest.mark.parametrize("family", NDS)
    def test_are_those_of_networks_built_of_official_entries(self, data, family):
        """The files' parameters are the built network's own; its multiply-accumulates are counted where it runs."""
        space = NDS[family]
        for entry in entries(data, family)[:2]:
            arch = space.from_entry(entry["net"])
            with torch.device("meta"):
                model = space.build(arch, "imagenet", full=True).model
            size = count(model, [torch.empty(1, 3, 224, 224)])
            assert size.params == entry["params"]
            assert size == space.size(arch, "imagenet")

    @settings(max_examples=12)
    @given(drawn(), st.booleans())
    def test_are_those_of_full_networks(self, case, aux):
        space, arch = case
        arch = replace(arch, depth=5, aux=aux)
        for dataset in space.datasets.values():
            model = space.build(arch, dataset.name, full=True).model
            assert count(model, [torch.empty(1, *dataset.input_shape)]) == space.size(arch, dataset.name)

    def test_published_flops_of_one_cell_by_hand(self):
        """One pixel less or more, one ReLU forgotten: another number."""
        cell = Cell(((("dil_conv_3x3", 0), ("max_pool_3x3", 1)),), (2,))
        arch = replace(DARTS.sample(0, 0), width=2, depth=1, normal=cell, reduce=cell)
        stem = 3 * 9 * 6 * 32**2
        inputs = 2 * (6 * 4 * 32**2 + 6 * 32**2)  # pointwise to 4 channels, after a ReLU
        dilated = 4 * 9 * 17**2 + 4 * 4 * 16**2 + 4 * 32**2  # (32 + 4 - 3) // 2 + 1 = 17
        end = 4 * 10 + 10 + 4 * 16**2
        assert DARTS.published_flops(arch, "cifar10") == stem + inputs + dilated + 9 * 4 * 16**2 + end

    def test_auxiliary_classifiers_count_and_change_nothing_else(self):
        arch = DARTS.sample(0, 3)
        wide = 4 * 4 * arch.width  # channels after the second reduction cell
        for dataset, norms, classes in (("cifar10", 2 * 128 + 2 * 768, 10), ("imagenet", 2 * 128, 1000)):
            plain, with_aux = DARTS.size(arch, dataset), DARTS.size(replace(arch, aux=True), dataset)
            convs = wide * 128 + 4 * 128 * 768
            assert with_aux.params - plain.params == convs + norms + 769 * classes
            assert with_aux.macs - plain.macs == 4 * wide * 128 + 4 * 128 * 768 + 768 * classes


def small(arch, dataset, depth=5, width=4):
    """The architecture with few channels and cells, and a batch for it of few pixels."""
    side = 64 if dataset == "imagenet" else 16
    x = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return replace(arch, width=width, depth=depth), x.requires_grad_()


def drawn_weights(model, seed):
    """Give a network weights; batch norms' are random but for biases, which are what dead edges would add."""
    initialise(model.double(), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.add_(
                torch.randn(module.weight.shape, generator=generator, dtype=torch.float64), alpha=0.1
            )
    return model


class TestFunction:
    """The computation is that of the formulas."""

    @pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
    @pytest.mark.parametrize("i", range(4))
    def test_full_network_is_the_reference(self, space, i):
        for dataset in space.datasets.values():
            arch, x = small(space.sample(11, i), dataset.name)
            ours = drawn_weights(space.build(arch, dataset.name, full=True).model, i)
            theirs = Reference(arch, dataset).double()
            copy_weights(ours, theirs)
            seen = [inputs_of(model, x) for model in (ours, theirs)]
            for (name, read), (_, expected) in zip(seen[0].items(), seen[1].items(), strict=True):
                torch.testing.assert_close(
                    read, expected, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
                )
            y, expected = ours(x), theirs(x)
            cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
            gradients = [torch.autograd.grad(out, x, cotangent)[0] for out in (y, expected)]
            torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
    @pytest.mark.parametrize("i", range(2))
    def test_odd_sides_are_halved_as_published(self, space, i):
        """Resolutions may be such: 14 pixels make 7 and 4. A skip that halves sees zeros beyond the border."""
        for dataset, side in (("cifar10", 14), ("imagenet", 56)):
            if dataset not in space.datasets:
                continue
            arch = replace(space.sample(11, i), width=4, depth=6)
            ours = drawn_weights(space.build(arch, dataset, full=True).model, i)
            theirs = Reference(arch, space.datasets[dataset]).double()
            copy_weights(ours, theirs)
            x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)

    @settings(max_examples=20)
    @given(drawn(st.sampled_from([DARTS, *SPACES])), st.booleans(), st.booleans())
    def test_pruned_network_is_the_full_one(self, case, fast, aux):
        """Bit for bit, whatever runs besides."""
        space, arch = case
        arch, x = small(arch, "cifar10", depth=4)
        arch = replace(arch, aux=aux)
        if aux:
            x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
        outcomes = []
        for full in (False, True):
            model = initialise(space.build(arch, "cifar10", full=full).model.double())
            modules = dict(model.to(memory_format=torch.channels_last).named_modules())
            with untouched(modules), fast_operations(modules if fast else {}):
                y = model(x.contiguous(memory_format=torch.channels_last))
                outcomes.append((y, *torch.autograd.grad((y * y).sum() + x.sum(), x)))
        for ours, theirs in zip(*outcomes, strict=True):
            assert torch.equal(ours, theirs)

    @pytest.mark.parametrize(
        ("dataset", "images", "side"), [("cifar10", 1, 32), ("cifar10", 2, 16), ("imagenet", 2, 64)]
    )
    def test_auxiliary_classifier_that_cannot_run_is_left_out(self, dataset, images, side):
        """Of one image, which synflow_bn sees, and of small ones."""
        arch = replace(DARTS.sample(0, 0), depth=4, aux=True)
        model = initialise(DARTS.build(arch, dataset, full=True).model).train()
        assert model(torch.randn(images, 3, side, side)).shape == (images, DARTS.datasets[dataset].classes)

    @pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
    def test_fast_operations_compute_the_same(self, space):
        arch, x = small(space.sample(11, 0), "cifar10", depth=4)
        model = drawn_weights(space.build(arch, "cifar10").model, 0).to(memory_format=torch.channels_last)
        modules = dict(model.named_modules())
        outcomes = []
        for fast in (False, True):
            with untouched(modules), fast_operations(modules if fast else {}):
                y = model(x.contiguous(memory_format=torch.channels_last))
                outcomes.append((y, *torch.autograd.grad((y * y).sum(), x)))
        torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-7, atol=1e-10)

    @settings(max_examples=10)
    @given(drawn(st.just(DARTS)), st.booleans())
    def test_dead_layers_get_no_gradient(self, case, aux):
        arch, _ = small(case[1], "cifar10", depth=3)
        arch = replace(arch, aux=aux)
        model = initialise(DARTS.build(arch, "cifar10", full=True).model)
        pruned = leaves(DARTS.build(arch, "cifar10").model)
        reached = cells_that_count(arch)
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        for name, layer in leaves(model).items():
            cell = int(name.split(".")[1]) if name.startswith("cells") else None
            live = name in pruned and (cell is None or cell in reached)
            assert (layer.weight.grad is not None) == live or name.startswith("stem"), name

    def test_a_cell_that_computes_nothing_gives_zeros(self):
        nothing = Cell(((("none", 0), ("none", 1)), (("sep_conv_3x3", 2), ("none", 2))), (2, 3))
        arch, x = small(replace(DARTS.sample(0, 0), normal=nothing, reduce=nothing), "cifar10", depth=3)
        for full in (False, True):
            built = DARTS.build(arch, "cifar10", full=full)
            model = initialise(built.model.double())
            maps = watch(built)
            assert torch.equal(model(x), model.classifier.bias.expand(3, 10))
            assert [tuple(maps[f"cells.{i}"].shape) for i in range(3)] == [(3, 8, 16, 16), (3, 16, 8, 8), (3, 32, 4, 4)]
            assert not any(maps[f"cells.{i}"].any() for i in range(3))
            model(x[:, :, :14, :14])
            assert [tuple(maps[f"cells.{i}"].shape[2:]) for i in range(3)] == [(14, 14), (7, 7), (4, 4)]


def watch(built):
    """Return a dict that gets the block maps by name once the network runs."""
    maps = {}
    for name in built.blocks:
        block = built.model.get_submodule(name)
        block.register_forward_hook(lambda _m, _i, y, name=name: maps.update({name: y}))
    return maps


def inputs_of(model, x):
    """What each weighted layer of a network reads."""
    seen, hooks = {}, []
    for name, module in leaves(model, WEIGHTED).items():
        hooks.append(module.register_forward_hook(lambda _m, i, _y, name=name: seen.update({name: i[0]})))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return {name: seen[name] for name in leaves(model, WEIGHTED)}


def cells_that_count(arch):
    """The cells that the logits depend on."""
    found, left = set(), [arch.depth - 1]
    while left:
        cell = left.pop()
        if cell >= 0 and cell not in found:
            found.add(cell)
            left += [cell - 2 + number for number in (0, 1) if arch.cell(cell).read[number]]
    return found


class TestSlots:
    """Every weighted layer of the full network is a node, and every stem and cell a block."""

    @settings(max_examples=15)
    @given(drawn(), st.booleans())
    def test_are_the_full_networks_layers_in_order(self, case, aux):
        space, arch = case
        arch = replace(arch, aux=aux)
        for dataset in space.datasets:
            slots = space.slots(arch, dataset)
            full, pruned = (space.build(arch, dataset, full=full) for full in (True, False))
            assert list(slots.layers) == list(leaves(full.model, WEIGHTED))
            assert full.blocks == pruned.blocks == slots.blocks
            filled = [slot_of(name, set(slots.layers)) for name in leaves(pruned.model, WEIGHTED)]
            assert list(space.correspondence(arch, arch, dataset).items()) == list(zip(filled, filled, strict=True))
        assert space.common_slots("cifar10") is None

    def test_blocks_are_stems_and_cells(self):
        arch = replace(DARTS.sample(0, 0), depth=4)
        assert DARTS.slots(arch, "cifar10").blocks == ("stem", "cells.0", "cells.1", "cells.2", "cells.3")
        assert DARTS.slots(arch, "imagenet").blocks[:3] == ("stem0", "stem1", "cells.0")

    def test_maps_of_imagenet_are_those_of_the_published_networks(self):
        arch = replace(ENAS.sample(0, 1), width=32, depth=3)
        with torch.device("meta"):
            built = ENAS.build(arch, "imagenet")
            maps = watch(built)
            assert built.model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
        assert [y.shape[2] for y in maps.values()] == [56, 28, 28, 14, 7]
        ends = [len(cell.concat) for cell in (arch.normal, arch.reduce, arch.reduce)]
        assert [y.shape[1] for y in maps.values()] == [32, 32, 32 * ends[0], 64 * ends[1], 128 * ends[2]]


class TestCorrespondence:
    """With the weights of its counterparts a relabelled cell computes what the other does."""

    @settings(max_examples=25)
    @given(drawn(), st.randoms(use_true_random=False), st.integers(0, 100))
    def test_cells_of_one_key_compute_one_function(self, case, randomness, seed):
        space, arch = case
        arch, _ = small(arch, "cifar10", depth=3)
        other = replace(arch, normal=relabelled(arch.normal, randomness), reduce=relabelled(arch.reduce, randomness))
        theirs, ours = (space.build(a, "cifar10").model for a in (arch, other))
        drawn_weights(theirs, seed)
        ours.double()
        moved = space.correspondence(arch, other, "cifar10")
        assert list(moved) == list(leaves(ours, WEIGHTED))
        assert sorted(moved.values()) == sorted(leaves(theirs, WEIGHTED))
        layers = leaves(theirs, WEIGHTED)
        for slot, layer in leaves(ours, WEIGHTED).items():
            layer.weight.data.copy_(layers[moved[slot]].weight)
        for module in (*ours.modules(), *theirs.modules()):
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
        x = torch.randn(2, 12 + 4 * 5, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for position, newer, width in ((0, 12, 4), (1, 4 * len(arch.normal.concat), 8)):
            outputs = [model.cells[position](x[:, :12], x[:, -newer:]) for model in (theirs, ours)]
            # Told apart by a probe: behind a batch norm the plain sum is 0 but for rounding.
            probe = torch.randn(outputs[0][:, :width].shape, generator=torch.Generator().manual_seed(1)).double()
            order = [[(node * probe).sum().item() for node in y.split(width, dim=1)] for y in outputs]
            nodes = [
                [node for _, node in sorted(zip(sums, y.split(width, dim=1), strict=True), key=lambda pair: pair[0])]
                for sums, y in zip(order, outputs, strict=True)
            ]
            torch.testing.assert_close(torch.cat(nodes[1]), torch.cat(nodes[0]), rtol=1e-6, atol=1e-8)

    def test_architectures_of_different_keys_are_refused(self):
        first, second = DARTS.sample(0, 0), DARTS.sample(0, 1)
        with pytest.raises(UsageError, match="architectures differ"):
            DARTS.correspondence(first, replace(first, depth=9), "cifar10")
        with pytest.raises(UsageError, match="different functions"):
            DARTS.correspondence(first, replace(first, normal=second.normal), "cifar10")


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
@pytest.mark.parametrize("dataset", ["cifar10", "imagenet"])
def test_scoring_reads_every_block(space, dataset):
    """AZ-NAS and a proxy of the loss; a cell that reads only the older input has no slope to the newer one."""
    if dataset not in space.datasets:
        return
    arch, _ = small(space.sample(2, 0), dataset, depth=4, width=16)
    built = space.build(arch, dataset)
    scores = score(
        initialise(built.model), [torch.randn(2, 3, 64, 64)], targets=torch.tensor([0, 1]), proxies=["aznas", "snip"]
    )
    assert len(scores.statistics["expressivity@block"]) == len(built.blocks)
    sigma = scores.statistics["trainability@block"]
    assert [bool(value < -1e5) for value in sigma[-4:]] == [not arch.cell(i).read[1] and i > 0 for i in range(4)]
    assert all(math.isfinite(value) for value in dict(scores).values())
