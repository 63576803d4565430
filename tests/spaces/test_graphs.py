"""Texts say what cells compute, whatever does not matter to that; native code and its twin agree."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.spaces import _graphs_twin as twin
from zcpipe.spaces.graphs import Operation, Wiring, canonical_text, canonical_texts, correspondence, live_edges

ZERO, SKIP, POOL, CONV, SEP = range(5)
OPERATIONS = (
    Operation("zero"),
    Operation("identity"),
    Operation("free", "p"),
    Operation("weighted", "c3"),
    Operation("weighted", "sep_5"),
)


def wiring(edges, inputs=("x",), outputs=None):
    outputs = (max(target for _, target in edges),) if outputs is None else outputs
    return Wiring(OPERATIONS, tuple(inputs), tuple(edges), tuple(outputs))


@st.composite
def cells(draw):
    """A wiring and one of its cells; at most five weighted edges, so that the twin is done soon."""
    inputs = draw(st.sampled_from([("x",), ("x", "y")]))
    nodes = draw(st.integers(len(inputs) + 1, 6))
    pairs = [(x, y) for y in range(len(inputs), nodes) for x in range(y)]
    edges = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=9))
    outputs = draw(st.lists(st.integers(0, nodes - 1), min_size=1, max_size=3))
    cell = draw(st.lists(st.integers(0, 4), min_size=len(edges), max_size=len(edges)))
    assume(sum(operation >= CONV for operation in cell) <= 5)
    return wiring(edges, inputs, outputs), cell


@settings(deadline=None)
@given(cells())
def test_twin_agrees(native, case):
    graph, cell = case
    assert canonical_text(graph, cell) == twin._canonical_text(graph, cell)
    assert live_edges(graph, [cell]).tolist() == [twin._live_edges(graph, cell)]


CHAIN, DIAMOND = [(0, 1), (1, 2)], [(0, 1), (0, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("graph", "cell", "text"),
    [
        (wiring(CHAIN), [SKIP, SKIP], "x"),
        (wiring(CHAIN), [CONV, ZERO], "0"),
        (wiring(CHAIN), [CONV, CONV], "c3(c3(x))"),
        (wiring(DIAMOND), [SKIP, SKIP, SKIP, SKIP], "2x"),
        (wiring(DIAMOND), [POOL, POOL, SKIP, SKIP], "2p(x)"),
        (wiring(DIAMOND), [SKIP, SKIP, CONV, CONV], "c3#1(x)+c3#2(x)"),
        (wiring(DIAMOND), [CONV, SEP, POOL, SKIP], "p(c3(x))+sep_5(x)"),
        (wiring(DIAMOND), [CONV, CONV, CONV, CONV], "c3#1(c3#1(x))+c3#2(c3#2(x))"),
        (wiring([(0, 1)] * 3), [POOL, POOL, POOL], "3p(x)"),
        (wiring([(0, 2), (1, 2)], "xy"), [CONV, SKIP], "c3(x)+y"),
        (wiring([(0, 2), (1, 3)], "xy", (2, 3)), [SKIP, CONV], "[c3(y),x]"),
        (wiring([(0, 1), (0, 2)], "x", (1, 2)), [CONV, CONV], "[c3#1(x),c3#2(x)]"),
        (wiring([(0, 1), (0, 2)], "x", (1, 2)), [SKIP, ZERO], "[0,x]"),
        (wiring([(0, 2), (1, 2)], "xy"), [ZERO, ZERO], "0"),
    ],
)
def test_texts_are_these(either, graph, cell, text):
    assert canonical_text(graph, cell) == text


@settings(deadline=None)
@given(cells(), st.randoms(use_true_random=False))
def test_the_order_of_edges_and_outputs_does_not_matter(case, random):
    graph, cell = case
    order, outputs = random.sample(range(len(cell)), len(cell)), random.sample(graph.outputs, len(graph.outputs))
    other = wiring([graph.edges[edge] for edge in order], graph.inputs, outputs)
    assert canonical_text(other, [cell[edge] for edge in order]) == canonical_text(graph, cell)


@settings(deadline=None)
@given(cells(), st.randoms(use_true_random=False))
def test_the_numbers_of_nodes_do_not_matter(case, random):
    graph, cell = case
    inputs = list(range(len(graph.inputs)))
    rename = dict(enumerate(inputs + random.sample(range(len(inputs), graph.nodes), graph.nodes - len(inputs))))
    edges = [(rename[source], rename[target]) for source, target in graph.edges]
    assume(all(source < target for source, target in edges))
    other = wiring(edges, graph.inputs, [rename[node] for node in graph.outputs])
    assert canonical_text(other, cell) == canonical_text(graph, cell)
    assert live_edges(other, [cell]).tolist() == live_edges(graph, [cell]).tolist()


@settings(deadline=None)
@given(cells())
def test_dead_edges_do_not_matter_and_live_ones_do(case):
    graph, cell = case
    (live,) = live_edges(graph, [cell]).tolist()
    text = canonical_text(graph, cell)
    assert canonical_text(graph, [op if alive else ZERO for op, alive in zip(cell, live, strict=True)]) == text
    for edge in np.flatnonzero(live):
        assert canonical_text(graph, [*cell[:edge], ZERO, *cell[edge + 1 :]]) != text


@settings(deadline=None)
@given(cells(), st.integers(0, 8))
def test_an_identity_before_an_edge_does_not_matter(case, edge):
    graph, cell = case
    edge %= len(cell)
    source, target = graph.edges[edge]
    new = max(source + 1, len(graph.inputs))
    moved = [node + (node >= new) for node in range(graph.nodes)]
    edges = [(moved[a], moved[b]) for a, b in graph.edges]
    edges[edge] = (new, moved[target])
    other = wiring([*edges, (source, new)], graph.inputs, [moved[node] for node in graph.outputs])
    assert canonical_text(other, [*cell, SKIP]) == canonical_text(graph, cell)


def test_many_cells_are_done_in_one_call(either):
    graph = wiring(DIAMOND)
    several = np.random.default_rng(0).integers(0, 5, (50, 4))
    assert canonical_texts(graph, several) == [canonical_text(graph, cell) for cell in several.tolist()]
    assert canonical_texts(graph, several[::2, ::-1]) == canonical_texts(graph, several[::2, ::-1].copy())
    assert np.array_equal(live_edges(graph, several), [live_edges(graph, [cell])[0] for cell in several])
    assert canonical_texts(graph, []) == []
    assert live_edges(graph, np.empty((0, 4), int)).shape == (0, 4)


def test_a_wiring_without_edges_passes_its_input_on(either):
    graph = Wiring(OPERATIONS, ("x",), (), (0,))
    assert canonical_texts(graph, np.empty((2, 0), int)) == ["x", "x"]
    assert live_edges(graph, np.empty((2, 0), int)).shape == (2, 0)


def value(graph, cell, weights):
    """A cell's outputs as numbers, in ascending order: weighted edges are functions of the numbers in ``weights``."""
    nodes = [0.3 + 0.4 * node if node < len(graph.inputs) else 0.0 for node in range(graph.nodes)]
    for edge in sorted(range(len(cell)), key=lambda edge: graph.edges[edge][1]):
        source, target = graph.edges[edge]
        x, operation = nodes[source], cell[edge]
        if operation >= CONV:
            x = math.sin((operation + weights.get(edge, 0)) * x + 0.1) - math.sin(0.1)  # of nothing nothing comes
        nodes[target] += {ZERO: 0, POOL: x * x}.get(operation, x)
    return sorted(nodes[node] for node in graph.outputs)


