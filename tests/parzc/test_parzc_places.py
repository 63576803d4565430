import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.places import Coordinate, Sequences, group_of, token_layout
from zcpipe.spaces import get_space, list_spaces


def sequences(*rows):
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    lengths = np.array([len(row) for row in rows])
    flat = np.array([names.index(name) for row in rows for name in row], np.int64)
    return Sequences(names, flat, np.cumsum(lengths) - lengths, lengths, np.arange(len(rows)))


def in_order(*rows):
    found = sequences(*rows)
    return [found.names[at] for at in found.in_order()]


def test_slots_come_in_network_order():
    short = ["stem", "cells.0.shortcut", "cells.0.main.0", "cells.0.main.10", "head"]
    long = ["stem", "cells.0.main.0", "cells.0.main.2", "cells.1.main.0", "cells.10.main.0", "head"]
    assert in_order(short, long) == [
        *("stem", "cells.0.shortcut", "cells.0.main.0", "cells.0.main.2", "cells.0.main.10"),
        *("cells.1.main.0", "cells.10.main.0", "head"),
    ]


def test_rows_that_contradict_each_other_still_have_an_order():
    assert sorted(in_order(["a", "b", "c"], ["c", "b", "d"])) == ["a", "b", "c", "d"]


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True).map(sorted), min_size=1), st.randoms())
def test_the_order_is_that_of_every_row_whichever_comes_first(rows, random):
    found = in_order(*rows)
    assert sorted(found) == sorted({name for row in rows for name in row})
    for row in rows:
        assert [name for name in found if name in row] == row
    shuffled = random.sample(rows, len(rows))
    assert in_order(*shuffled) == found


def test_slots_of_rows_that_are_left_out_are_left_out():
    found = sequences(["a", "b"], ["c"]).take(np.array([False, True]))
    assert [found.names[at] for at in found.in_order()] == ["c"]


@pytest.mark.parametrize("name", list_spaces())
def test_layers_are_grouped_with_the_block_that_holds_them(name):
    space = get_space(name)
    for dataset in space.datasets:
        slots = space.slots(space.sample(0, 0), dataset)
        for block in slots.blocks:
            assert group_of(block, slots.blocks) == block
        for layer in slots.layers:
            group = group_of(layer, slots.blocks)
            if group not in slots.blocks:
                assert "." not in group and group == layer.split(".")[0]
            assert layer == group or layer.startswith(group + ".")


@pytest.mark.parametrize(
    ("slot", "group"),
    [
        ("cells.3.layers.2", "cells.3"),
        ("cells.3", "cells.3"),
        ("stages.1.0.main.2", "stages.1.0"),
        ("stem.0", "stem"),
        ("auxiliary_head.2.0", "auxiliary_head"),
        ("classifier", "classifier"),
    ],
)
def test_groups(slot, group):
    assert group_of(slot, {"stem", "cells.3", "cells.30", "stages.1.0"}) == group


def test_tokens():
    def of(*described):
        return [Coordinate(*words.split(",")) for words in described]

    coordinates = of(
        *("snip@layer,stem,stem", "snip@layer,cells.0.a,cells.0", "snip@layer,cells.0.b,cells.0"),
        *("snip@layer,cells.1.b,cells.1", "snip@layer,head,head"),
        *("entropy@block,stem,stem", "entropy@block,cells.0,cells.0", "entropy@block,cells.1,cells.1"),
        *("params,,", "macs,,", "graph,0-1=none,graph"),
    )
    layout = token_layout(coordinates)
    # Channels: snip where the group is the slot, snip at .a, snip at .b, entropy where the group is the slot.
    assert layout.tolist() == [
        [0, -1, -1, 5],
        [-1, 1, 2, 6],
        [-1, -1, 3, 7],
        [4, -1, -1, -1],
        [10, -1, -1, -1],
        [8, 9, -1, -1],
    ]


def test_tokens_come_in_network_order_whichever_column_names_them_first():
    entropy = [Coordinate("entropy@block", block, block) for block in ("cells.0", "cells.1")]
    snip = [Coordinate("snip@layer", slot, slot) for slot in ("stem", "cells.0", "cells.1", "head")]
    assert token_layout([*entropy, *snip])[:, 1].tolist() == [2, 3, 4, 5]


def test_proxies_alone_are_one_token():
    assert token_layout([Coordinate("params", "", ""), Coordinate("macs", "", "")]).tolist() == [[0, 1]]


