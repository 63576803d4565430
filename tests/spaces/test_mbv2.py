"""The residual bottleneck space is ZenNAS's and AZ-NAS's: its texts, counts, moves and computation."""

import itertools
import runpy
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import classify, conv, norm, randomise
from torch import nn
from torch.nn import functional as F

from zcpipe import get_space, initialise, open_table
from zcpipe.errors import UsageError
from zcpipe.inputs import noise_of
from zcpipe.ops.philox import Stream
from zcpipe.run import RunSpec
from zcpipe.scoring.size import count
from zcpipe.spaces.base import EnumerableSpace, slot_of
from zcpipe.spaces.mbv2 import options
from zcpipe.spaces.mbv2_networks import Block, smart_round

SPACE = get_space("mbv2")
INITIAL = (
    "SuperConvK3BNRELU(3,8,2,1)SuperResIDWE6K3(8,32,2,8,1)SuperResIDWE6K3(32,48,2,32,1)"
    "SuperResIDWE6K3(48,96,2,48,1)SuperResIDWE6K3(96,128,2,96,1)SuperConvK1BNRELU(128,2048,1,1)"
)
# What AZ-NAS's own searches found, which a study compares its own with.
PUBLISHED = runpy.run_path(str(Path(__file__).parents[2] / "pipelines" / "mbv2_published.py"))
SEARCHED, LAYERS = PUBLISHED["SEARCHED"], PUBLISHED["LAYERS"]

draws = st.builds(SPACE.sample, st.integers(0, 3), st.integers(0, 2**31))


def short(text, stride=2, head=2048):
    """A network by its stem's channels and its blocks' names and numbers."""
    return SPACE.parse(PUBLISHED["written_out"](text, stride, head))


SMALL = [
    short("8 E1K3(8,8,1,8,1)", head=16),  # a projection between equal shapes, and identities
    short("12 E2K5(12,20,2,12,2) E4K7(20,20,1,8,1)", head=24),  # hidden channels that are rounded
    short("16 E6K3(16,24,2,24,3)", stride=1, head=40),  # identities in a block with sub-layers
]