def assert_same_function(graph, representative, member):
    """With the weights of its counterparts the member has the representative's value."""
    matches = correspondence(graph, representative, member)
    (live,) = live_edges(graph, [member]).tolist()
    assert list(matches) == [edge for edge, lives in enumerate(live) if lives and member[edge] >= CONV]
    assert len(set(matches.values())) == len(matches)
    weights = {edge: math.sqrt(edge + 2) for edge in range(len(graph.edges))}
    given = {edge: weights[match] for edge, match in matches.items()}
    assert value(graph, member, given) == pytest.approx(value(graph, representative, weights), rel=1e-9, abs=1e-12)


def test_correspondence_of_all_cells_of_four_nodes():
    graph = wiring([(x, y) for y in range(4) for x in range(y)])
    everything = np.array(list(itertools.product(range(5), repeat=6)))
    first = {}
    for cell, text in zip(everything.tolist(), canonical_texts(graph, everything), strict=True):
        assert_same_function(graph, first.setdefault(text, cell), cell)


@settings(deadline=None)
@given(cells(), st.randoms(use_true_random=False))
def test_correspondence_under_exchanged_edges(case, random):
    """Parallel edges change places, and edges without operation get one where they stay dead."""
    graph, cell = case
    member = list(cell)
    for ends in set(graph.edges):
        places = [edge for edge, other in enumerate(graph.edges) if other == ends]
        for place, origin in zip(places, random.sample(places, len(places)), strict=True):
            member[place] = cell[origin]
    candidate = [op if op or random.random() < 0.5 else random.randrange(5) for op in member]
    if canonical_text(graph, candidate) == canonical_text(graph, cell):
        member = candidate
    assert_same_function(graph, cell, member)


