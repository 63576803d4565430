"""NAS-Bench-Macro's networks are the benchmark's: its counts for all of them, its computation, its duplicates."""

import hashlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import classify, conv, norm, randomise
from torch import nn

from zcpipe import get_space, open_table
from zcpipe.errors import UsageError
from zcpipe.proxies import resolve
from zcpipe.run import Archs, RunSpec, run
from zcpipe.scoring.size import count
from zcpipe.spaces.base import EnumerableSpace, slot_of
from zcpipe.spaces.classes import key_classes

SPACE = get_space("nasbenchmacro")
networks = st.integers(0, 6560).map(SPACE.__getitem__)


@pytest.mark.parametrize(
    ("text", "params", "flops"),
    [
        ("00000000", 387882, 7713280),
        ("00100000", 419050, 12018176),
        ("00010000", 491434, 14225920),
        ("02012100", 890666, 47327744),
        ("11111111", 1588874, 53246464),
        ("12012001", 1183114, 53895680),
        ("22222222", 2932586, 105660928),
    ],
)
def test_sizes_are_the_benchmarks(text, params, flops):
    size = SPACE.size(SPACE.parse(text), "cifar10")
    assert (size.params, size.macs) == (params, flops)


def test_all_sizes_are_the_benchmarks():
    """The digest is of the lines that the official JSON file gives, sorted by architecture."""
    sizes = ((arch, SPACE.size(arch, "cifar10")) for arch in SPACE)
    lines = "\n".join(f"{arch} {size.params} {size.macs}" for arch, size in sizes)
    assert hashlib.blake2b(lines.encode(), digest_size=8).hexdigest() == "acd1b82ef08fb128"


@settings(max_examples=10)
@given(networks)
def test_size_is_that_of_the_network(arch):
    with torch.device("meta"):
        model = SPACE.build(arch, "cifar10").model
    assert count(model, [torch.empty(1, 3, 32, 32)]) == SPACE.size(arch, "cifar10")


def reference(weights, arch, x):
    """The network written out."""

    def conv_norm(name, x, **how):
        return norm(weights, f"{name}.1", conv(weights, f"{name}.0", x, **how))

    x = conv_norm("stem", x).relu()
    channels = 32
    for position, operation in enumerate(arch.operations):
        name, starts = f"features.{position}", position in (0, 2, 5)
        stride = 2 if starts else 1
        channels *= stride
        if operation:
            y = conv_norm(f"{name}.expand", x).relu()
            y = conv_norm(f"{name}.depthwise", y, stride=stride, groups=y.shape[1]).relu()
            y = conv_norm(f"{name}.project", y)
            x = y if starts else x + y
        elif starts:
            x = conv_norm(name, x, stride=2)
        assert x.shape[1] == channels
    return classify(weights, conv_norm("head", x).relu())


@pytest.mark.parametrize("text", ["00000000", "11111111", "22222222", "02012100", "10220012"])
def test_computes_what_the_published_network_does(text):
    arch = SPACE.parse(text)
    model = SPACE.build(arch, "cifar10").model.double()
    weights = randomise(model, torch.Generator().manual_seed(0))
    kernels = [
        module.kernel_size[0] for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1
    ]
    assert kernels == [{"1": 3, "2": 5}[digit] for digit in text if digit != "0"]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(weights, arch, x))


class TestSpace:
    def test_has_6561_networks_in_the_order_of_their_texts(self):
        texts = [str(arch) for arch in SPACE]
        assert isinstance(SPACE, EnumerableSpace)
        assert len(SPACE) == len(set(texts)) == 6561
        assert texts == sorted(texts)

    @given(networks)
    def test_parse_and_index_invert_text_and_position(self, arch):
        assert SPACE.parse(str(arch)) == arch
        assert SPACE[SPACE.index(arch)] == arch

    @pytest.mark.parametrize(
        ("text", "says"), [("", "8 digits"), ("0201210", "8 digits"), ("02012103", "got '3'"), ("0201210²", "got '²'")]
    )
    def test_malformed_text_is_named(self, text, says):
        with pytest.raises(UsageError, match="malformed network") as caught:
            SPACE.parse(text)
        assert says in str(caught.value)

    @given(st.text(max_size=12) | st.from_regex(r"[0-3]{7,9}"))
    def test_parse_never_fails_otherwise(self, text):
        with suppress(UsageError):
            assert str(SPACE.parse(text)) == text.strip()

    @given(networks, st.integers(0, 1000), st.integers(0, 1000))
    def test_neighbours_differ_in_one_layer_and_mutations_are_neighbours(self, arch, seed, i):
        neighbours = SPACE.neighbours(arch)
        assert len(set(neighbours)) == 16
        for other in neighbours:
            assert sum(a != b for a, b in zip(str(arch), str(other), strict=True)) == 1
        assert SPACE.mutate(arch, seed, i) in neighbours
        assert SPACE.mutate(arch, seed, i) == SPACE.mutate(arch, seed, i)

    def test_samples_are_a_permutation_that_needs_no_earlier_draw(self):
        draws = [SPACE.sample(7, i) for i in range(6561)]
        assert set(draws) == set(SPACE)
        assert SPACE.sample(7, 30) == draws[30] != SPACE.sample(8, 30)
        with pytest.raises(UsageError, match="6561"):
            SPACE.sample(7, 6561)

    def test_what_is_not_there_is_named(self):
        with pytest.raises(UsageError, match="networks 0 to 6560"):
            SPACE[6561]
        with pytest.raises(UsageError, match="cifar10"):
            SPACE.size(SPACE[0], "cifar100")


