"""NDS as one space: its parts, its draws, its official files, and what those say its networks count."""

import copy
import json
import math
import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nds_entries import FLOPS, PARAMS, RESNETS, TEXTS, entry, write

from zcpipe import get_space, list_spaces, open_table
from zcpipe.errors import DataError, UsageError
from zcpipe.run import RunSpec, Sample, run
from zcpipe.spaces import DrawsByDataset, ReadsEntries, Verifies
from zcpipe.spaces.nds import FAMILIES, NDS

NAMES = ["amoeba", "darts", "enas", "nasnet", "pnas", "resnet", "resnext-a", "resnext-b", "vanilla"]
FILES = [
    ("Amoeba_in", 124),
    ("DARTS_in", 121),
    ("ENAS_in", 117),
    ("NASNet_in", 30),
    ("PNAS_in", 30),
    ("ResNeXt-A_in", 130),
    ("ResNeXt-B_in", 30),
    ("ResNet_lr-wd_in", 40),
    ("Vanilla_lr-wd_in", 40),
]

draws = st.builds(NDS.sample_for, st.sampled_from(["cifar10", "imagenet"]), st.integers(0, 9), st.integers(0, 2**31))


def test_all_parts_are_installed_and_so_is_their_union():
    assert [name for name in list_spaces() if name.partition("/")[0] == "nds"] == ["nds", *(f"nds/{n}" for n in NAMES)]
    assert get_space("nds") is NDS
    with pytest.raises(UsageError, match="did you mean nds/resnet"):
        get_space("nds/resnt")
    for name in ("nds", "nds/darts", "nds/vanilla"):
        space = get_space(name)
        assert isinstance(space, ReadsEntries) and isinstance(space, Verifies) and isinstance(space, DrawsByDataset)
        assert "Radosavovic" in space.paper
    assert not isinstance(get_space("nasbench201"), (ReadsEntries, Verifies, DrawsByDataset))


def test_all_parts_have_the_same_data_sets():
    for family in FAMILIES:
        assert dict(family.datasets) == dict(NDS.datasets)
    assert NDS.datasets["imagenet"].input_shape == (3, 224, 224) and NDS.datasets["imagenet"].classes == 1000


@settings(max_examples=40)
@given(draws, st.integers(0, 99))
def test_an_architecture_is_the_same_in_its_part_and_in_the_union(arch, i):
    part = get_space(f"nds/{arch.family}")
    assert str(arch).split()[0] == arch.family
    assert NDS.parse(str(arch)) == part.parse(str(arch)) == arch
    assert NDS.mutate(arch, 3, i) == part.mutate(arch, 3, i)
    assert NDS.mutate(arch, 3, i).family == arch.family
    assert NDS.key(arch) == part.key(arch)
    for dataset in NDS.datasets:
        assert NDS.size(arch, dataset) == part.size(arch, dataset)
        assert NDS.slots(arch, dataset) == part.slots(arch, dataset)
    assert NDS.build(arch, "cifar10").blocks == NDS.slots(arch, "cifar10").blocks
    moved = NDS.correspondence(arch, arch, "cifar10")
    assert all(slot == origin for slot, origin in moved.items())


def test_draws_are_uniform_over_the_parts_and_need_no_earlier_draw():
    n = 3600
    found = Counter(NDS.sample(5, i).family for i in range(n))
    assert sorted(found) == NAMES
    expected = n / len(NAMES)
    chi_square = sum((count - expected) ** 2 / expected for count in found.values())
    assert chi_square < 26.1  # of 8 degrees of freedom, exceeded once in a thousand
    assert [str(NDS.sample(5, i)) for i in (7, 3)] == [str(NDS.sample(5, 7)), str(NDS.sample(5, 3))]
    assert NDS.sample(5, 0) != NDS.sample(6, 0)