def test_correspondence_is_one_for_all_edges_together(either):
    """Each leading convolution could be either of the representative's; what follows it settles which."""
    graph = wiring([(0, 1), (0, 2), (1, 3), (2, 3), (1, 3), (2, 3)])
    one, other = [CONV, CONV, CONV, ZERO, ZERO, SEP], [CONV, CONV, ZERO, CONV, SEP, ZERO]
    assert correspondence(graph, one, other) == {0: 1, 1: 0, 3: 2, 4: 5}
    assert correspondence(graph, one, one) == {0: 0, 1: 1, 2: 2, 5: 5}
    assert correspondence(wiring(DIAMOND), [CONV] * 4, [CONV] * 4) == {0: 0, 1: 1, 2: 2, 3: 3}


def test_correspondence_of_cells_of_two_wirings(either):
    """Each has its own numbering of the same nodes, and its own edges and outputs."""
    one = wiring([(0, 1), (1, 2), (0, 2), (0, 3)], outputs=(2, 3))
    other = wiring([(0, 1), (0, 2), (0, 3), (2, 3)], outputs=(1, 3))
    first, second = [CONV, SEP, POOL, CONV], [CONV, CONV, POOL, SEP]
    assert canonical_text(one, first) == canonical_text(other, second)
    assert correspondence(one, first, second, other) == {0: 3, 1: 0, 3: 1}
    assert correspondence(other, second, first, one) == {0: 1, 1: 3, 3: 0}
    more = wiring([*other.edges, (0, 1)], outputs=other.outputs)
    assert correspondence(one, first, [*second, ZERO], more) == {0: 3, 1: 0, 3: 1}
    with pytest.raises(UsageError, match="different functions"):
        correspondence(one, first, first, other)
    with pytest.raises(UsageError, match="member_wiring: expected the operations and inputs"):
        correspondence(one, first, second, wiring(other.edges, ("y",), other.outputs))


