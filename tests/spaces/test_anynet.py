"""The standard families of NDS are the benchmark's: its networks, their counts, the numbers they are drawn from."""

import json
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zcpipe import initialise
from zcpipe.errors import UsageError
from zcpipe.scoring.size import count
from zcpipe.spaces.anynet import ANYNET_SPACES
from zcpipe.spaces.base import slot_of

FAMILIES = {space.family: space for space in ANYNET_SPACES}
FILES = {
    "resnet": "nds/ResNet_lr-wd_in.json",
    "resnext-a": "nds/ResNeXt-A_in.json",
    "resnext-b": "nds/ResNeXt-B_in.json",
    "vanilla": "nds/Vanilla_lr-wd_in.json",
}
ENTRIES = {"resnet": 40, "resnext-a": 130, "resnext-b": 30, "vanilla": 40}

spaces = st.sampled_from(ANYNET_SPACES)
datasets = st.sampled_from(["cifar10", "imagenet"])


@st.composite
def members(draw):
    """A space and one of its networks, as drawn for one of the data sets."""
    space = draw(spaces)
    return space, space.sample(draw(st.integers(0, 5)), draw(st.integers(0, 2**31)), draw(datasets))


@pytest.mark.parametrize("family", FILES)
def test_every_entry_has_the_files_parameters_and_operations(data, family):
    space, entries = FAMILIES[family], json.loads(data(FILES[family]).read_text())
    assert len(entries) == ENTRIES[family]
    for entry in entries:
        arch = space.from_entry(entry["net"])
        assert space.parse(str(arch)) == arch
        assert space.size(arch, "imagenet").params == entry["params"]
        assert space.published_flops(arch, "imagenet") == entry["flops"]


@pytest.mark.parametrize("family", FILES)
def test_entries_have_the_numbers_that_draws_for_imagenet_have(data, family):
    """All of the ResNeXts' occur in the files, and of the others' all depths and widths."""
    generator = FAMILIES[family].generators["imagenet"]
    archs = [FAMILIES[family].from_entry(entry["net"]) for entry in json.loads(data(FILES[family]).read_text())]
    assert {arch.stem for arch in archs} == set(generator.stems)
    assert {len(arch.stages) for arch in archs} == {generator.stages}
    for field, values in generator.values.items():
        assert {getattr(stage, field) for arch in archs for stage in arch.stages} == set(values)