def test_draws_for_a_data_set_are_those_of_the_parts():
    for i in range(30):
        for dataset in NDS.datasets:
            arch = NDS.sample_for(dataset, 2, i)
            assert arch == get_space(f"nds/{arch.family}").sample_for(dataset, 2, i)
        assert NDS.sample(2, i) == NDS.sample_for("cifar10", 2, i)
    with pytest.raises(UsageError, match="unknown dataset"):
        NDS.sample_for("cifar1", 0, 0)


@pytest.mark.parametrize("text", ["", "resnt w16 d1-w16 d1-w16 d1-w16", "resnet", "nds/resnet w16", "|none~0|"])
def test_malformed_text_is_named(text):
    with pytest.raises(UsageError, match="malformed network"):
        NDS.parse(text)


class TestFiles:
    """Official files become architectures; whatever is none says which file and entry is wrong."""

    def test_are_lists_or_two_lists(self, tmp_path):
        three = [entry(at) for at in (2, 0, 1)]
        one = NDS.entries(write(tmp_path / "ResNet.json", three))
        assert [str(e.arch) for e in one] == [TEXTS[at] for at in (2, 0, 1)]
        assert [(e.position, e.dataset) for e in one] == [(0, "cifar10"), (1, "cifar10"), (2, "cifar10")]
        two = NDS.entries(write(tmp_path / "ResNet_reruns.json", {"top": three[:1], "mid": three[1:]}))
        assert [(e.position, e.arch) for e in two] == [(e.position, e.arch) for e in one]

    def test_of_a_directory_are_read_in_the_order_of_their_names(self, tmp_path):
        write(tmp_path / "ResNet_rng1.json", [entry(0)])
        write(tmp_path / "ResNet.json", [entry(1)])
        write(tmp_path / "Vanilla.json", [entry(2, net={**RESNETS[2], "block_type": "double_plain_block"})])
        (tmp_path / "README.md").write_text("none of this")
        seen = []
        found = NDS.entries(tmp_path, lambda *done: seen.append(done))
        assert [str(e.arch).split()[:3] for e in found] == [
            ["resnet", "w16", "d2-w16"],
            ["resnet", "w16", "d1-w16"],
            ["vanilla", "w16", "d3-w16"],
        ]
        assert len(seen) == 3 and seen[-1][0] == seen[-1][1] == sum(f.stat().st_size for f in tmp_path.glob("*.json"))
        assert [e.arch.family for e in get_space("nds/vanilla").entries(tmp_path)] == ["vanilla"]

    def test_of_another_name_are_read_where_one_space_is_asked_for(self, tmp_path):
        file = write(tmp_path / "some.json", [entry(0)])
        assert [str(e.arch) for e in get_space("nds/resnet").entries(file)] == TEXTS[:1]
        with pytest.raises(DataError, match=r"some\.json: its name tells no sub-space"):
            NDS.entries(file)

    @pytest.mark.parametrize("name", ["absent", "some.json", "ResNet.json"])
    def test_that_are_absent_are_told_so(self, tmp_path, name):
        with pytest.raises(DataError, match=rf"{name}: cannot be read \(No such file or directory\)"):
            NDS.entries(tmp_path / name)

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("ResNet.json", "[", "is no JSON"),
            ("ResNet.json", "", "is no JSON"),
            ("ResNet.json", json.dumps([entry(0)])[:-40], "is no JSON"),
            ("ResNet.json", "[" * 100_000, "is no JSON"),
            ("ResNet.json", b"\xff\xfe\xff", "is no JSON"),
            ("ResNet.json", {}, "holds no list of entries"),
            ("ResNet.json", {"top": [], "mid": {}}, "holds no list"),
            ("ResNet.json", 3, "holds no list"),
            ("ResNet.json", [], "holds no entries"),
            ("ResNet.json", [entry(0), 7], r"ResNet.json, entry 1: has no network"),
            ("ResNet.json", [entry(0), {"name": "x"}], "entry 1: has no network"),
            ("ResNet.json", [entry(0, net={})], "entry 0: is no network of nds/resnet: block_type"),
            ("Vanilla.json", [entry(0)], "entry 0: is no network of nds/vanilla: block_type"),
            ("DARTS.json", [entry(0)], "entry 0: is no network of nds/darts: lacks 'genotype'"),
            ("ResNet_in.json", [entry(0)], "entry 0: is a network for cifar10, where the file's name says imagenet"),
            ("ResNet.json", [entry(0, net={**RESNETS[0], "ss": [4, 1, 2, 2]})], "for imagenet, where"),
            ("ResNet.txt", [entry(0)], "its name tells no sub-space"),
        ],
    )
    def test_that_are_damaged_or_foreign_are_named(self, tmp_path, name, content, says):
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(DataError, match=says) as caught:
            NDS.entries(file)
        assert name in str(caught.value)

    def test_of_another_space_are_named(self, tmp_path):
        file = write(tmp_path / "ResNet.json", [entry(0)])
        for path in (file, tmp_path):
            with pytest.raises(DataError, match="holds networks of nds/resnet, not of nds/darts"):
                get_space("nds/darts").entries(path)

    def test_that_are_missing_are_named(self, tmp_path):
        with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
            get_space("nds/darts").entries(tmp_path / "absent.json")
        with pytest.raises(DataError, match="holds no JSON files"):
            NDS.entries(tmp_path)

    @pytest.mark.parametrize("word", ["in (1)", "IN", "in.old", "cifar10", "", "lr-wd_in (copy)", "rng", "lr-wd-in"])
    def test_of_a_name_that_the_benchmark_has_not_are_refused(self, tmp_path, word):
        """They would be of CIFAR-10 for want of the word that says ImageNet."""
        file = write(tmp_path / f"ResNet_{word}.json", [entry(0)])
        for space in (NDS, get_space("nds/resnet")):
            for path in (file, tmp_path):
                with pytest.raises(DataError, match=r"says nothing that NDS has; call it .* ResNet_in\.json if"):
                    space.entries(path)

    @pytest.mark.parametrize("words", ["", "_in", "_lr-wd", "_lr-wd_in", "_fix-w-d", "_reruns", "_rng1", "_rng3"])
    def test_of_a_name_that_the_benchmark_has_are_read(self, tmp_path, words):
        net = {**RESNETS[0], "ss": [4 if "_in" in words else 1, 1, 2, 2]}
        (found,) = NDS.entries(write(tmp_path / f"ResNet{words}.json", [entry(0, net=net)]))
        assert found.dataset == ("imagenet" if "_in" in words else "cifar10")

    def test_of_cells_are_held_against_their_name_by_their_size(self, tmp_path):
        net = {"genotype": GENOTYPE, "width": 16, "depth": 4, "aux": False}
        (arch,) = (found.arch for found in NDS.entries(write(tmp_path / "DARTS.json", [entry(0, net=net)])))
        for name, dataset, other in (("DARTS.json", "cifar10", "imagenet"), ("DARTS_in.json", "imagenet", "cifar10")):
            own, foreign = (NDS.size(arch, one).params for one in (dataset, other))
            content = [entry(0, net=net, params=own)] * 2
            assert {e.dataset for e in NDS.entries(write(tmp_path / name, content))} == {dataset}
            content[1] = entry(0, net=net, params=foreign)
            with pytest.raises(DataError, match=f"entry 1: has the {foreign} parameters of a network for {other}"):
                NDS.entries(write(tmp_path / name, content))

    def test_of_a_wrong_data_set_are_refused(self, data, tmp_path):
        file = tmp_path / "DARTS.json"
        file.write_bytes(data("nds/DARTS_in.json").read_bytes())
        with pytest.raises(DataError, match="of a network for imagenet, where the file's name says cifar10"):
            NDS.entries(file)

    def test_that_are_no_files_or_too_large_are_refused(self, tmp_path, monkeypatch):
        """A pipe would never end, nor would a device."""
        file = tmp_path / "ResNet_in.json"
        for make in (lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero"), file.mkdir):
            make()
            for path in (file, tmp_path):
                with pytest.raises(DataError, match=r"no such file|holds no JSON"):
                    NDS.entries(path)
            file.rmdir() if file.is_dir() else file.unlink()
        monkeypatch.setattr("zcpipe.spaces.nds_files._LARGEST", 100)
        with pytest.raises(DataError, match=r"ResNet_in\.json: has \d+ bytes, more than any"):
            NDS.entries(write(file, [entry(0)]))

    def test_of_a_name_twice_in_one_object_are_refused(self, tmp_path):
        file = tmp_path / "ResNet.json"
        file.write_text(json.dumps([entry(0)]).replace('"params"', '"flops": 1, "params"'))
        with pytest.raises(DataError, match=r"ResNet\.json: is no JSON \(an object has the name 'flops' twice\)"):
            NDS.entries(file)

    @settings(max_examples=80)
    @given(st.data())
    def test_of_any_json_are_read_or_refused(self, tmp_path_factory, data):
        """One thing of a true entry replaced by another, anywhere."""
        anything = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        )
        content = copy.deepcopy(data.draw(st.sampled_from(TRUE_ENTRIES)))
        at, key = [content], 0
        while isinstance(at[key], (dict, list)) and at[key] and data.draw(st.integers(0, 4)):
            at = at[key]
            key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        at[key] = data.draw(anything)
        name, _, family = data.draw(st.sampled_from(["ResNet.json/resnet", "DARTS.json/darts"])).partition("/")
        file = write(tmp_path_factory.getbasetemp() / name, [content])
        try:
            (found,) = get_space(f"nds/{family}").entries(file)
        except DataError as error:
            assert str(file) in str(error)
        else:
            assert NDS.parse(str(found.arch)) == found.arch