def test_a_layout_that_would_fill_the_memory_is_refused():
    scattered = [Coordinate("snip@layer", f"a{i}.b{i}", f"a{i}") for i in range(3000)]
    with pytest.raises(DataError, match="3000 features make 3000 tokens of width 3000, too many for a network"):
        token_layout(scattered)


def cell(name, text):
    space = get_space(name)
    return [
        f"{choice}={symbols[number]}"
        for (choice, symbols), number in zip(space.cell_codes.items(), space.cell_code(space.parse(text)), strict=True)
    ]


def test_codes_of_cells_of_edges():
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
    expected = "0-1=nor_conv_3x3 0-2=none 1-2=skip_connect 0-3=none 1-3=none 2-3=avg_pool_3x3"
    assert cell("nasbench201", text) == expected.split()
    micro = "0-1=none 0-2=skip_connect 1-2=nor_conv_1x1 0-3=nor_conv_3x3 1-3=nor_conv_3x3 2-3=nor_conv_3x3"
    assert cell("transnasbench101_micro", "64-41414-0_12_333") == micro.split()


def test_codes_of_cells_of_vertices():
    found = cell("nasbench101", "110.01.1:input,conv3x3-bn-relu,maxpool3x3,output")
    edges = [code.split("=")[0] for code in found[:21] if code.endswith("present")]
    space = get_space("nasbench101")
    member = space.parse("110.01.1:input,conv3x3-bn-relu,maxpool3x3,output")
    last = len(member.operations) - 1
    places = [*range(last), 6]
    sources, targets = np.nonzero(member.adjacency)
    assert edges == [f"{places[x]}-{places[y]}" for x, y in zip(sources, targets, strict=True)]
    assert found[21:] == [
        *(f"{v}={operation}" for v, operation in enumerate(member.operations[1:-1], start=1)),
        *(f"{v}=none" for v in range(last, 6)),
    ]


def test_codes_of_cells_of_two_inputs():
    text = (
        "darts w16 d4 normal |sep_conv_3x3~0|none~1|+|skip_connect~2|max_pool_3x3~0|+|none~3|none~3|+|none~0|none~4|"
        "@2,3,4,5 reduce |none~0|dil_conv_5x5~1|+|none~0|none~0|+|none~0|none~0|+|none~0|none~0|@2,3,4,5"
    )
    found = cell("nds/darts", text)
    assert len(found) == 32
    assert found[:4] == ["normal.0=sep_conv_3x3", "normal.0.source=0", "normal.1=none", "normal.1.source=1"]
    assert found[14:20] == [
        *("normal.7=none", "normal.7.source=4", "reduce.0=none", "reduce.0.source=0"),
        *("reduce.1=dil_conv_5x5", "reduce.1.source=1"),
    ]


@pytest.mark.parametrize(
    "name", ["nasbench101", "nasbench201", "nasbench301", "nds/enas", "nds/pnas", "transnasbench101_micro"]
)
def test_cells_that_differ_have_codes_that_differ(name):
    space = get_space(name)
    archs = {space.sample(0, i) for i in range(200)}
    cells = {str(arch).partition(" normal ")[2] or str(arch) for arch in archs}
    assert len({tuple(space.cell_code(arch)) for arch in archs}) == len(cells)
    for arch in archs:
        sizes = [len(symbols) for symbols in space.cell_codes.values()]
        assert all(0 <= number < size for number, size in zip(space.cell_code(arch), sizes, strict=True))


def test_a_space_without_cells_names_those_that_have_some():
    from parzc_tables import proxy, table

    from zcpipe.parzc.places import graph_of

    with pytest.raises(
        UsageError, match=r"nds/resnet does not describe its cells.*nasbench101, nasbench201.*nds/darts"
    ):
        graph_of(table({proxy("snip"): [1.0]}, space="nds/resnet"))


@pytest.mark.parametrize("code", [[5, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0], [0, 0, 0]])
def test_a_space_whose_codes_would_name_other_choices_is_refused(code, monkeypatch):
    from parzc_tables import proxy, table

    from zcpipe.parzc.places import graph_of

    space = get_space("nasbench201")
    monkeypatch.setattr(type(space), "cell_code", lambda self, arch: code)
    with pytest.raises(UsageError, match=r"the space nasbench201 gives .* of the cell of .*: see zcpipe spaces check"):
        graph_of(table({proxy("snip"): [1.0]}, archs=[str(space.sample(0, 0))]))