class TestCounts:
    def test_the_initial_network_is_the_published_one(self):
        arch = SPACE.initial()
        assert str(arch) == INITIAL and SPACE.parse(INITIAL) == arch
        size = SPACE.size(arch, "imagenet")
        assert (size.params, size.macs) == (2_824_264, 159_334_080)  # stated for the published code by others
        assert SPACE.published_flops(arch, "imagenet") == 162_396_776
        assert SPACE.num_layers(arch) == 6

    @pytest.mark.parametrize("limit", SEARCHED)
    def test_searched_networks_have_the_flops_that_their_searches_logged(self, limit):
        for text, logged in SEARCHED[limit].items():
            arch = short(text)
            flops = SPACE.published_flops(arch, "imagenet")
            assert f"{flops:4g}" == logged and flops <= limit
            assert SPACE.num_layers(arch) <= LAYERS[limit]

    def test_both_counts_by_hand(self):
        """Published: outputs of batch norms count, and the first shortcut, of stride 2, a quarter; biases do not."""
        arch = short("16 E2K5(16,24,2,12,2)", stride=1, head=32)
        large, small = 32 * 32, 16 * 16  # pixels
        weights_and_pixels = [
            (3 * 16 * 9, large),  # stem
            *[(16 * 24, large), (24 * 25, small), (24 * 12, small)],
            *[(12 * 48, small), (48 * 25, small), (48 * 24, small), (12 * 24, small)],
            *[(24 * 24, small), (24 * 25, small), (24 * 12, small), (24 * 12, small)],
            *[(12 * 48, small), (48 * 25, small), (48 * 24, small), (12 * 24, small)],
            *[(24 * 32, small), (32 * 10, 1)],  # head and classifier
        ]
        macs = sum(weights * pixels for weights, pixels in weights_and_pixels)
        assert SPACE.size(arch, "cifar10").macs == macs + 16 * 12 * small
        norms = (16 + 24) * large + (24 + 12 + 2 * (48 + 48 + 24 + 24) + 24 + 24 + 12 + 12 + 32) * small
        assert SPACE.published_flops(arch, "cifar10") == macs + norms + 16 * 12 * small / 4 + 12 * small / 4
        weights = sum(weights for weights, _ in weights_and_pixels) + 16 * 12
        biases, normed = 12 + 24 + 12 + 24 + 10, 16 + 2 * (24 + 24 + 12 + 12) + 2 * (48 + 48 + 24 + 24) + 32
        assert SPACE.size(arch, "cifar10").params == weights + biases + 2 * normed

    @pytest.mark.parametrize(
        ("dataset", "published", "macs"), [("imagenet", 11_191_907, 11_031_856), ("cifar100", 229_310, 259_984)]
    )
    def test_published_sides_are_halved_rounding_down(self, dataset, published, macs):
        """The numbers are what the published code returned. Of 224 pixels 3 are left (4 in truth), of 32 none (1)."""
        blocks = "E1K3(8,8,2,8,1) E2K3(8,16,2,8,2) E1K7(16,24,2,16,1) E4K5(24,20,2,32,1) E6K3(20,44,2,36,1)"
        arch = short(f"8 {blocks}", head=100)
        assert SPACE.published_flops(arch, dataset) == published
        assert SPACE.size(arch, dataset).macs == macs

    @pytest.mark.parametrize("dataset", ["imagenet", "cifar100"])
    @pytest.mark.parametrize("arch", [*SMALL, SPACE.sample(0, 0)], ids=str)
    def test_counts_are_those_of_the_network(self, arch, dataset):
        spec = SPACE.datasets[dataset]
        with torch.device("meta"):
            model = SPACE.build(arch, dataset).model
        normed, shortcuts = 0, 0

        def watch(module, inputs, output):
            nonlocal normed, shortcuts
            if isinstance(module, nn.BatchNorm2d):
                normed += output.numel()
            elif module.bias is not None and module.stride == (2, 2):
                shortcuts += output.numel() * (module.in_channels + 1)

        assert count(model, [torch.empty(1, *spec.input_shape)]) == SPACE.size(arch, dataset)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.Conv2d):
                module.register_forward_hook(watch)
        model.eval()(torch.empty(1, *spec.input_shape, device="meta"))
        published = SPACE.size(arch, dataset).macs + normed - 0.75 * shortcuts
        assert SPACE.published_flops(arch, dataset) == published