CELL = [["none", 0], ["max_pool_3x3", 1]] * 4
GENOTYPE = {"normal": CELL, "normal_concat": [2, 3, 4, 5], "reduce": CELL, "reduce_concat": [2, 3, 4, 5]}
TRUE_ENTRIES = [entry(0), {**entry(1), "net": {"genotype": GENOTYPE, "width": 16, "depth": 4, "aux": False}}]


@pytest.mark.parametrize("strides", [5, [], None, [1], [4, 1, 2]])
def test_what_a_cell_network_states_besides_says_nothing_of_its_data_set(tmp_path, strides):
    """The strides of the standard families have no place in one."""
    net = {**TRUE_ENTRIES[1]["net"], "ss": strides}
    (found,) = NDS.entries(write(tmp_path / "DARTS_in.json", [{**entry(0), "net": net}]))
    assert (found.arch.family, found.dataset) == ("darts", "imagenet")


class TestVerify:
    """Networks are built and counted, and held against the files."""

    @pytest.mark.parametrize(("name", "n"), FILES)
    def test_networks_are_as_large_as_the_files_state(self, data, tmp_path, name, n):
        """Of the standard families' files 40, of the cell spaces' a tenth: each is built and run."""
        path = data(f"nds/{name}.json")
        entries = json.loads(path.read_text())
        assert len(entries) == n
        entries = entries[::10] if "genotype" in entries[0]["net"] else entries[:40]
        found = NDS.verify(write(tmp_path / path.name, entries))
        assert (found.n, found.params_equal, found.macs_equal, found.mismatches) == (len(entries),) * 3 + ((),)

    @pytest.mark.parametrize(("name", "n"), FILES)
    def test_counts_without_building_are_those_of_every_entry(self, data, name, n):
        entries = NDS.entries(data(f"nds/{name}.json"))
        assert len(entries) == n
        for one in entries:
            assert NDS.size(one.arch, "imagenet").params == one.content["params"]
            assert NDS.families[one.arch.family].published_flops(one.arch, "imagenet") == one.content["flops"]

    def test_all_networks_are_below_six_million_parameters_or_600_million_operations(self, data):
        for name, _ in FILES:
            for one in json.loads(data(f"nds/{name}.json").read_text()):
                assert one["params"] < 6e6 or one["flops"] < 6e8

    def test_differences_are_listed(self, tmp_path):
        content = [entry(0), entry(1, params=PARAMS[1] + 1), entry(2, flops=FLOPS[2] - 1)]
        seen = []
        found = NDS.verify(write(tmp_path / "ResNet.json", content), lambda *done: seen.append(done))
        assert (found.n, found.params_equal, found.macs_equal) == (3, 2, 2)
        assert [(one["entry"], one["arch"]) for one in found.mismatches] == [(1, TEXTS[1]), (2, TEXTS[2])]
        first = found.mismatches[0]
        assert (first["got"]["params"], first["expected"]) == (PARAMS[1], {"params": PARAMS[1] + 1, "flops": FLOPS[1]})
        assert json.dumps(found.mismatches) and seen == [(1, 3), (2, 3), (3, 3)]

    def test_a_wrong_count_of_the_space_itself_is_a_difference(self, tmp_path, monkeypatch):
        file = write(tmp_path / "ResNet.json", [entry(0)])
        size = NDS.size(NDS.parse(TEXTS[0]), "cifar10")
        wrong = type(size)(size.params, size.macs + 1)
        monkeypatch.setattr(type(NDS.families["resnet"]), "size", lambda *_: wrong)
        found = NDS.verify(file)
        assert (found.params_equal, found.macs_equal, len(found.mismatches)) == (1, 0, 1)

    @pytest.mark.parametrize("value", [None, -1, "12", 1.5, True, 1 << 63])
    def test_entries_without_counts_are_named(self, tmp_path, value):
        file = write(tmp_path / "ResNet.json", [entry(0), entry(1, flops=value)])
        with pytest.raises(DataError, match=r"ResNet.json, entry 1: flops is"):
            NDS.verify(file)


