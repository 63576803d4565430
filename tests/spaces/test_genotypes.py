"""Cell spaces: what is an architecture and what is none, draws and neighbours, and which are one function."""

import copy
import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
from genotype_cases import NDS, SPACES, drawn, entries, relabelled, spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.spaces.base import Space
from zcpipe.spaces.genotype_cells import OPERATIONS, Cell

DARTS, ENAS = NDS["darts"], NDS["enas"]
TEXT = (
    "darts w16 d8 normal |sep_conv_3x3~0|none~1|+|skip_connect~2|max_pool_3x3~0|+|dil_conv_5x5~3|none~3|"
    "+|avg_pool_3x3~1|none~4|@2,3,4,5 reduce |none~0|none~0|+|none~0|none~0|+|none~0|none~0|+|none~0|none~0|@2,3,4,5"
)
NET = {
    "width": 32,
    "depth": 14,
    "aux": False,
    "drop_prob": 0.0,
    "genotype": {
        "normal": [["skip_connect", 0], ["sep_conv_3x3", 1]] * 5,
        "normal_concat": [2, 3, 4, 5, 6],
        "reduce": [[operation, node] for node in range(1, 6) for operation in ("max_pool_3x3", "sep_conv_5x5")],
        "reduce_concat": [6],
    },
}


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_is_a_space(space):
    assert isinstance(space, Space)
    assert hash(space) == hash(copy.deepcopy(space))
    assert set(space.operations) <= set(OPERATIONS)


@given(drawn())
def test_parse_and_text_are_inverse(case):
    space, arch = case
    assert space.parse(str(arch)) == arch
    assert space.parse(f"  {arch}\n") == arch
    assert "\n" not in str(arch)


def test_text_says_all():
    arch = DARTS.parse(TEXT)
    assert (arch.family, arch.width, arch.depth, arch.aux) == ("darts", 16, 8, False)
    assert arch.normal.nodes[1] == (("skip_connect", 2), ("max_pool_3x3", 0))
    assert arch.normal.concat == (2, 3, 4, 5)
    assert str(replace(arch, aux=True)) == TEXT.replace(" normal", " aux normal", 1)
    assert DARTS.parse(str(replace(arch, aux=True))).aux


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("", ""), None),
        (("darts", "enas"), "begin with 'darts', not 'enas'"),
        ((" d8", ""), "expected '<family> w<width>"),
        (("w16", "w016"), "did you mean"),
        (("w16", "w17"), "width: got 17, expected an even number"),
        (("w16", "w4096"), "width: got 4096"),
        (("d8", "d0"), "depth: got 0"),
        (("d8", "d65"), "depth: got 65, expected 1 to 64"),
        (("sep_conv_3x3", "sep_conv_3"), "normal: node 2: unknown operation 'sep_conv_3'; did you mean sep_conv_3x3"),
        (("sep_conv_3x3", "sep_conv_7x7"), "unknown operation 'sep_conv_7x7'"),
        (("skip_connect~2", "skip_connect~3"), "normal: node 3 reads node 3, expected one before it, 0 to 2"),
        (("skip_connect~2", "skip_connect~9"), "normal: node 3 reads node 9"),
        (("|skip_connect~2|max", "|skip_connect~2max"), "normal: node 3 must be two edges"),
        (("|avg_pool_3x3~1|none~4|@2", "|avg_pool_3x3~1|none~4|+|none~0|none~0|@2"), "got 10 edges, expected 8"),
        (("+|avg_pool_3x3~1|none~4|@2", "@2"), "normal: got 6 edges, expected 8"),
        (("@2,3,4,5 reduce", "@2,3,5 reduce"), "normal_concat: misses node 4; expected 2, 3, 4, 5"),
        (("@2,3,4,5 reduce", "@2,3,4,5,6 reduce"), "normal_concat: names node 6; there is no such node"),
        (("@2,3,4,5 reduce", "@1,2,3,4,5 reduce"), "normal_concat: names node 1"),
        (("@2,3,4,5 reduce", "@2,3,4,4,5 reduce"), "normal_concat: got [2, 3, 4, 4, 5], expected nodes that differ"),
        (("@2,3,4,5 reduce", "@3,2,4,5 reduce"), "did you mean"),
        (("@2,3,4,5 reduce", " reduce"), "such as '@2,3'"),
    ],
)
def test_malformed_text_is_named(change, says):
    text = TEXT.replace(*change, 1)
    if says is None:
        assert str(DARTS.parse(text)) == TEXT
        return
    with pytest.raises(UsageError, match="malformed architecture") as caught:
        DARTS.parse(text)
    assert says in str(caught.value)