class TestTexts:
    @given(draws | st.sampled_from(SMALL))
    def test_parse_inverts_text(self, arch):
        assert SPACE.parse(str(arch)) == arch
        assert SPACE.parse(f"  {arch}\n") == arch

    def test_what_others_searched_is_read(self):
        zennet = (
            "32 E1K7(32,48,2,40,1) E1K7(48,48,1,40,1) E1K7(48,88,2,96,1) E1K7(88,88,1,96,1) E2K7(88,144,2,176,1) "
            "E2K7(144,144,1,176,5) E4K7(144,248,2,244,10)"
        )
        assert SPACE.num_layers(short(zennet, head=1024)) == 22
        zico = "16 E1K7(16,40,2,40,1) E2K7(40,80,2,64,1) E4K7(80,96,2,96,5) E2K7(96,224,2,224,5)"
        assert SPACE.published_flops(short(zico), "imagenet") <= 450e6

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            (INITIAL, "", "expected a stem, blocks and a head, got 0 parts"),
            (INITIAL, "8 32", "expected a part such as SuperResIDWE6K3(8,32,2,8,1), got '8 32'"),
            ("2048,1,1)", "2048,1,1", "got 'SuperConvK1BNRELU(128,2048,1,1'"),
            (",48,2", ", 48,2", "SuperResIDWE6K3(32, 48,2,32,1) has ' 48' where a number from 1 to 99999 belongs"),
            ("(3,8,2,1)", "(3,0,2,1)", "has '0'"),
            ("(3,8,2,1)", "(3,08,2,1)", "has '08'"),
            ("(3,8,2,1)", "(3,٨,2,1)", "has '٨'"),
            ("(3,8,2,1)", "()", "has ''"),
            ("ConvK3", "ConvK5", "expected SuperConvK3BNRELU at its start, got SuperConvK5BNRELU(3,8,2,1)"),
            ("SuperConvK1BNRELU", "SuperConvK3BNRELU", "expected SuperConvK1BNRELU at its end"),
            (
                "(96,128,2,96,1)SuperConvK1BNRELU(128",
                "(96,3,2,96,1)SuperConvK3BNRELU(3",
                "expected SuperConvK1BNRELU at its end",
            ),
            ("(3,8,2,1)", "(1,8,2,1)", "SuperConvK3BNRELU(1,8,2,1) takes 1 channels, but what comes before it gives 3"),
            ("(3,8,2,1)", "(3,8,2,2)", "has 2 convolutions, which must be 1"),
            ("(3,8,2,1)", "(3,8,2)", "must have four numbers"),
            ("(3,8,2,1)", "(3,8,3,1)", "has stride 3, which must be 1 or 2"),
            ("2048,1,1", "2048,2,1", "has stride 2, which must be 1"),
            ("E6K3(32", "E3K3(32", "SuperResIDWE3K3 is no block; blocks are SuperResIDWE<1, 2, 4 or 6>K<3, 5 or 7>"),
            ("IDWE6K3(32", "K1K3K1(32", "SuperResK1K3K1 is no block"),
            ("(32,48,2,32,1)", "(32,48,2,32)", "must have five numbers"),
            ("(32,48,2,32,1)", "(24,48,2,32,1)", "takes 24 channels, but what comes before it gives 32"),
            ("(32,48,2,32,1)", "(32,48,4,32,1)", "has stride 4"),
            ("(32,48,2,32,1)", "(32,48,2,32,100)", "has 100 sub-layers, more than 99"),
            ("(128,2048", "(96,2048", "takes 96 channels, but what comes before it gives 128"),
        ],
    )
    def test_malformed_text_is_named(self, old, new, says):
        with pytest.raises(UsageError, match="malformed network") as caught:
            SPACE.parse(INITIAL.replace(old, new, 1))
        assert says in str(caught.value)

    @given(st.text(max_size=40), st.integers(0, len(INITIAL)))
    def test_parse_never_fails_otherwise(self, text, at):
        for damaged in (text, INITIAL[:at] + text + INITIAL[at:], INITIAL[:at]):
            with suppress(UsageError):
                assert str(SPACE.parse(damaged)) == damaged.strip()

    def test_what_is_not_there_is_named(self):
        for ask in (SPACE.size, SPACE.published_flops, SPACE.slots, SPACE.build):
            with pytest.raises(UsageError, match="did you mean cifar10"):
                ask(SPACE.initial(), "cifar1")