def test_scoring_fills_the_slots_of_every_network(tmp_path):
    spec = {"space": "nds", "dataset": "cifar10", "batch_size": 2, "proxies": ("expressivity", "trainability", "snip")}
    summary = run(RunSpec.model_validate({**spec, "selection": Sample(n=6), "seed": 11}), tmp_path / "t")
    assert summary.by_status == {"ok": 6}
    rows = open_table(tmp_path / "t").to_arrow().to_pylist()
    assert len({row["arch"].split()[0] for row in rows}) > 2
    statistics = [name for name in rows[0] if "@" in name]
    assert len(statistics) == 3
    for row in rows:
        arch = NDS.parse(row["arch"])
        slots = NDS.slots(arch, "cifar10")
        expected = {"expressivity@block": len(slots.blocks), "trainability@block": len(slots.blocks) - 1}
        lengths = {name: len(row[name]) for name in statistics}
        assert sorted(lengths.values()) == sorted([*expected.values(), len(slots.layers)])
        live = NDS.correspondence(arch, arch, "cifar10")
        saliency = next(row[name] for name in statistics if name.endswith("@layer"))
        assert {slot for slot, value in zip(slots.layers, saliency, strict=True) if value} <= set(live)
        assert saliency[-1] > 0 and all(math.isfinite(value) for value in saliency)
        assert (row["params"], row["macs"]) == tuple(vars(NDS.size(arch, "cifar10")).values())


def test_samples_of_a_run_are_those_of_its_data_set(tmp_path):
    for dataset in NDS.datasets:
        spec = {"space": "nds", "dataset": dataset, "proxies": ("params",), "selection": Sample(n=9), "seed": 3}
        run(RunSpec.model_validate(spec), tmp_path / dataset)
        archs = open_table(tmp_path / dataset).to_arrow(["arch"])["arch"].to_pylist()
        assert sorted(archs) == sorted({str(NDS.sample_for(dataset, 3, i)) for i in range(9)})