@given(st.text(max_size=80), st.integers(0, len(TEXT)), st.integers(0, len(TEXT)))
def test_parse_never_fails_otherwise(noise, start, stop):
    for text in (noise, TEXT[:start] + noise + TEXT[stop:]):
        with suppress(UsageError):
            assert str(DARTS.parse(text)) == text.strip()


class TestEntries:
    """Official entries become architectures, and others are refused with what is wrong."""

    @pytest.mark.parametrize("family", NDS)
    def test_all_official_ones_are_members(self, data, family):
        space = NDS[family]
        for entry in entries(data, family):
            arch = space.from_entry(entry["net"])
            assert (arch.width, arch.depth, arch.aux) == tuple(entry["net"][name] for name in ("width", "depth", "aux"))
            genotype = entry["net"]["genotype"]
            assert [list(edge) for edge in arch.normal.edges] == genotype["normal"]
            assert [list(edge) for edge in arch.reduce.edges] == genotype["reduce"]
            assert list(arch.reduce.concat) == genotype["reduce_concat"]
            assert space.parse(str(arch)) == arch

    def test_fixed_width_and_depth_make_no_other_space(self):
        assert str(ENAS.from_entry({**NET, "width": 26, "depth": 9})).startswith("enas w26 d9 normal")

    def test_the_order_of_a_concat_is_left_out(self):
        other = copy.deepcopy(NET)
        other["genotype"]["normal_concat"].reverse()
        assert ENAS.from_entry(other) == ENAS.from_entry(NET)

    def test_an_auxiliary_classifier_may_be_left_unsaid(self):
        assert not ENAS.from_entry({name: value for name, value in NET.items() if name != "aux"}).aux

    @pytest.mark.parametrize(
        ("path", "value", "says"),
        [
            (("width",), None, "lacks 'width'"),
            (("width",), "32", "width: got '32', expected int"),
            (("width",), True, "width: got True"),
            (("depth",), 1000, "depth: got 1000"),
            (("aux",), 1, "aux: got 1, expected bool"),
            (("genotype",), None, "lacks 'genotype'"),
            (("genotype",), [], "genotype: got []"),
            (("genotype", "normal"), None, "lacks 'normal'"),
            (("genotype", "reduce_concat"), None, "lacks 'reduce_concat'"),
            (("genotype", "normal"), [], "normal: got 0 edges, expected 10"),
            (("genotype", "normal", 3), ["sep_conv_3x3"], "normal: node 3 has the edge ['sep_conv_3x3'], expected"),
            (("genotype", "normal", 3), ["sep_conv_3x3", True], "normal: node 3 has the edge"),
            (("genotype", "normal", 3), {"sep_conv_3x3": 1}, "normal: node 3 has the edge"),
            (
                ("genotype", "normal", 3),
                ["sepconv_3x3", 1],
                "unknown operation 'sepconv_3x3'; did you mean sep_conv_3x3",
            ),
            (("genotype", "normal", 3), ["sep_conv_3x3", -1], "normal: node 3 reads node -1"),
            (("genotype", "reduce", 0), ["sep_conv_3x3", 6], "reduce: node 2 reads node 6, expected one before it"),
            (("genotype", "normal_concat"), [2, 3, 5, 6], "normal_concat: misses node 4"),
            (("genotype", "reduce_concat"), [2, 6], "reduce_concat: names node 2; the output of nds/enas's cells is 6"),
            (("genotype", "normal_concat"), ["2"], "normal_concat: got ['2']"),
            (("genotype", "normal_concat"), [[2]], "normal_concat: got [[2]]"),
        ],
    )
    def test_a_wrong_one_is_named(self, path, value, says):
        net = copy.deepcopy(NET)
        place = net
        for name in path[:-1]:
            place = place[name]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        with pytest.raises(UsageError) as caught:
            ENAS.from_entry(net)
        assert says in str(caught.value)