class TestMoves:
    @pytest.mark.parametrize(
        ("channels", "widths"),
        [
            (8, [8, 16]),
            (12, [8, 16, 24, 32]),  # of what is no multiple of 8, itself is none
            (20, [8, 16, 24, 32, 40, 48]),
            (48, [16, 24, 32, 40, 48, 64, 72, 96, 120]),
            (120, [48, 64, 80, 96, 120, 152, 176, 240, 304]),
        ],
    )
    def test_widths_are_the_published_ones(self, channels, widths):
        assert options(channels) == widths

    def test_a_block_can_become_any_combination(self):
        found = options(Block(6, 3, 48, 2, 8, 2))
        assert len(found) == len(set(found)) == 12 * 9 * 2 * 4
        assert {b.stride for b in found} == {2} and {b.sub_layers for b in found} == {1, 2, 3, 4}
        assert {(b.expansion, b.kernel) for b in found} == set(itertools.product((1, 2, 4, 6), (3, 5, 7)))
        assert {b.sub_layers for b in options(Block(6, 3, 48, 2, 8, 5))} == {3, 4, 5, 6, 7}

    @settings(max_examples=5)
    @given(draws, st.integers(0, 1000), st.integers(0, 1000))
    def test_mutations_are_neighbours(self, arch, seed, i):
        neighbours = SPACE.neighbours(arch)
        assert len(set(neighbours)) == len(neighbours) and arch not in neighbours
        assert SPACE.mutate(arch, seed, i) in neighbours
        assert SPACE.mutate(arch, seed, i) == SPACE.mutate(arch, seed, i)

    def test_neighbours_are_all_that_one_part_can_become(self):
        arch = SPACE.initial()
        neighbours = SPACE.neighbours(arch)
        widths = [len(options(block.outputs)) * len(options(block.bottleneck)) for block in arch.blocks]
        assert len(neighbours) == 1 + sum(12 * 3 * n - 1 for n in widths)  # the stem's other width, then the blocks
        assert all((other.stem_stride, other.head) == (2, 2048) for other in neighbours)
        assert all([block.stride for block in other.blocks] == [2] * 4 for other in neighbours)

    def test_blocks_of_six_sub_layers_are_split(self):
        arch = short("8 E6K3(8,32,2,16,5)")
        found = {other.blocks for other in SPACE.neighbours(arch) if len(other.blocks) == 2}
        assert (Block(6, 3, 32, 2, 16, 3), Block(6, 3, 32, 1, 16, 3)) in found
        assert (Block(1, 7, 80, 2, 40, 3), Block(1, 7, 80, 1, 40, 4)) in found
        assert max(b.sub_layers for other in SPACE.neighbours(arch) for b in other.blocks) == 5
        whole = short("8 E6K3(8,32,2,16,10)")  # as others write it: any move splits it
        assert all(len(other.blocks) >= 3 for other in SPACE.neighbours(whole) if other.stem == 16)

    def test_two_places_change_two_parts_or_one(self):
        arch = SPACE.initial()
        before = (arch.stem, *arch.blocks)
        changed, counts = Counter(), Counter()
        for i in range(600):
            after = SPACE.mutate(arch, 0, i, places=2)
            places = [at for at, part in enumerate((after.stem, *after.blocks)) if part != before[at]]
            counts[len(places)] += 1
            changed.update(places)
        assert set(counts) == {1, 2}
        # Of 36 pairs of places 12 are two blocks, and 8 a block with the stem, which changes in half of the cases.
        # Nothing changes in 2.5: the head twice, the stem with the head or with itself.
        assert abs(counts[2] / 600 - (12 + 8 / 2) / 33.5) < 0.08
        assert all(abs(changed[at] / 600 - 11 / 33.5) < 0.08 for at in range(1, 5))
        with pytest.raises(UsageError, match="places: got 0"):
            SPACE.mutate(arch, 0, 0, places=0)

    @settings(max_examples=20)
    @given(st.integers(0, 2**40), st.integers(0, 2**31))
    def test_draws_are_within_the_published_limits(self, seed, i):
        arch = SPACE.sample(seed, i)
        assert arch == SPACE.sample(seed, i)
        assert SPACE.published_flops(arch, "imagenet") <= 1e9 and SPACE.num_layers(arch) <= 16
        assert (arch.stem_stride, arch.head) == (2, 2048)
        assert [block.stride for block in arch.blocks if block.stride == 2] == [2] * 4

    def test_draws_never_change(self):
        """Tables name their rows by them."""
        assert [str(SPACE.sample(1, i)) for i in (0, 7)] == [
            "SuperConvK3BNRELU(3,64,2,1)SuperResIDWE2K3(64,24,2,16,3)SuperResIDWE1K3(24,48,2,16,3)"
            "SuperResIDWE2K5(48,32,2,72,3)SuperResIDWE6K3(32,64,2,240,2)SuperConvK1BNRELU(64,2048,1,1)",
            "SuperConvK3BNRELU(3,80,2,1)SuperResIDWE1K3(80,96,2,16,3)SuperResIDWE1K7(96,16,2,88,5)"
            "SuperResIDWE2K7(16,32,2,144,2)SuperResIDWE4K7(32,160,2,96,2)SuperConvK1BNRELU(160,2048,1,1)",
        ]
        assert not isinstance(SPACE, EnumerableSpace)


