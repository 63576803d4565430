"""NAS-Bench-101's cells: the benchmark's hashes, its count, and what does not matter to them."""

import functools
import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.spaces import _graphs_twin as twin
from zcpipe.spaces.graphs import (
    NASBENCH101_OPERATIONS,
    nasbench101_canonical,
    nasbench101_cells,
    nasbench101_decode,
    nasbench101_encode,
    nasbench101_hashes,
    nasbench101_prune,
)

CONV3, CONV1, POOL = NASBENCH101_OPERATIONS
ALL = functools.cache(nasbench101_cells)


@st.composite
def codes(draw):
    """Cells with any edges, connected or not."""
    vertices = draw(st.integers(2, 7))
    edges = draw(st.integers(0, 2 ** (vertices * (vertices - 1) // 2) - 1))
    operations = draw(st.lists(st.integers(0, 2), min_size=vertices - 2, max_size=vertices - 2))
    return twin._pack((vertices, edges, tuple(operations)))


def connected(code):
    return nasbench101_prune([code])[0] > 0


def adjacency(vertices, *edges):
    matrix = np.zeros((vertices, vertices), int)
    for edge in edges:
        matrix[edge] = 1
    return matrix


def test_hashes_are_the_benchmarks(data, either):
    table = pq.read_table(data("nasbench101_sample.parquet"))
    cells = [
        nasbench101_encode(json.loads(matrix), json.loads(operations)[1:-1])
        for matrix, operations in zip(table["adjacency"].to_pylist(), table["ops"].to_pylist(), strict=True)
    ]
    assert nasbench101_hashes(cells) == table["hash"].to_pylist()
    assert np.array_equal(nasbench101_prune(cells), cells)
    assert np.isin(nasbench101_canonical(cells), ALL()).all()


def test_there_are_423624_cells_in_ascending_order_each_with_a_hash_of_its_own(native):
    cells = nasbench101_cells()
    assert len(cells) == 423624
    assert (cells[1:] > cells[:-1]).all()
    assert len(set(nasbench101_hashes(cells))) == 423624
    assert np.array_equal(nasbench101_canonical(cells), cells)


def test_the_twin_finds_the_same_cells(native):
    assert np.array_equal(twin._cells(), nasbench101_cells())


def test_small_cells_are_the_first_of_each_hash(either):
    """By the definition: all graphs in order, the first with a new hash."""
    first = {}
    for vertices in range(2, 5):
        for edges in range(2 ** (vertices * (vertices - 1) // 2)):
            for operations in itertools.product(range(3), repeat=vertices - 2):
                code = twin._pack((vertices, edges, operations))
                if nasbench101_prune([code])[0] == code:
                    first.setdefault(nasbench101_hashes([code])[0], code)
    cells = nasbench101_cells()
    assert cells[: len(first)].tolist() == list(first.values())
    assert cells[len(first)] >> 31 == 5


@settings(deadline=None)
@given(codes())
def test_twin_agrees(native, code):
    assert nasbench101_prune([code])[0] == twin._prune(code)
    assert nasbench101_canonical([code])[0] == twin._canonical(code)
    if connected(code):
        assert nasbench101_hashes([code]) == [twin._hash(twin._prune(code))]


@settings(deadline=None)
@given(st.lists(codes(), max_size=20))
def test_many_cells_are_hashed_as_each_alone(native, several):
    several = [code for code in several for code in [code] * (code % 11) if connected(code)]
    assert nasbench101_hashes(several) == [nasbench101_hashes([code])[0] for code in several]


@settings(deadline=None)
@given(codes(), st.randoms(use_true_random=False))
def test_the_order_of_inner_vertices_does_not_matter(code, random):
    matrix, operations = nasbench101_decode(code)
    inner = random.sample(range(1, len(matrix) - 1), len(matrix) - 2)
    order = [0, *inner, len(matrix) - 1]
    moved = matrix[np.ix_(order, order)]
    assume(connected(code) and not np.tril(moved).any())
    other = nasbench101_encode(moved, [operations[vertex - 1] for vertex in inner])
    assert nasbench101_hashes([other]) == nasbench101_hashes([code])
    assert nasbench101_canonical([other]) == nasbench101_canonical([code])


@settings(deadline=None)
@given(codes(), codes())
def test_hashes_tell_apart_what_canonical_cells_do(code, other):
    assume(connected(code) and connected(other))
    same = nasbench101_canonical([code])[0] == nasbench101_canonical([other])[0]
    assert (nasbench101_hashes([code]) == nasbench101_hashes([other])) == same


@settings(deadline=None)
@given(codes())
def test_codes_and_cells_are_each_others_inverse(code):
    assert nasbench101_encode(*nasbench101_decode(code)) == code


@settings(deadline=None)
@given(codes())
def test_canonical_cells_stand_for_themselves(code):
    assume(connected(code))
    (found,) = canonical = nasbench101_canonical([code])
    assert found <= nasbench101_prune([code])[0]
    assert nasbench101_canonical(canonical) == canonical
    edges = nasbench101_decode(found)[0].sum()
    assert (found in ALL()) == (edges <= 9)


def test_pruning_drops_what_is_on_no_path(either):
    dangling = nasbench101_encode(adjacency(5, (0, 1), (1, 4), (0, 2), (3, 4)), [CONV1, POOL, CONV3])
    assert nasbench101_prune([dangling]) == nasbench101_encode(adjacency(3, (0, 1), (1, 2)), [CONV1])
    assert nasbench101_hashes([dangling]) == nasbench101_hashes(nasbench101_prune([dangling]))
    apart = nasbench101_encode(adjacency(4, (0, 1), (2, 3)), [CONV1, POOL])
    assert nasbench101_prune([apart, dangling]).tolist()[0] == -1
    assert nasbench101_canonical([apart]) == -1
    with pytest.raises(UsageError, match="cell 1: input and output are not connected"):
        nasbench101_hashes([dangling, apart])


def test_no_cells_are_no_work(either):
    assert nasbench101_hashes([]) == []
    assert nasbench101_prune([]).shape == nasbench101_canonical([]).shape == (0,)


def test_a_code_is_vertices_edges_operations():
    code = nasbench101_encode(adjacency(4, (0, 1), (1, 2), (0, 3), (2, 3)), [POOL, CONV1])
    assert code == 4 << 31 | 0b101_10_1 << 10 | 0b10_01
    matrix, operations = nasbench101_decode(code)
    assert matrix.tolist() == [[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert operations == (POOL, CONV1)


@pytest.mark.parametrize(
    "code",
    [
        -1,
        0,
        2**63,
        2**70,
        1 << 31,
        8 << 31,
        2 << 31 | 1 << 11,
        3 << 31 | 3,
        3 << 31 | 4,
        7 << 31 | 0b11_0000,
    ],
)
@pytest.mark.parametrize("function", [nasbench101_prune, nasbench101_canonical, nasbench101_hashes])
def test_codes_of_no_cell_are_refused(either, function, code):
    good = 2 << 31 | 1 << 10
    with pytest.raises(UsageError, match="codes"):
        function([good, code])
    with pytest.raises(UsageError, match="codes"):
        nasbench101_decode(code)


@pytest.mark.parametrize("codes", [[[1]], ["x"], [1.5], None, [[1], []]])
def test_what_is_no_list_of_codes_is_refused(either, codes):
    with pytest.raises(UsageError, match="codes"):
        nasbench101_hashes(codes)


@pytest.mark.parametrize(
    ("matrix", "operations", "says"),
    [
        ([[0, 1]], [], "shape"),
        ([[0]], [], "shape"),
        (np.zeros((8, 8), int), [POOL] * 6, "shape"),
        ([[0, 2], [0, 0]], [], "zeros and ones"),
        ([[0, 1], [1, 0]], [], "above the diagonal"),
        ([[1, 1], [0, 0]], [], "above the diagonal"),
        ([[0, 1], [0]], [], "integers"),
        ([[0.0, 1.0], [0.0, 0.0]], [], "integers"),
        ([[0, 1], [0, 0]], [POOL], "got 1, expected 0"),
        (adjacency(3, (0, 1), (1, 2)), ["maxpool3x"], "did you mean maxpool3x3"),
        (adjacency(3, (0, 1), (1, 2)), [2], "unknown operation '2'"),
    ],
)
def test_cells_that_are_none_are_named(matrix, operations, says):
    with pytest.raises(UsageError, match=says):
        nasbench101_encode(matrix, operations)