def test_cells_without_correspondence_are_named(either):
    with pytest.raises(UsageError, match=r"different functions: 0 and c3\(x\)"):
        correspondence(wiring([(0, 1)]), [ZERO], [CONV])


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([[0, 1, 5, 0]], "cell 0: got operation 5 on edge 2, expected 0 to 4"),
        ([[0, 0, 0, 0], [0, -1, 0, 0]], "cell 1: got operation -1 on edge 1"),
        ([[0, 0, 0, 2**40]], "operation 1099511627776"),
        ([[0, 0, 0, 2**80]], "expected integers"),
        ([[0, 1, 2]], r"got shape \(1, 3\), expected \(cells, 4\)"),
        ([0, 1, 2, 3], "got shape"),
        (7, "got shape"),
        ([[0, 1, 2, 3], [0]], "no array of integers"),
        ([[0.0, 1.0, 2.0, 3.0]], "array of float64, expected integers"),
        ([["none", "none", "none", "none"]], "expected integers"),
        (None, "expected integers"),
    ],
)
@pytest.mark.parametrize("function", [canonical_texts, live_edges])
def test_cells_that_are_none_are_named(either, function, cells, says):
    with pytest.raises(UsageError, match=says):
        function(wiring(DIAMOND), cells)


def test_texts_beyond_the_limit_are_refused(either):
    sums = wiring([(node, node + 1) for node in range(24) for _ in range(2)])
    assert canonical_text(sums, [SKIP] * 48) == f"{2**24}x"
    mixed = [POOL, SKIP] * 24
    with pytest.raises(UsageError, match="cell 1: its text is too long"):
        canonical_texts(sums, [[SKIP] * 48, mixed])


def test_numberings_beyond_the_limit_are_refused(either):
    with pytest.raises(UsageError, match="cell 0: its weighted edges can be numbered in too many ways"):
        canonical_text(wiring([(0, 1)] * 12), [CONV] * 12)


def test_the_limit_of_numberings_allows_nine_equal_edges(native):
    text = canonical_text(wiring([(0, 1)] * 9), [CONV] * 9)
    assert text == "+".join(f"c3#{number}(x)" for number in range(1, 10))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"edges": ((1, 1),)}, "got 1 -> 1, expected a higher node"),
        ({"edges": ((2, 1),)}, "got 2 -> 1"),
        ({"edges": ((0, 1), (1, 2), (2, 1))}, "got 2 -> 1"),
        ({"edges": ((-1, 1),)}, "got -1 -> 1"),
        ({"edges": ((0, 1),), "inputs": ("x", "y")}, "no input"),
        ({"edges": ((0.0, 1),)}, "got 0.0 -> 1"),
        ({"edges": ((0, 64),)}, "got 65 nodes, expected at most 64"),
        ({"edges": ((0, 10**30),)}, "expected at most 64"),
        ({"edges": ((0, 1),) * 65}, "got 65, expected at most 64"),
        ({"outputs": ()}, "outputs"),
        ({"outputs": (-1,)}, "outputs"),
        ({"outputs": (64,)}, "got 65 nodes"),
        ({"inputs": ()}, "inputs"),
        ({"inputs": ("x", "x")}, "inputs"),
        ({"inputs": ("2",)}, "inputs"),
        ({"operations": ()}, "operations"),
        ({"operations": (Operation("free", "p"), Operation("weighted", "p"))}, "symbols that differ"),
        ({"operations": (Operation("zero"),) * 257}, "1 to 256"),
    ],
)
def test_wirings_that_are_none_are_named(change, says):
    whole = {"operations": OPERATIONS, "inputs": ("x",), "edges": ((0, 1),), "outputs": (1,)}
    with pytest.raises(UsageError, match=says):
        Wiring(**{**whole, **change})


def test_the_largest_wiring_works(either):
    graph = wiring([(node, node + 1) for node in range(63)])
    assert canonical_text(graph, [CONV] * 63) == "c3(" * 63 + "x" + ")" * 63
    assert live_edges(graph, [[CONV] * 62 + [ZERO]]).sum() == 0


@pytest.mark.parametrize(
    ("kind", "symbol"),
    [
        ("conv", "c"),
        ("zero", "z"),
        ("identity", "i"),
        ("free", ""),
        ("free", "2p"),
        ("weighted", "c(x)"),
        ("free", "é"),
    ],
)
def test_operations_that_are_none_are_named(kind, symbol):
    with pytest.raises(UsageError, match=r"kind|symbol"):
        Operation(kind, symbol)