class TestDraws:
    """Draws are those that the official files were made by."""

    @given(spaces, st.integers(0, 2**40), st.integers(0, 2**40))
    def test_need_no_earlier_draw_and_are_members(self, space, seed, i):
        arch = space.sample(seed, i)
        assert space.sample(seed, i) == arch == space.parse(str(arch))
        assert arch.width in space.scales[0].widths
        assert arch.depth in space.scales[0].depths

    @pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
    def test_are_uniform(self, space):
        archs = [space.sample(0, i) for i in range(1500)]
        assert len(set(archs)) == len(archs)
        for counted in (
            Counter(arch.width for arch in archs),
            Counter(arch.depth for arch in archs),
            Counter(operation for arch in archs for cell in (arch.normal, arch.reduce) for operation, _ in cell.edges),
            Counter(arch.normal.edges[-1][1] for arch in archs) if not space.strict else Counter(),
        ):
            expected = counted.total() / max(len(counted), 1)
            assert all(abs(number - expected) < 6 * expected**0.5 for number in counted.values())
        seen = {operation for arch in archs for operation, _ in arch.normal.edges}
        assert seen == set(space.operations)

    @pytest.mark.parametrize("family", NDS)
    def test_widths_and_depths_are_those_of_the_files(self, data, family):
        space, nets = NDS[family], [entry["net"] for entry in entries(data, family)]
        (scale,) = (scale for scale in space.scales if scale.dataset.name == "imagenet")
        assert {net["width"] for net in nets} <= set(scale.widths)
        assert {net["depth"] for net in nets} == set(scale.depths)
        assert max(entry["params"] for entry in entries(data, family)) < scale.below

    def test_the_files_hold_every_width(self, data):
        widths = {entry["net"]["width"] for family in NDS for entry in entries(data, family)}
        assert widths == set(DARTS.scales[1].widths)

    def test_half_of_the_files_first_nodes_read_one_input_twice(self, data):
        """Which is what independent draws give, and what pairs of different inputs would never."""
        nets = [entry["net"] for family in NDS for entry in entries(data, family)]
        cells = [net["genotype"][kind] for net in nets for kind in ("normal", "reduce")]
        assert sum(cell[0][1] == cell[1][1] for cell in cells) / len(cells) == pytest.approx(0.5, abs=0.05)

    @pytest.mark.parametrize("family", NDS)
    def test_of_imagenet_stay_below_six_million_parameters(self, family):
        archs = [NDS[family].sample(5, i, "imagenet") for i in range(40)]
        assert all(NDS[family].size(arch, "imagenet").params < 6_000_000 for arch in archs)
        assert {arch.depth for arch in archs} <= {6, 10, 14, 18, 22}
        assert len({(arch.width, arch.depth) for arch in archs}) > 5

    def test_never_change(self):
        """Tables' draws are known by seed and number alone."""
        texts = [str(space.sample(1, i)) for space in SPACES for i in range(20)]
        texts += [str(space.sample(1, i, "imagenet")) for space in NDS.values() for i in range(5)]
        assert hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest() == "cd14ca69fdcc0146"

    def test_unknown_dataset_names_the_near_one(self):
        with pytest.raises(UsageError, match="did you mean imagenet"):
            DARTS.sample(0, 0, "imagenet16")
        with pytest.raises(UsageError, match="did you mean cifar10"):
            DARTS.size(DARTS.sample(0, 0), "cifar100")