def reference(weights, arch, x):
    """The network written out: its block maps and logits."""

    def conv_norm(name, x, **how):
        return norm(weights, f"{name}.1", conv(weights, f"{name}.0", x, **how), eps=1e-3)

    maps, number = [conv_norm("stem", x, stride=arch.stem_stride).relu()], 0
    for block in arch.blocks:
        for layer in range(block.sub_layers):
            for first, width in ((True, block.bottleneck), (False, block.outputs)):
                x, name = maps[-1], f"blocks.{number}"
                starts = layer == 0 and first
                stride = block.stride if starts else 1
                y = conv_norm(f"{name}.expand", x).relu()
                assert y.shape[1] == smart_round(width * block.expansion)
                assert weights[f"{name}.depthwise.0.weight"].shape[1:] == (1, block.kernel, block.kernel)
                y = conv_norm(f"{name}.depthwise", y, stride=stride, groups=y.shape[1]).relu()
                y = conv_norm(f"{name}.project", y)
                assert y.shape[1] == width
                if starts or x.shape != y.shape:
                    shortcut = (weights[f"{name}.shortcut.0.{part}"] for part in ("weight", "bias"))
                    x = norm(weights, f"{name}.shortcut.1", F.conv2d(x, *shortcut, stride=stride), eps=1e-3)
                maps.append((x + y).relu())
                number += 1
    maps.append(conv_norm("head", maps[-1]).relu())
    return maps, classify(weights, maps[-1])


@pytest.mark.parametrize("arch", SMALL, ids=str)
def test_computes_what_the_published_network_does(arch):
    built = SPACE.build(arch, "cifar10")
    weights = randomise(built.model.double(), torch.Generator().manual_seed(0))
    found = []
    for block in built.blocks:
        built.model.get_submodule(block).register_forward_hook(lambda *given: found.append(given[2]))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    maps, logits = reference(weights, arch, x)
    torch.testing.assert_close(built.model.train()(x), logits)
    torch.testing.assert_close(found, maps)


class TestKeys:
    def test_are_shared_where_only_the_division_into_blocks_differs(self):
        whole, split = short("8 E2K3(8,16,2,8,4)"), short("8 E2K3(8,16,2,8,1) E2K3(16,16,1,8,3)")
        assert SPACE.key(whole) == SPACE.key(split)
        weights = randomise(SPACE.build(whole, "cifar10").model.double(), torch.Generator().manual_seed(0))
        model = SPACE.build(split, "cifar10").model.double()
        model.load_state_dict(weights, strict=False)
        x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        torch.testing.assert_close(model(x), reference(weights, whole, x)[1])
        slots = SPACE.slots(whole, "cifar10")
        assert slots == SPACE.slots(split, "cifar10")
        assert SPACE.correspondence(whole, split, "cifar10") == {slot: slot for slot in slots.layers}

    def test_are_not_shared_where_a_split_makes_a_projection(self):
        whole, split = short("8 E2K3(8,16,2,16,4)"), short("8 E2K3(8,16,2,16,1) E2K3(16,16,1,16,3)")
        assert SPACE.key(whole) != SPACE.key(split)
        assert SPACE.size(whole, "cifar10").params < SPACE.size(split, "cifar10").params
        with pytest.raises(UsageError, match="different functions"):
            SPACE.correspondence(whole, split, "cifar10")

    def test_are_shared_by_expansions_that_round_to_the_same_channels(self):
        assert SPACE.key(short("8 E1K3(8,4,1,4,1)")) == SPACE.key(short("8 E2K3(8,4,1,4,1)"))
        assert SPACE.key(short("8 E1K3(8,4,1,4,1)")) != SPACE.key(short("8 E4K3(8,4,1,4,1)"))

    @settings(max_examples=20)
    @given(draws)
    def test_differ_where_one_part_does(self, arch):
        """Channels that are multiples of 8 tell expansions apart."""
        assert SPACE.key(arch) not in {SPACE.key(SPACE.mutate(arch, 0, i)) for i in range(20)}