@pytest.mark.parametrize(
    ("family", "total"),
    [("resnet", 1_259_712), ("vanilla", 1_259_712), ("resnext-a", 11_390_625), ("resnext-b", 52_734_375)],
)
def test_draws_for_cifar10_are_from_as_many_networks_as_the_paper_counts(family, total):
    generator = FAMILIES[family].generators["cifar10"]
    assert len(generator) == total
    picked = range(0, total, total // 500 + 1)
    assert len({generator[number] for number in picked}) == len(picked)
    ends = [generator[number][1] for number in (0, total - 1)]
    for field, values in generator.values.items():
        assert [{getattr(stage, field) for stage in stages} for stages in ends] == [{values[0]}, {values[-1]}]


@settings(max_examples=40)
@given(spaces, st.integers(0, 2**40), st.integers(0, 2**31))
def test_draws_for_imagenet_are_as_small_as_the_files_networks(space, seed, i):
    arch = space.sample(seed, i, "imagenet")
    assert space.size(arch, "imagenet").params < 6e6 or space.published_flops(arch, "imagenet") < 6e8
    assert arch == space.sample(seed, i, "imagenet")


def test_draws_never_change():
    """Tables name their rows by the number of a draw."""
    drawn = [str(space.sample(1, 7, dataset)) for space in ANYNET_SPACES for dataset in ("cifar10", "imagenet")]
    assert drawn == [
        "resnet w16 d2-w48 d3-w80 d6-w40",
        "resnet w32 d12-w48 d4-w16 d10-w128 d6-w32",
        "resnext-a w16 d4-w64-r4-g4 d1-w64-r4-g2 d16-w256-r2-g1",
        "resnext-a w64 d16-w32-r1-g4 d16-w64-r4-g2 d16-w32-r4-g2",
        "resnext-b w16 d16-w128-r2-g8 d16-w512-r4-g4 d2-w256-r2-g16",
        "resnext-b w64 d2-w256-r1-g4 d4-w64-r1-g8 d16-w128-r2-g4",
        "vanilla w16 d1-w32 d3-w32 d24-w96",
        "vanilla w64 d8-w128 d5-w32 d2-w256 d4-w96",
    ]


@given(members())
def test_parse_inverts_text(member):
    space, arch = member
    assert space.parse(str(arch)) == arch
    assert space.parse(f"  {arch}\n") == arch


@pytest.mark.parametrize(
    ("family", "text", "says"),
    [
        ("resnet", "", "expected 'resnet' as its first word, got ''"),
        ("resnet", "vanilla w16 d1-w16 d1-w16 d1-w16", "got 'vanilla'"),
        ("resnet", "resnet d1-w16 d1-w16 d1-w16", "the stem's width"),
        ("resnet", "resnet w16 d1-w16 d1-w16", "2 stages"),
        ("resnet", "resnet w16" + " d1-w16" * 5, "5 stages"),
        ("resnet", "resnet w16 d1-w16 d1_w16 d1-w16", "'d1_w16' is no stage"),
        ("resnet", "resnet w16 d1-w16-r1-g1 d1-w16 d1-w16", "such as d2-w64"),
        ("resnet", "resnet w16 d1-w16 d25-w16 d1-w16", "stage 2 has depth 25, which must be from 1 to 24"),
        ("resnet", "resnet w16 d1-w16 d1-w16 d1-w8", "stage 3 has width 8"),
        ("resnet", "resnet w1 d1-w16 d1-w16 d1-w16", "a stem cannot be 1 wide"),
        ("resnet", "resnet  w16 d1-w16 d1-w16 d1-w16", "did you mean 'resnet w16 d1-w16 d1-w16 d1-w16'"),
        ("resnet", "resnet w16 d01-w16 d1-w16 d1-w16", "'d01-w16' is no stage"),
        ("resnet", "resnet w16 d99999-w16 d1-w16 d1-w16", "'d99999-w16' is no stage"),
        ("resnext-a", "resnext-a w64 d1-w16 d1-w16 d1-w16", "such as d2-w64-r4-g2"),
        ("resnext-a", "resnext-a w64 d1-w16-r3-g1 d1-w16-r1-g1 d1-w16-r1-g1", "ratio 3, which must be one of 1, 2, 4"),
        ("resnext-a", "resnext-a w64 d1-w16-r1-g8 d1-w16-r1-g1 d1-w16-r1-g1", "groups 8"),
        ("resnext-a", "resnext-a w64 d1-w512-r1-g1 d1-w16-r1-g1 d1-w16-r1-g1", "width 512"),
    ],
)
def test_malformed_text_is_named(family, text, says):
    with pytest.raises(UsageError, match="malformed network") as caught:
        FAMILIES[family].parse(text)
    assert says in str(caught.value)


@given(spaces, st.text(max_size=60))
def test_parse_never_fails_otherwise(space, text):
    with suppress(UsageError):
        assert str(space.parse(text)) == text.strip()
    with suppress(UsageError):
        assert str(space.parse(f"{space.family} w16 {text}")) == f"{space.family} w16 {text}".strip()


def basic(**fields):
    ends = {"block_type": "res_basic_block", "ds": [1, 2, 1, 1], "ws": [16, 16, 32, 64], "ss": [1, 1, 2, 2]}
    return {**ends, "bot_muls": [], "num_gs": [], **fields}


def bottleneck(**fields):
    numbers = {"ds": [1, 2, 1, 1], "ws": [64, 32, 16, 64], "ss": [8, 1, 2, 2]}
    more = {"bot_muls": [1.0, 0.25, 1.0, 0.5], "num_gs": [1, 2, 4, 1], **fields}
    return {"block_type": "res_bottleneck_block", **numbers, **more}


def test_entries_are_read():
    assert str(FAMILIES["resnet"].from_entry(basic())) == "resnet w16 d2-w16 d1-w32 d1-w64"
    text = "resnext-a w64 d2-w32-r4-g2 d1-w16-r1-g4 d1-w64-r2-g1"
    assert str(FAMILIES["resnext-a"].from_entry(bottleneck())) == text


@pytest.mark.parametrize(
    ("family", "net", "says"),
    [
        ("resnet", {}, "block_type is None, not 'res_basic_block'"),
        ("vanilla", basic(), "'res_basic_block', not 'double_plain_block'"),
        ("resnet", basic(ds=None), "ds is no list of positive numbers"),
        ("resnet", basic(ds=[1, 2, 1, "1"]), "ds is no list"),
        ("resnet", basic(ds=[1, 2, 1, True]), "ds is no list"),
        ("resnet", basic(ds=[1, 2, 1, float("nan")]), "ds is no list"),
        ("resnet", basic(ws=[]), "ws is empty"),
        ("resnet", basic(num_gs=[1, 1, 1, 1]), "num_gs is not empty"),
        ("resnet", basic(ds=[1, 2, 1]), "not of one length"),
        ("resnet", basic(ds=[2, 2, 1, 1]), "its stem is none"),
        ("resnet", basic(ss=[8, 1, 2, 2]), "its stem is none"),
        ("resnet", basic(ss=[1, 2, 2, 2]), "strides of its stages are [2, 2, 2]"),
        ("resnet", basic(ds=[1, 2, 1.5, 1]), "not whole"),
        ("resnet", basic(ds=[1, 2, 25, 1]), "stage 2 has depth 25"),
        ("resnext-a", bottleneck(bot_muls=[1.0, 0.3, 1.0, 0.5]), "not whole"),
        ("resnext-a", bottleneck(bot_muls=[1.0, 1e-300, 1.0, 0.5]), "bot_muls is no list"),
        ("resnext-b", bottleneck(), "stage 1 has width 32"),
    ],
)
def test_entries_of_other_networks_are_named(family, net, says):
    with pytest.raises(UsageError) as caught:
        FAMILIES[family].from_entry(net)
    assert says in str(caught.value)


@given(members(), st.integers(0, 1000), st.integers(0, 1000))
def test_neighbours_differ_in_one_number_by_one_step_and_mutations_are_neighbours(member, seed, i):
    space, arch = member
    neighbours = space.neighbours(arch)
    assert len(set(neighbours)) == len(neighbours)
    for other in neighbours:
        assert space.parse(str(other)) == other and other.stem == arch.stem
        changed = [
            (getattr(old, field), getattr(new, field), field)
            for old, new in zip(arch.stages, other.stages, strict=True)
            for field in space.allowed
            if getattr(old, field) != getattr(new, field)
        ]
        ((old, new, field),) = changed
        values = {value for drawn in space.generators.values() for value in drawn.values[field]}
        assert new in values and not any(min(old, new) < value < max(old, new) for value in values)
        assert arch in space.neighbours(other)
    assert space.mutate(arch, seed, i) in neighbours
    assert space.mutate(arch, seed, i) == space.mutate(arch, seed, i)


def test_what_no_draw_gives_has_neighbours_too():
    space = FAMILIES["resnet"]
    texts = list(map(str, space.neighbours(space.parse("resnet w30 d7-w17 d1-w16 d24-w512"))))
    assert texts == [
        "resnet w30 d6-w17 d1-w16 d24-w512",
        "resnet w30 d8-w17 d1-w16 d24-w512",
        "resnet w30 d7-w16 d1-w16 d24-w512",
        "resnet w30 d7-w24 d1-w16 d24-w512",
        "resnet w30 d7-w17 d2-w16 d24-w512",
        "resnet w30 d7-w17 d1-w24 d24-w512",
        "resnet w30 d7-w17 d1-w16 d20-w512",
        "resnet w30 d7-w17 d1-w16 d24-w384",
    ]


def test_keys_are_shared_by_what_is_one_network_in_both_spaces_of_resnexts():
    a, b = FAMILIES["resnext-a"], FAMILIES["resnext-b"]
    rest = "w64 d1-w64-r4-g2 d2-w128-r1-g4 d1-w64-r2-g1"
    one, other = a.parse(f"resnext-a {rest}"), b.parse(f"resnext-b {rest}")
    assert a.key(one) == b.key(other) == f"resnext {rest}"
    assert a.correspondence(other, one, "cifar10") == {slot: slot for slot in b.slots(other, "cifar10").layers}
    assert FAMILIES["resnet"].key(FAMILIES["resnet"].sample(0, 0)) == str(FAMILIES["resnet"].sample(0, 0))
    with pytest.raises(UsageError, match="different functions"):
        a.correspondence(one, a.sample(0, 0), "cifar10")


@settings(max_examples=30)
@given(members(), datasets)
def test_slots_and_size_are_those_of_the_network(member, dataset):
    space, arch = member
    with torch.device("meta"):
        built = space.build(arch, dataset)
    slots = space.slots(arch, dataset)
    modules = dict(built.model.named_modules())
    layers = [name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [slot_of(name, slots.layers) for name in layers] == list(slots.layers)
    assert (
        built.blocks
        == slots.blocks
        == ("stem", *(name for name in modules if name.count(".") == 2 and "stages" in name))
    )
    images = torch.empty(2, *space.datasets[dataset].input_shape)
    assert count(built.model, [images]) == space.size(arch, dataset)
    assert space.common_slots(dataset) is None


def test_unknown_dataset_names_the_near_one():
    with pytest.raises(UsageError, match="cifar10"):
        ANYNET_SPACES[0].size(ANYNET_SPACES[0].sample(0, 0), "cifar1")


def reference(net, weights, x):
    """The network of an entry, written out: what pycls computes in train mode.

    Weights are taken one after the other: of each convolution and its batch norm, a block's shortcut first.
    """
    left = iter(weights)

    def conv(x, stride=1, groups=1):
        kernel, scale, shift = next(left), next(left), next(left)
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups)
        return F.batch_norm(x, None, None, scale, shift, training=True)

    match net["ss"][0]:
        case 1:
            x = conv(x).relu()
        case 4:
            x = F.max_pool2d(conv(x, 2).relu(), 3, 2, 1)
        case 8:
            x = conv(conv(conv(x, 2).relu(), 2).relu(), 2).relu()
    for stage in range(1, len(net["ds"])):
        for block in range(net["ds"][stage]):
            stride = net["ss"][stage] if block == 0 else 1
            shortcut = x
            if net["block_type"] != "double_plain_block" and (stride > 1 or x.shape[1] != net["ws"][stage]):
                shortcut = conv(x, stride)
            if net["block_type"] == "res_bottleneck_block":
                y = conv(conv(conv(x).relu(), stride, net["num_gs"][stage]).relu())
            else:
                y = conv(conv(x, stride).relu())
            x = (y if net["block_type"] == "double_plain_block" else y + shortcut).relu()
            assert x.shape[1] == net["ws"][stage]
    logits = F.linear(x.mean((2, 3)), next(left), next(left))
    assert next(left, None) is None
    return logits


@pytest.mark.parametrize(
    ("family", "dataset", "net"),
    [
        ("resnet", "cifar10", basic()),
        ("resnet", "imagenet", basic(ss=[4, 1, 2, 2, 2], ds=[1, 1, 2, 1, 1], ws=[16, 16, 24, 24, 40])),
        ("vanilla", "cifar10", basic(block_type="double_plain_block")),
        ("vanilla", "imagenet", basic(block_type="double_plain_block", ss=[4, 1, 2, 2], ws=[20, 16, 16, 24])),
        ("resnext-a", "cifar10", bottleneck(ss=[1, 1, 2, 2])),
        ("resnext-a", "imagenet", bottleneck()),
        ("resnext-b", "imagenet", bottleneck(ws=[64, 64, 64, 128], num_gs=[1, 16, 8, 1])),
    ],
)
def test_networks_compute_what_the_published_ones_do(family, dataset, net):
    space = FAMILIES[family]
    model = initialise(space.build(space.from_entry(net), dataset).model, seed=3).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # batch norms and the bias would be the same everywhere
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(3, 3, 64, 64, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(net, [parameter.clone() for parameter in model.parameters()], x)
        torch.testing.assert_close(model.train()(x), expected, rtol=1e-9, atol=1e-9)