class TestNeighbours:
    """One change away, and never out of the space."""

    @settings(max_examples=15)
    @given(drawn(), st.integers(0, 1000))
    def test_are_members_that_differ_in_one_thing(self, case, i):
        space, arch = case
        neighbours = space.neighbours(arch)
        assert len(set(neighbours)) == len(neighbours)
        assert arch not in neighbours
        assert space.mutate(arch, 3, i) in neighbours
        assert space.mutate(arch, 3, i) == space.mutate(arch, 3, i)
        for other in neighbours:
            assert space.parse(str(other)) == other
            parts = [
                name for name in ("normal", "reduce", "width", "depth") if getattr(arch, name) != getattr(other, name)
            ]
            assert len(parts) == 1
            if parts[0] in ("normal", "reduce"):
                ours, theirs = getattr(arch, parts[0]).nodes, getattr(other, parts[0]).nodes
                changed = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
                assert len(changed) == 1
                assert len(Counter(changed[0][0]) - Counter(changed[0][1])) == 1

    @settings(max_examples=5)
    @given(drawn(), st.integers(0, 1000))
    def test_have_what_they_are_neighbours_of_for_one(self, case, i):
        space, arch = case
        assert arch in space.neighbours(space.mutate(arch, 0, i))

    def test_are_all(self):
        arch = DARTS.sample(0, 0)
        inputs = 2 * 2 * (1 + 2 + 3 + 4)
        steps = (arch.width > 16) + 1 + (arch.depth > 4) + 1
        assert len(DARTS.neighbours(arch)) == 16 * 7 + inputs + steps

    def test_steps_of_width_and_depth_are_the_next_ones(self):
        arch = replace(DARTS.sample(0, 0), width=32, depth=20)
        assert [n.width for n in DARTS.neighbours(arch) if n.width != 32] == [24, 48]
        assert [n.depth for n in DARTS.neighbours(arch) if n.depth != 20] == [18, 22]
        assert [n.width for n in DARTS.neighbours(replace(arch, width=500)) if n.width != 500] == [96]
        assert [n.depth for n in DARTS.neighbours(replace(arch, depth=1)) if n.depth != 1] == [4]


class TestKeys:
    """One text for one function."""

    @given(drawn(), st.randoms(use_true_random=False))
    def test_ignore_how_nodes_are_called_and_edges_ordered(self, case, random):
        space, arch = case
        other = replace(arch, normal=relabelled(arch.normal, random), reduce=relabelled(arch.reduce, random))
        assert space.key(other) == space.key(arch)

    @settings(max_examples=20)
    @given(drawn())
    def test_differ_where_anything_else_does(self, case):
        space, arch = case
        assert space.key(replace(arch, width=arch.width + 2)) != space.key(arch)
        assert space.key(replace(arch, depth=arch.depth + 1)) != space.key(arch)
        assert space.key(replace(arch, aux=True)) != space.key(arch)
        assert space.key(replace(arch, normal=arch.reduce, reduce=arch.normal)) != space.key(arch)

    def test_of_all_official_architectures_differ(self, data):
        keys = [
            space.key(space.from_entry(entry["net"])) for space in NDS.values() for entry in entries(data, space.family)
        ]
        assert len(set(keys)) == len(keys) == 422

    def test_say_what_cells_compute(self):
        arch = DARTS.parse(TEXT)
        normal = "[a3(b),d5(m3(a)+s3(a)),m3(a)+s3(a),s3(a)]"
        assert DARTS.key(arch) == f"darts w16 d8 normal {normal} reduce [0,0,0,0]"

    def test_count_multiplicity_and_pass_skips_through(self):
        def key(*edges, reduction=False):
            return Cell(tuple(zip(edges[::2], edges[1::2], strict=True)), (1 + len(edges) // 2,)).key(reduction)

        skip, pool, conv = "skip_connect", "max_pool_3x3", "sep_conv_3x3"
        assert key((pool, 0), (pool, 0)) == "2m3(a)"
        assert key((conv, 0), (conv, 0)) == "s3#1(a)+s3#2(a)"
        assert key((skip, 0), (skip, 1)) == "a+b"
        assert key((conv, 0), (pool, 1), (skip, 2), ("none", 0)) == key((conv, 0), (pool, 1))
        assert key((conv, 0), (pool, 1), (conv, 2), (skip, 2)) == "m3(b)+s3(a)+s3(m3(b)+s3(a))"

    def test_skips_of_a_reduction_cells_inputs_have_weights(self):
        cell = Cell(((("skip_connect", 0), ("skip_connect", 0)),), (2,))
        assert cell.key(reduction=False) == "2a"
        assert cell.key(reduction=True) == "f#1(a)+f#2(a)"

    def test_never_change(self):
        """Tables are keyed and random streams scoped by these texts."""
        keys = [space.key(space.sample(1, i)) for space in SPACES for i in range(50)]
        assert hashlib.blake2b("\n".join(keys).encode(), digest_size=8).hexdigest() == "8943e2218dbd5d13"

    def test_are_those_of_the_twin(self, native, monkeypatch):
        archs = [(space, space.sample(2, i)) for space in SPACES for i in range(10)]
        keys = [space.key(arch) for space, arch in archs]
        monkeypatch.setenv("ZCPIPE_NO_NATIVE", "1")
        assert [space.key(arch) for space, arch in archs] == keys