class TestKeys:
    def test_put_the_identities_of_a_stage_last(self):
        assert SPACE.key(SPACE.parse("01001012")) == "01010012"
        assert SPACE.key(SPACE.parse("00002002")) == "00020020"
        assert SPACE.key(SPACE.parse("10021012")) == "10021012"

    def test_make_the_3969_classes_of_the_benchmark(self):
        """Which trained one network for each: 9 first stages, 21 second and third ones."""
        assert len(key_classes(SPACE).representative) == 9 * 21 * 21 == 3969
        assert all(SPACE.key(SPACE.parse(SPACE.key(arch))) == SPACE.key(arch) for arch in SPACE)

    @settings(max_examples=20)
    @given(st.data())
    def test_members_of_a_class_compute_one_function(self, data):
        classes = key_classes(SPACE)
        index = data.draw(st.integers(0, 6560))
        members = np.flatnonzero(classes.class_of == classes.class_of[index])
        representative, member = SPACE[int(data.draw(st.sampled_from(members.tolist())))], SPACE[index]
        ours, theirs = (SPACE.build(arch, "cifar10") for arch in (member, representative))
        assert len(ours.blocks) == len(theirs.blocks)
        weights = randomise(theirs.model.double(), torch.Generator().manual_seed(0))
        correspondence = SPACE.correspondence(representative, member, "cifar10")
        assert list(correspondence) == list(SPACE.slots(member, "cifar10").layers)
        with torch.no_grad():
            for name, parameter in ours.model.double().named_parameters():
                slot = slot_of(name, correspondence)
                parameter.copy_(weights[correspondence[slot] + name.removeprefix(slot)])
        x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        torch.testing.assert_close(ours.model(x), theirs.model(x))

    def test_correspondence_of_networks_of_different_keys_is_refused(self):
        with pytest.raises(UsageError, match="different functions"):
            SPACE.correspondence(SPACE[0], SPACE[1], "cifar10")


@settings(max_examples=20)
@given(networks, st.booleans())
def test_slots_are_those_of_the_network(arch, full):
    with torch.device("meta"):
        built = SPACE.build(arch, "cifar10", full=full)
    modules = dict(built.model.named_modules())
    slots = SPACE.slots(arch, "cifar10")
    assert built.blocks == slots.blocks and set(slots.blocks) <= modules.keys()
    there = [i for i, digit in enumerate(str(arch)) if digit != "0" or i in (0, 2, 5)]
    assert slots.blocks == ("stem", *(f"features.{i}" for i in there), "head")
    weighted = [name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [slot_of(name, slots.layers) for name in weighted] == list(slots.layers)
    assert SPACE.common_slots("cifar10") is None


def test_a_run_of_aznas(tmp_path):
    texts = ["00100001", "00100010", "01200210", "00000000"]
    proxies = (*(proxy.name for proxy in resolve("aznas")), "synflow")
    fields = {"space": SPACE.name, "dataset": "cifar10", "proxies": proxies, "batch_size": 8}
    run(RunSpec.model_validate({**fields, "selection": Archs(texts=texts)}), tmp_path / "table")
    rows = {row["arch"]: row for row in open_table(tmp_path / "table").to_arrow().to_pylist()}
    for text, row in rows.items():
        slots = SPACE.slots(SPACE.parse(text), "cifar10")
        assert row["status"] == "ok"
        assert len(row["expressivity@block"]) == len(slots.blocks) == len(row["trainability@block"]) + 1
        assert len(row["synflow@layer"]) == len(slots.layers) and all(row["synflow@layer"])
    one, same = rows["00100001"], rows["00100010"]  # a stage's identity before its block, and behind
    assert [one[name] for name in (*proxies, "expressivity@block", "synflow@layer")] == [
        same[name] for name in (*proxies, "expressivity@block", "synflow@layer")
    ]
