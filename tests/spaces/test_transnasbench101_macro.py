"""TransNAS-Bench-101's macro networks are the benchmark's: its members, its counts, its computation."""

import hashlib
import itertools
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import classify, conv, norm, randomise, relu_conv_norm
from suite_zero import MACRO, sizes
from torch import nn

from zcpipe import get_space, open_table
from zcpipe.errors import UsageError
from zcpipe.proxies import resolve
from zcpipe.run import Archs, RunSpec, run
from zcpipe.scoring.size import count
from zcpipe.spaces.base import EnumerableSpace, slot_of
from zcpipe.spaces.classes import key_classes

SPACE = get_space("transnasbench101_macro")
TASK = "class_object"
networks = st.integers(0, 3255).map(SPACE.__getitem__)


@pytest.mark.parametrize("modules", MACRO)
def test_sizes_are_those_that_suite_zero_published(modules):
    assert sizes(SPACE, SPACE.parse(f"64-{modules}-basic")) == MACRO[modules]


@settings(max_examples=10)
@given(networks, st.sampled_from(["class_object", "class_scene"]))
def test_size_is_that_of_the_network(arch, task):
    with torch.device("meta"):
        model = SPACE.build(arch, task).model
    assert count(model, [torch.empty(1, 3, 256, 256)]) == SPACE.size(arch, task)


def reference(weights, arch, x):
    """The network written out; the projection's norm has the published epsilon of 1."""
    x = norm(weights, "stem.0.1", conv(weights, "stem.0.0", x, 2))
    x = relu_conv_norm(weights, "stem.1", x, 2)
    number = 0
    for module in arch.modules:
        for stride in (2 if module in (3, 4) else 1, 1):
            name = f"blocks.{number}"
            y = relu_conv_norm(weights, f"{name}.conv_a", x, stride)
            y = relu_conv_norm(weights, f"{name}.conv_b", y)
            if y.shape[1] != x.shape[1] or stride == 2:
                x = norm(weights, f"{name}.downsample.1", conv(weights, f"{name}.downsample.0", x, stride), eps=1.0)
            x, number = x + y, number + 1
    return classify(weights, x)


@pytest.mark.parametrize("modules", ["1114", "2413", "33341", "321124", "444311", "123423"])
@pytest.mark.parametrize("pixels", [64, 68])
def test_computes_what_the_published_network_does(modules, pixels):
    arch = SPACE.parse(f"64-{modules}-basic")
    model = SPACE.build(arch, TASK).model.double()
    weights = randomise(model, torch.Generator().manual_seed(0))
    x = torch.randn(3, 3, pixels, pixels, dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(weights, arch, x))