@settings(max_examples=20)
@given(draws | st.sampled_from(SMALL), st.booleans())
def test_slots_are_those_of_the_network(arch, full):
    with torch.device("meta"):
        built = SPACE.build(arch, "cifar10", full=full)
    modules = dict(built.model.named_modules())
    slots = SPACE.slots(arch, "cifar10")
    bottlenecks = 2 * (SPACE.num_layers(arch) - 2)
    assert built.blocks == slots.blocks == ("stem", *(f"blocks.{i}" for i in range(bottlenecks)), "head")
    weighted = [name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [slot_of(name, slots.layers) for name in weighted] == list(slots.layers)
    assert SPACE.common_slots("cifar10") is None


def aznas_by_hand(arch, spec):
    """Entropies of the maps, and what AZ-NAS's trainability makes of each pair, of the reference; norms of layers."""
    key = SPACE.key(arch)
    model = initialise(SPACE.build(arch, spec.dataset).model, seed=spec.seed, space="mbv2", scope=key)
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    images = noise_of(spec, 0).images.double().contiguous()
    maps, _ = reference(weights, arch, images.requires_grad_())
    entropies, pairs = [], []
    for x in maps:
        columns = x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()
        share = np.linalg.svd(columns - columns.mean(0), compute_uv=False) ** 2  # the covariance's eigenvalues but 0
        share /= share.sum()
        entropies.append(-(share * np.log(share + 1e-8)).sum())
    for name, f_in, f_out in zip(SPACE.slots(arch, spec.dataset).blocks[1:], maps[:-1], maps[1:], strict=True):
        probe = torch.empty_like(f_out)
        Stream.of(spec.seed, "mbv2", key, 0, f"probe:{name}").rademacher_(probe)
        (gradient,) = torch.autograd.grad(f_out, f_in, probe, retain_graph=True)
        gradient = F.pixel_unshuffle(gradient, f_in.shape[2] // f_out.shape[2])
        a, b = (t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]) for t in (gradient, probe))
        sigma = torch.linalg.matrix_norm(a.T @ b / len(a), ord=2).item()
        pairs.append(2 - sigma - 1 / (sigma + 1e-6))
    initialise(model, init="default", seed=spec.seed, space="mbv2", scope=key)  # l2_norm's recipe
    return entropies, pairs, [parameter.norm().item() for parameter in model.parameters() if parameter.ndim > 1]


def test_a_run_of_aznas(tmp_path, zcpipe):
    """By the command, at small images, against the reference network in plain torch."""
    table = tmp_path / "table"
    fields = {"space": "mbv2", "dataset": "imagenet", "proxies": ("l2_norm",), "batch_size": 4, "resolution": 64}
    spec = RunSpec.model_validate({**fields, "seed": 3})
    arguments = ["--sample", "2", "--resolution", "64", "--batch-size", "4", "--seed", "3", "--out", table]
    code, _, error = zcpipe("run", "--space", "mbv2", *arguments, "--proxies", "aznas,l2_norm")
    assert code == 0, error
    rows = open_table(table).to_arrow().to_pylist()
    assert {row["arch"] for row in rows} == {str(SPACE.sample(3, i)) for i in range(2)}
    for row in rows:
        arch = SPACE.parse(row["arch"])
        entropies, pairs, norms = aznas_by_hand(arch, spec)
        assert row["status"] == "ok"
        assert row["complexity"] == row["macs"] == SPACE.size(arch, "imagenet").macs
        np.testing.assert_allclose(row["expressivity@block"], entropies, rtol=1e-4)
        # Where float32 rounds a ReLU's input to the other side of zero, a pair of so few positions shows it.
        np.testing.assert_allclose(row["trainability@block"], pairs, rtol=0.05, atol=1e-3)
        np.testing.assert_allclose(row["l2_norm@layer"], norms, rtol=1e-5)
        assert row["expressivity"] == pytest.approx(sum(entropies), rel=1e-4)
        assert row["trainability"] == pytest.approx(np.mean(pairs), rel=0.02)
        assert row["progressivity"] == pytest.approx(np.diff(entropies).min(), abs=1e-3)
