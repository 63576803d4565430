"""AutoFormer: published counts, the published network, weights that networks share, draws and changes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import zcpipe
from zcpipe import get_space
from zcpipe.errors import UsageError
from zcpipe.run import Archs, RunSpec, Sample, run
from zcpipe.scoring.init import initialise
from zcpipe.scoring.size import count
from zcpipe.spaces import list_spaces
from zcpipe.spaces.autoformer import BASE, SMALL, SPACES, TINY
from zcpipe.table import open_table

# The networks that AZ-NAS published, in millions of parameters, and their parameters as its code counts them.
PUBLISHED = {
    "tiny e192 h4-r3.5 h3-r3.5 h4-r3.5 h4-r4 h4-r3.5 h4-r3.5 h4-r3.5 h3-r3.5 h3-r3.5 h4-r3.5 h4-r4 h4-r4": (
        5.92,
        5_921_032,
    ),
    "small e384 h7-r3 h7-r3 h6-r3 h6-r4 h5-r3.5 h6-r3 h6-r3 h6-r3.5 h7-r4 h7-r3 h5-r3 h5-r3 h6-r3 h7-r4": (
        22.95,
        22_951_144,
    ),
    "base e528 h10-r3 h10-r3.5 h10-r3.5 h10-r3.5 h10-r3 h10-r3.5 h10-r3 h10-r4 h10-r4 h10-r3 h10-r3 h9-r4 h10-r3.5 "
    "h10-r3 h10-r4 h10-r4": (53.71, 53_710_768),
    # Those for the budgets of TF-TAS.
    "tiny e192 h3-r3.5 h4-r3.5 h4-r3.5 h3-r3.5 h4-r3.5 h4-r3.5 h3-r3.5 h4-r3.5 h3-r3.5 h4-r3.5 h4-r3.5 h3-r4 h3-r3.5": (
        6.16,
        6_164_008,
    ),
    "small e384 h7-r3 h6-r3 h7-r3 h7-r3 h6-r4 h5-r3.5 h7-r3 h6-r3.5 h7-r3 h7-r4 h7-r3.5 h7-r3.5 h6-r3.5 h5-r4": (
        23.79,
        23_788_072,
    ),
    "base e528 h10-r3 h10-r3 h10-r3.5 h10-r4 h10-r4 h9-r3 h10-r3 h10-r3 h10-r4 h10-r3 h9-r3 h10-r4 h10-r4 h10-r4 "
    "h10-r4 h10-r4": (54.13, 54_133_504),
}
SHORT = "tiny e192 " + " ".join(["h3-r3.5"] * 12)
IMAGE = torch.Generator().manual_seed(0)

archs = st.builds(lambda space, i: (space, space.sample(1, i)), st.sampled_from(SPACES), st.integers(0, 10**6))


def space_of(text):
    return get_space(f"autoformer/{text.split()[0]}")


def built(text, space=None, **how):
    space = space or space_of(text)
    model = space.build(space.parse(text), "cifar100").model
    return initialise(model, **{"init": "default", "space": space.name, "scope": text, **how})


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_networks_have_their_published_parameters(text):
    millions, exact = PUBLISHED[text]
    space = space_of(text)
    params = space.size(space.parse(text), "imagenet").params
    assert params == exact and round(params / 1e6, 2) == millions


@pytest.mark.parametrize("dataset", TINY.datasets)
@pytest.mark.parametrize("text", list(PUBLISHED)[:3])
def test_sizes_are_those_of_the_network(text, dataset):
    space = space_of(text)
    arch = space.parse(text)
    with torch.device("meta"):
        model = space.build(arch, dataset).model
        size = count(model, [torch.empty(1, *space.datasets[dataset].input_shape)])
    assert space.size(arch, dataset) == size


def reference(model, heads, x):  # the published forward, weight by weight
    own = dict(model.named_parameters())
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])  # noqa: E731
    linear = lambda x, name: F.linear(x, own[f"{name}.weight"], own[f"{name}.bias"])  # noqa: E731
    patches = F.conv2d(x, own["patch.weight"], own["patch.bias"], stride=16)
    n, e, grid, _ = patches.shape
    places = [(0, row, column) for row in range(grid) for column in range(grid)]
    x = torch.empty(n, 1 + len(places), e)
    x[:, 0] = own["token.weight"] + own["position.weight"][0]
    for t, (_, row, column) in enumerate(places, start=1):
        x[:, t] = patches[:, :, row, column] + own["position.weight"][1 + 14 * row + column]

    def relative(name):
        table = torch.zeros(x.shape[1], x.shape[1], 64)
        vertical, horizontal = own[f"{name}.vertical.weight"], own[f"{name}.horizontal.weight"]
        table[:] = vertical[0] + horizontal[0]
        for t, (_, row, column) in enumerate(places, start=1):
            for s, (_, other, beside) in enumerate(places, start=1):
                table[t, s] = vertical[other - row + 15] + horizontal[beside - column + 15]
        return table

    for i, count_ in enumerate(heads):
        block = f"blocks.{i}.attention"
        qkv = linear(norm(x, f"{block}.norm"), f"{block}.qkv")
        keys, values, outputs = relative(f"{block}.keys"), relative(f"{block}.values"), []
        for head in range(count_):
            rows = [[3 * (64 * head + j) + part for j in range(64)] for part in range(3)]
            q, k, v = (qkv[:, :, row] for row in rows)
            scores = torch.einsum("ntc,nsc->nts", q, k) + torch.einsum("ntc,tsc->nts", q, keys)
            weights = (scores / 8).softmax(-1)
            outputs.append(torch.einsum("nts,nsc->ntc", weights, v) + torch.einsum("nts,tsc->ntc", weights, values))
        x = x + linear(torch.cat(outputs, 2), f"{block}.proj")
        block = f"blocks.{i}.mlp"
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm"), f"{block}.fc1")), f"{block}.fc2")
    return linear(norm(x, "norm")[:, 1:].mean(1), "head")


@pytest.mark.parametrize("side", [16, 48])
def test_networks_compute_what_the_published_ones_do(side):
    arch = TINY.sample(0, 3)
    model = initialise(TINY.build(arch, "cifar100").model, init="default", seed=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=IMAGE), alpha=0.1)
    x = torch.randn(2, 3, side, side, generator=IMAGE)
    with torch.no_grad():
        expected = reference(model, [layer.heads for layer in arch.layers], x)
    assert torch.allclose(model(x), expected, atol=1e-4)


def test_two_networks_share_the_weights_that_they_have_in_common():
    small = dict(built(SHORT).named_parameters())
    large = dict(built(f"tiny e240 {' '.join(['h4-r4'] * 13)}").named_parameters())
    assert set(small) < set(large)
    for name, weight in small.items():
        part = large[name][tuple(slice(size) for size in weight.shape)]
        assert torch.equal(weight, part), name
        assert weight.count_nonzero() > 0 or name.endswith("bias"), name


def test_weights_are_parts_of_the_published_super_network():
    whole = dict(built(f"tiny e240 {' '.join(['h4-r4'] * 14)}").named_parameters())
    normals = [weight for name, weight in whole.items() if weight.ndim == 2 and name.endswith("weight")]
    assert len(normals) == 2 + 1 + 14 * 8  # token, positions, head; qkv, proj, fc1, fc2, and four tables of each block
    values = torch.cat([weight.flatten() for weight in normals])
    assert values.std().item() == pytest.approx(0.02, rel=1e-3)
    assert values.abs().max() < 0.02 * 7
    assert whole["patch.weight"].abs().max().item() == pytest.approx(1 / np.sqrt(768), rel=1e-3)
    assert not any(weight.any() for name, weight in whole.items() if name.endswith(("fc1.bias", "qkv.bias")))
    assert len({weight.flatten()[0].item() for weight in normals}) == len(normals)


def test_shared_weights_belong_to_the_run():
    first = built(SHORT)
    for how, same in [({"scope": "another"}, True), ({"init": "kaiming_normal"}, True), ({"seed": 1}, False)]:
        other = built(SHORT, **how)
        for name in ("patch.weight", "blocks.3.attention.qkv.weight", "blocks.11.attention.keys.vertical.weight"):
            assert torch.equal(first.get_parameter(name), other.get_parameter(name)) == same, (how, name)
    assert not torch.equal(first.get_parameter("head.weight"), built(SHORT, repeat=1).get_parameter("head.weight"))


def test_a_definition_that_draws_weights_itself_does_not_get_the_shared_ones():
    with pytest.raises(UsageError, match="no initialisation rule for parameter 'weight' of layer 'token'"):
        built(SHORT, init="normal", strict=True)


def test_the_spaces_are_installed_and_have_the_published_choices():
    assert {"autoformer/tiny", "autoformer/small", "autoformer/base"} <= set(list_spaces())
    smallest = {space.name: space.parse(_uniform(space, 0)) for space in SPACES}
    largest = {space.name: space.parse(_uniform(space, -1)) for space in SPACES}
    millions = {
        space.name: tuple(round(space.size(a[space.name], "imagenet").params / 1e6, 1) for a in (smallest, largest))
        for space in SPACES
    }
    assert millions == {
        "autoformer/tiny": (5.4, 10.5),
        "autoformer/small": (13.1, 34.8),
        "autoformer/base": (41.7, 76.9),
    }


def _uniform(space, at):
    word = f"h{space.heads[at]}-r{space.ratios[at]:g}"
    return f"{space.family} e{space.embeddings[at]} {' '.join([word] * space.depths[at])}"


@given(archs)
def test_texts_are_read_back(found):
    space, arch = found
    assert space.parse(str(arch)) == arch
    assert space.key(arch) == str(arch)
    fields = {
        "hidden_dim": arch.embedding,
        "mlp_ratio": [layer.ratio for layer in arch.layers],
        "depth": len(arch.layers),
        "num_heads": [layer.heads for layer in arch.layers],
    }
    assert space.parse(json.dumps(fields)) == arch


@settings(max_examples=30)
@given(archs, st.integers(0, 100))
def test_mutations_are_neighbours_and_neighbours_are_mutual(found, i):
    space, arch = found
    neighbours = space.neighbours(arch)
    assert len(set(neighbours)) == len(neighbours) and arch not in neighbours
    mutant = space.mutate(arch, 5, i)
    assert mutant in neighbours
    assert arch in space.neighbours(mutant)
    assert space.parse(str(mutant)) == mutant


@given(st.sampled_from(SPACES), st.data())
def test_every_member_is_made_of_choices_and_those_beyond_its_depth_decide_nothing(space, data):
    numbers = [data.draw(st.integers(0, options - 1)) for options in space.choices]
    arch = space.choose(numbers)
    assert space.parse(str(arch)) == arch
    assert len(arch.layers) == space.depths[numbers[0]] and arch.embedding == space.embeddings[numbers[1]]
    for place, layer in enumerate(arch.layers):
        heads, ratio = numbers[2 + 2 * place : 4 + 2 * place]
        assert (layer.heads, layer.ratio) == (space.heads[heads], space.ratios[ratio])
    unused = 2 + 2 * len(arch.layers)
    others = [data.draw(st.integers(0, options - 1)) for options in space.choices[unused:]]
    assert space.choose([*numbers[:unused], *others]) == arch
    assert len(space.choices) == 2 + 2 * space.depths[-1]


def test_draws_are_uniform_over_each_choice_and_need_no_earlier_draw():
    drawn = [TINY.sample(7, i) for i in range(600)]
    assert drawn[500] == TINY.sample(7, 500)
    assert drawn != [TINY.sample(8, i) for i in range(600)]
    for values, choices in [
        ([len(arch.layers) for arch in drawn], TINY.depths),
        ([arch.embedding for arch in drawn], TINY.embeddings),
        ([layer.heads for arch in drawn for layer in arch.layers], TINY.heads),
        ([layer.ratio for arch in drawn for layer in arch.layers], TINY.ratios),
    ]:
        shares = [values.count(choice) / len(values) for choice in choices]
        assert sum(shares) == pytest.approx(1)
        assert all(abs(share - 1 / len(choices)) < 0.06 for share in shares)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'tiny' as its first word, got ''"),
        ("small e320 h5-r3", "expected 'tiny' as its first word, got 'small'"),
        ("tiny h3-r4", "expected the embedding as its second word, such as e192"),
        ("tiny e200 " + SHORT[10:], "its embedding must be one of 192, 216, 240, got 200"),
        ("tiny e192 h3-r4 h3-r4", "its number of blocks must be one of 12, 13, 14, got 2"),
        (SHORT.replace("h3-r3.5", "h5-r3.5", 1), "its number of heads must be one of 3, 4, got 5"),
        (SHORT.replace("h3-r3.5", "h3-r3", 1), "its ratio must be one of 3.5, 4, got 3"),
        (SHORT.replace("h3-r3.5", "3-3.5", 1), "'3-3.5' is no block; expected one such as h3-r3.5"),
        ("{", "it is no JSON"),
        ('{"hidden_dim": 192}', "expected the fields hidden_dim, mlp_ratio, num_heads, depth, got hidden_dim"),
        (
            '{"hidden_dim": 192, "mlp_ratio": [4], "num_heads": [3], "depth": 12}',
            "its depth is 12, and it has 1 ratios",
        ),
        ('{"hidden_dim": 192, "mlp_ratio": 4, "num_heads": [3], "depth": 1}', "must be lists"),
        ('{"hidden_dim": 192, "mlp_ratio": ["4"], "num_heads": [3], "depth": 1}', "must be numbers"),
        ('{"hidden_dim": 192, "mlp_ratio": [4], "num_heads": [3.5], "depth": 1}', "must be numbers"),
        ('{"hidden_dim": 1e999, "mlp_ratio": [4], "num_heads": [3], "depth": 1}', "must be numbers from 0 to 9999"),
        ('{"hidden_dim": 192, "mlp_ratio": [4], "num_heads": [NaN], "depth": 1}', "must be numbers from 0 to 9999"),
        (f'{{"hidden_dim": 192, "mlp_ratio": [{10**400}], "num_heads": [3], "depth": 1}}', "must be numbers from 0"),
        ('{"hidden_dim": 192, "depth": 12, "depth": 13}', "it is no JSON: an object has the name 'depth' twice"),
        ('{"hidden_dim": ' + 100_000 * "[", "it is no JSON"),
        ("tiny e1\N{ARABIC-INDIC DIGIT NINE}2 " + SHORT[10:], "expected the embedding as its second word"),
    ],
)
def test_other_texts_are_refused_with_the_reason(text, message):
    with pytest.raises(UsageError, match="malformed architecture") as raised:
        TINY.parse(text)
    assert message in str(raised.value)


def test_the_benchmarks_architectures_are_members(data):
    texts = pq.read_table(data("autoformer_cifar100.parquet"), columns=["arch"])["arch"].to_pylist()
    members = [TINY.parse(text) for text in texts]
    assert len(set(members)) == len(texts) == 100
    first = json.loads(texts[0])
    assert [layer.heads for layer in members[0].layers] == first["num_heads"]
    assert [layer.ratio for layer in members[0].layers] == first["mlp_ratio"]


@pytest.mark.parametrize("space", [TINY, SMALL, BASE], ids=lambda space: space.family)
def test_slots_are_the_layers_and_maps_of_the_network(space):
    arch = space.sample(0, 0)
    slots = space.slots(arch, "chaoyang")
    with torch.device("meta"):
        built = space.build(arch, "chaoyang")
    names = [name for name, m in built.model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert slots.layers == tuple(names) and len(names) == 2 + 4 * len(arch.layers)
    assert slots.blocks == built.blocks and len(slots.blocks) == 2 * len(arch.layers)
    assert space.correspondence(arch, arch, "chaoyang") == {slot: slot for slot in slots.layers}
    with pytest.raises(UsageError, match="compute different functions"):
        space.correspondence(arch, space.neighbours(arch)[0], "chaoyang")


def test_building_draws_no_random_numbers():
    before = torch.get_rng_state()
    model = TINY.build(TINY.sample(0, 0), "cifar100").model
    assert torch.equal(before, torch.get_rng_state())
    assert not any(parameter.any() for name, parameter in model.named_parameters() if "norm" not in name)


def test_unknown_data_sets_are_named():
    with pytest.raises(UsageError, match="cifar1000"):
        TINY.build(TINY.sample(0, 0), "cifar1000")


@pytest.mark.parametrize("shape", [(40, 40), (32, 48), (240, 240), (8, 8)])
def test_images_that_cannot_be_cut_into_patches_are_refused(shape):
    model = built(SHORT)
    with pytest.raises(UsageError, match=f"multiple of 16 up to 224 pixels, got {shape[0]} x {shape[1]}"):
        model(torch.zeros(1, 3, *shape))


def test_a_run_at_a_resolution_that_does_not_fit_stops_before_any_work(tmp_path):
    how = {"space": "autoformer/tiny", "dataset": "cifar100", "proxies": ("snip",), "selection": Sample(n=1)}
    with pytest.raises(UsageError, match="multiple of 16 up to 224 pixels, got 40 x 40"):
        run(RunSpec(**how, resolution=40), tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_aznas_scores_as_its_code_does_for_tokens():
    """Straightforward, on one network: covariances and Jacobians over all tokens of all images."""
    arch = TINY.parse(SHORT)
    model, slots = built(SHORT), TINY.slots(TINY.parse(SHORT), "cifar100")
    x = torch.randn(6, 3, 64, 64, generator=IMAGE)
    maps = {}
    for name in slots.blocks:
        model.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: maps.setdefault(name, out))
    model(x.requires_grad_())
    found = [maps[name] for name in slots.blocks]
    probes = [torch.randn(f.shape, generator=IMAGE).sign() for f in found[1:]]
    entropy, trainability = 0.0, []
    for f in found:
        p = torch.linalg.eigvalsh(torch.cov(f.detach().flatten(0, 1).T.double(), correction=0))
        p = p.clamp(min=0) / p.sum()
        entropy -= float((p * (p + 1e-8).log()).sum())
    for before, after, probe in zip(found, found[1:], probes, strict=False):
        (g,) = torch.autograd.grad(after, before, probe, retain_graph=True)
        a = g.flatten(0, 1).T.double() @ probe.flatten(0, 1).double() / (6 * 17)
        sigma = float(torch.linalg.matrix_norm(a, 2))
        trainability.append(2 - sigma - 1 / (sigma + 1e-6))
    got = zcpipe.score(built(SHORT), x.detach(), proxies="aznas_vit", blocks=slots.blocks, probes=probes)
    assert set(got) == {"expressivity", "trainability", "complexity"}  # no progressivity
    assert got["expressivity"] == pytest.approx(entropy, rel=1e-5)
    assert got["trainability"] == pytest.approx(np.mean(trainability), rel=1e-4)
    assert len(found) == 2 * len(arch.layers)


def test_a_run_scores_drawn_and_listed_architectures(tmp_path):
    proxies = ("expressivity", "trainability", "complexity", "snip", "synflow", "dss", "auto_prox")
    how = {"space": "autoformer/tiny", "dataset": "cifar100", "proxies": proxies, "batch_size": 2, "resolution": 32}
    drawn = RunSpec(**how, selection=Sample(n=2))
    assert run(drawn, tmp_path / "drawn").by_status == {"ok": 2}
    rows = open_table(tmp_path / "drawn").to_arrow().to_pylist()
    for row in rows:
        arch = TINY.parse(row["arch"])
        assert row["macs"] == row["complexity"] == TINY.size(arch, "cifar100").macs
        assert len(row["snip@layer"]) == 2 + 4 * len(arch.layers) and min(row["snip@layer"]) > 0
        assert len(row["trainability@block"]) == 2 * len(arch.layers) - 1
    listed = RunSpec(**how, selection=Archs(texts=tuple(row["arch"] for row in rows)))
    run(listed, tmp_path / "listed")
    again = open_table(tmp_path / "listed").to_arrow().to_pylist()
    without = lambda row: {name: value for name, value in row.items() if name != "seconds"}  # noqa: E731
    assert [without(row) for row in again] == [without(row) for row in rows]