class TestSpace:
    def test_has_the_published_3256_networks_in_the_order_of_length_and_digits(self):
        texts = [str(arch) for arch in SPACE]
        assert isinstance(SPACE, EnumerableSpace)
        assert len(SPACE) == len(set(texts)) == 3256
        assert texts == sorted(texts, key=lambda text: (len(text), text))
        assert (texts[0], texts[-1]) == ("64-1114-basic", "64-444311-basic")
        # of NASLib's list archs_transbench101_macro.json, so sorted
        assert hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest() == "579a7b4d5eac78e0"

    def test_its_members_are_what_choices_make(self):
        made = [SPACE.choose(numbers) for numbers in itertools.product(*map(range, SPACE.choices))]
        assert set(made) - {None} == set(SPACE)
        assert str(SPACE.choose([0, 0, 0, 0, 3, 1, 1])) == "64-1114-basic"  # the last two are beyond its length
        assert SPACE.choose([2, 0, 0, 0, 0, 0, 0]) is None

    @given(networks)
    def test_parse_and_index_invert_text_and_position(self, arch):
        assert SPACE.parse(str(arch)) == arch
        assert SPACE[SPACE.index(arch)] == arch

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "malformed network"),
            ("64-41414-1_02_333", "malformed network"),
            ("32-1234-basic", "malformed network"),
            ("64-1254-basic", "got '5'"),
            ("64-123²-basic", "got '²'"),
            ("64-114-basic", "4 to 6 modules"),
            ("64-1111124-basic", "4 to 6 modules"),
            ("64-4444-basic", "1 to 3 of which"),
            ("64-1133-basic", "double the channels"),
            ("64-1122-basic", "halve the sides"),
            ("64-433333-basic", "1 to 4"),
        ],
    )
    def test_text_of_no_network_is_named(self, text, says):
        with pytest.raises(UsageError) as caught:
            SPACE.parse(text)
        assert says in str(caught.value) and repr(text) in str(caught.value)

    @given(st.text(max_size=20) | st.from_regex(r"64-[1-5]{3,7}-basic"))
    def test_parse_never_fails_otherwise(self, text):
        with suppress(UsageError):
            assert str(SPACE.parse(text)) == text.strip()

    @given(networks, st.integers(0, 1000), st.integers(0, 1000))
    def test_neighbours_are_one_module_away_and_mutations_are_neighbours(self, arch, seed, i):
        neighbours = SPACE.neighbours(arch)
        assert neighbours == sorted(set(neighbours), key=SPACE.index) and arch not in neighbours
        for other in neighbours:
            assert other == SPACE[SPACE.index(other)]
            assert abs(len(other.modules) - len(arch.modules)) <= 1
            assert arch in SPACE.neighbours(other)
        assert SPACE.mutate(arch, seed, i) in neighbours
        assert SPACE.mutate(arch, seed, i) == SPACE.mutate(arch, seed, i)

    def test_neighbours_of_a_short_network(self):
        found = {str(other)[3:-6] for other in SPACE.neighbours(SPACE.parse("64-1114-basic"))}
        changed = {"2114", "3114", "4114", "1214", "1314", "1414", "1124", "1134", "1144"}
        added = {"11114", "21114", "31114", "41114", "12114", "13114", "14114", "11214", "11314", "11414"}
        added |= {"11124", "11134", "11144", "11141", "11142", "11143"}
        assert found == changed | added  # neither 1112 nor 1113, which do not double or do not halve

    def test_samples_are_a_permutation_that_needs_no_earlier_draw(self):
        draws = [SPACE.sample(7, i) for i in range(3256)]
        assert set(draws) == set(SPACE)
        assert SPACE.sample(7, 30) == draws[30] != SPACE.sample(8, 30)
        with pytest.raises(UsageError, match="3256"):
            SPACE.sample(7, 3256)

    def test_what_is_not_there_is_named(self):
        with pytest.raises(UsageError, match="networks 0 to 3255"):
            SPACE[3256]
        with pytest.raises(UsageError, match="class_object"):
            SPACE.size(SPACE[0], "class_objects")

    def test_every_network_has_a_key_of_its_own(self):
        assert len(key_classes(SPACE).representative) == 3256
        slots = SPACE.slots(SPACE[5], TASK).layers
        assert SPACE.correspondence(SPACE[5], SPACE[5], TASK) == {slot: slot for slot in slots}
        with pytest.raises(UsageError, match="different functions"):
            SPACE.correspondence(SPACE[0], SPACE[1], TASK)


@settings(max_examples=20)
@given(networks, st.booleans())
def test_slots_are_those_of_the_network(arch, full):
    with torch.device("meta"):
        built = SPACE.build(arch, TASK, full=full)
    modules = dict(built.model.named_modules())
    slots = SPACE.slots(arch, TASK)
    assert built.blocks == slots.blocks == ("stem", *(f"blocks.{i}" for i in range(2 * len(arch.modules))))
    assert set(slots.blocks) <= modules.keys()
    weighted = [name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [slot_of(name, slots.layers) for name in weighted] == list(slots.layers)
    assert SPACE.common_slots(TASK) is None


def test_a_run_of_aznas(tmp_path):
    texts = ["64-3434-basic", "64-33244-basic"]
    proxies = (*(proxy.name for proxy in resolve("aznas")), "synflow")
    fields = {"space": SPACE.name, "dataset": "class_scene", "proxies": proxies, "batch_size": 2}
    run(RunSpec.model_validate({**fields, "selection": Archs(texts=texts)}), tmp_path / "table")
    rows = open_table(tmp_path / "table").to_arrow().to_pylist()
    assert [row["arch"] for row in rows] == texts
    for row in rows:
        slots = SPACE.slots(SPACE.parse(row["arch"]), "class_scene")
        assert row["status"] == "ok"
        assert len(row["expressivity@block"]) == len(slots.blocks) == len(row["trainability@block"]) + 1
        assert len(row["synflow@layer"]) == len(slots.layers)
        assert all(row["synflow@layer"]) and all(row["expressivity@block"])
