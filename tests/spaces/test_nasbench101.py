"""NAS-Bench-101's members are the benchmark's: order, hashes, other forms; and what is next to each."""

import collections
import json
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zcpipe import get_space
from zcpipe.errors import UsageError
from zcpipe.spaces._nasbench101_changes import changed
from zcpipe.spaces.base import EnumerableSpace, KeyedAtOnce
from zcpipe.spaces.graphs import nasbench101_canonical, nasbench101_cells, nasbench101_encode, nasbench101_prune
from zcpipe.spaces.nasbench101 import Cell

SPACE = get_space("nasbench101")
OPERATIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
CONV3, CONV1, POOL = OPERATIONS

cells = st.integers(0, 423_623).map(SPACE.__getitem__)


def graph(vertices, *edges):
    matrix = np.zeros((vertices, vertices), int)
    for edge in edges:
        matrix[edge] = 1
    return matrix


# The example of the benchmark's README, as there and as the benchmark has it, and the cell of its first record.
EXAMPLE = SPACE.cell(
    graph(7, (0, 1), (0, 2), (0, 3), (0, 5), (1, 6), (2, 6), (3, 4), (4, 6), (5, 6)),
    ("input", CONV1, CONV3, CONV3, CONV3, POOL, "output"),
)
FIRST_RECORD = (
    "100110.10000.1001.010.10.1:input,conv3x3-bn-relu,maxpool3x3,conv3x3-bn-relu,conv3x3-bn-relu,conv1x1-bn-relu,output"
)


class TestMembers:
    """The space has one member for each cell that the benchmark trained."""

    def test_there_are_423624_in_the_benchmarks_order(self):
        assert len(SPACE) == 423_624
        assert isinstance(SPACE, EnumerableSpace) and isinstance(SPACE, KeyedAtOnce)
        assert [cell.code for cell in SPACE] == nasbench101_cells().tolist()
        with pytest.raises(UsageError, match="there is no cell 423624"):
            SPACE[423_624]
        with pytest.raises(UsageError, match="there is no cell -1"):
            SPACE[-1]

    def test_so_many_have_each_number_of_vertices_and_edges(self):
        """As computed here; the benchmark publishes the total alone."""
        codes = nasbench101_cells()
        edges = sum(codes >> bit & 1 for bit in range(10, 31))
        assert collections.Counter(zip((codes >> 31).tolist(), edges.tolist(), strict=True)) == {
            (2, 1): 1,
            (3, 2): 3, (3, 3): 3,
            (4, 3): 9, (4, 4): 33, (4, 5): 33, (4, 6): 9,
            (5, 4): 27, (5, 5): 225, (5, 6): 622, (5, 7): 811, (5, 8): 558, (5, 9): 198,
            (6, 5): 81, (6, 6): 1260, (6, 7): 6909, (6, 8): 19701, (6, 9): 34059,
            (7, 6): 243, (7, 7): 6264, (7, 8): 58563, (7, 9): 294012,
        }  # fmt: skip

    def test_keys_are_the_benchmarks_hashes(self, data):
        table = pq.read_table(data("nasbench101_sample.parquet"))
        found = [
            SPACE.cell(json.loads(matrix), json.loads(operations))
            for matrix, operations in zip(table["adjacency"].to_pylist(), table["ops"].to_pylist(), strict=True)
        ]
        assert len(found) == 1263
        assert [SPACE.key(cell) for cell in found] == table["hash"].to_pylist()
        assert [cell.adjacency.tolist() for cell in found] == list(map(json.loads, table["adjacency"].to_pylist()))
        assert [list(cell.operations) for cell in found] == list(map(json.loads, table["ops"].to_pylist()))

    def test_the_first_record_of_the_benchmark_has_the_smallest_hash(self):
        """As its files are sorted."""
        keys = SPACE.all_keys()
        smallest = min(keys)
        assert smallest == "00005c142e6f48ac74fdcf73e3439874"
        assert str(SPACE[keys.index(smallest)]) == FIRST_RECORD
        assert len(set(keys)) == 423_624

    @given(cells)
    def test_parse_and_index_invert_text_and_position(self, cell):
        assert SPACE.parse(str(cell)) == cell
        assert SPACE[SPACE.index(cell)] == cell
        assert SPACE.cell(cell.adjacency, cell.operations) == cell

    def test_text_is_rows_and_operations(self):
        cell = SPACE.parse("110.01.1:input,conv3x3-bn-relu,maxpool3x3,output")
        assert cell.adjacency.tolist() == [[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
        assert cell.operations == ("input", CONV3, POOL, "output")
        assert str(cell) == "110.01.1:input,conv3x3-bn-relu,maxpool3x3,output"
        assert str(SPACE[0]) == "1:input,output"

    def test_the_readme_example_is_what_the_benchmark_returns_for_it(self):
        """Module adjacency and operations as printed in the benchmark's notebook."""
        assert str(EXAMPLE) == (
            "111100.00001.0001.001.10.1:"
            "input,conv3x3-bn-relu,conv1x1-bn-relu,maxpool3x3,conv3x3-bn-relu,conv3x3-bn-relu,output"
        )


@st.composite
def forms(draw):
    """A member, and another form of it: inner vertices in another order, then some that lead nowhere."""
    cell = draw(cells)
    matrix, (_, *operations, _) = cell.adjacency, cell.operations
    last = len(matrix) - 1
    order, waiting = [0], set(range(1, last))
    while waiting:
        ready = sorted(v for v in waiting if not any(matrix[w, v] for w in waiting))
        order.append(draw(st.sampled_from(ready)))
        waiting.remove(order[-1])
    order.append(last)
    matrix, operations = matrix[np.ix_(order, order)], [operations[v - 1] for v in order[1:-1]]
    for _ in range(7 - len(matrix)):
        if draw(st.booleans()):
            place = draw(st.integers(1, len(matrix) - 1))
            matrix = np.insert(np.insert(matrix, place, 0, 0), place, 0, 1)
            operations.insert(place - 1, draw(st.sampled_from(OPERATIONS)))
            if draw(st.booleans()):
                matrix[draw(st.integers(0, place - 1)), place] = 1
            elif place < len(matrix) - 1:
                matrix[place, draw(st.integers(place + 1, len(matrix) - 1))] = 1
    return cell, matrix, operations


class TestOtherForms:
    """Any valid cell is taken to the member that stands for it."""

    @settings(max_examples=200)
    @given(forms())
    def test_order_and_vertices_that_lead_nowhere_do_not_matter(self, form):
        cell, matrix, operations = form
        assert SPACE.cell(matrix, ["input", *operations, "output"]) == cell
        rows = ".".join("".join(map(str, row[v + 1 :])) for v, row in enumerate(matrix[:-1].tolist()))
        assert SPACE.parse(f" {rows}:{','.join(['input', *operations, 'output'])}\n") == cell

    def test_a_code_of_another_form_is_no_member(self):
        other = Cell(nasbench101_encode(graph(4, (0, 1), (0, 2), (1, 3), (2, 3)), [POOL, CONV3]))
        with pytest.raises(UsageError, match="is no member"):
            SPACE.index(other)
        assert SPACE.cell(other.adjacency, other.operations) != other

    def test_ten_edges_are_fine_where_one_leads_nowhere(self):
        nine = graph(6, (0, 1), (0, 2), (0, 3), (1, 2), (1, 4), (2, 3), (2, 4), (3, 4), (4, 5))
        matrix = np.insert(np.insert(nine, 5, 0, 0), 5, 0, 1)
        matrix[2, 5] = 1
        assert SPACE.cell(matrix, ["input", *[CONV1] * 5, "output"]) == SPACE.cell(
            nine, ["input", *[CONV1] * 4, "output"]
        )

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "expected rows joined by"),
            ("1", "a colon"),
            ("1:", "'input' first"),
            ("1:input", "'input' first"),
            ("1:output,input", "'input' first"),
            ("11.1:input,output", "got 0, expected 1"),
            ("11.1:input,conv3x3,output", "did you mean conv3x3-bn-relu"),
            ("11.1:input,conv5x5-bn-relu,output", "unknown operation"),
            ("11.2:input,maxpool3x3,output", "row 1 must be 1 zeros and ones, got '2'"),
            ("11.11:input,maxpool3x3,output", "row 1 must be 1"),
            ("1.1:input,maxpool3x3,output", "row 0 must be 2"),
            ("0:input,output", "not connected"),
            ("10.0:input,maxpool3x3,output", "not connected"),
            ("1111.111.11.1:input,maxpool3x3,maxpool3x3,maxpool3x3,output", "got 10 edges"),
            (".".join("1" * n for n in range(7, 0, -1)) + ":input,output", "got 8 vertices, expected at most 7"),
        ],
    )
    def test_malformed_text_is_named(self, text, says):
        with pytest.raises(UsageError, match="malformed cell") as caught:
            SPACE.parse(text)
        assert says in str(caught.value)

    @given(st.text(max_size=60) | st.from_regex(r"[01]{1,3}(\.[01]{1,2}){0,2}:input(,maxpool3x3){0,2},output"))
    def test_parse_never_fails_otherwise(self, text):
        with suppress(UsageError):
            cell = SPACE.parse(text)
            assert SPACE.parse(str(cell)) == cell

    @pytest.mark.parametrize("operations", [[], ["input"], ["output", "input"], ["input", CONV1]])
    def test_cells_need_their_ends(self, operations):
        with pytest.raises(UsageError, match="'input' first and 'output' last"):
            SPACE.cell(graph(2, (0, 1)), operations)


class TestChanges:
    """Neighbours are one elementary change away, mutations are neighbours, draws a permutation."""

    @settings(max_examples=100)
    @given(cells)
    def test_neighbours_are_other_members_each_once_and_near(self, cell):
        neighbours = SPACE.neighbours(cell)
        assert len(set(neighbours)) == len(neighbours) > 0
        assert cell not in neighbours
        for other in neighbours:
            SPACE.index(other)
            vertices = len(other.adjacency) - len(cell.adjacency)
            edges = int(other.adjacency.sum() - cell.adjacency.sum())
            assert vertices < 0 or (vertices, edges) in [(0, 0), (0, 1), (0, -1), (1, 2)]

    @settings(max_examples=20)
    @given(cells, st.randoms(use_true_random=False))
    def test_changes_can_be_undone_unless_vertices_were_dropped(self, cell, random):
        for other in random.sample(SPACE.neighbours(cell), 3):
            if len(other.adjacency) >= len(cell.adjacency):
                assert cell in SPACE.neighbours(other)

    @settings(max_examples=100)
    @given(forms())
    def test_neighbours_do_not_depend_on_the_order_of_vertices(self, form):
        cell, matrix, operations = form
        code = nasbench101_encode(matrix, operations)
        assume(nasbench101_prune([code])[0] == code)
        found = set(nasbench101_canonical(list(changed(code))).tolist()) - {-1, cell.code}
        assert found == {other.code for other in SPACE.neighbours(cell)}

    def test_neighbours_of_a_chain(self):
        """By hand: in -> 1 -> out, and what one change makes of it."""
        chain = SPACE.parse(f"10.1:input,{CONV3},output")
        expected = [
            f"10.1:input,{CONV1},output",
            f"10.1:input,{POOL},output",
            f"11.1:input,{CONV3},output",
            *(f"110.01.1:input,{CONV3},{operation},output" for operation in OPERATIONS),  # beside vertex 1
            *(f"110.10.1:input,{operation},{CONV3},output" for operation in OPERATIONS),  # before it
            *(f"100.11.1:input,{CONV3},{operation},output" for operation in OPERATIONS),  # behind it
        ]
        assert set(SPACE.neighbours(chain)) == set(map(SPACE.parse, expected))

    def test_all_cells_of_five_vertices_can_be_reached_from_the_smallest(self):
        reached, waiting = {SPACE[0]}, [SPACE[0]]
        while waiting:
            new = {other for other in SPACE.neighbours(waiting.pop()) if SPACE.index(other) < 2_532} - reached
            reached |= new
            waiting.extend(new)
        assert len(reached) == 2_532

    @given(cells, st.integers(0, 1000), st.integers(0, 1000))
    @settings(max_examples=50)
    def test_mutations_are_neighbours_that_depend_on_seed_and_number(self, cell, seed, i):
        mutated = SPACE.mutate(cell, seed, i)
        assert mutated in SPACE.neighbours(cell)
        assert SPACE.mutate(cell, seed, i) == mutated

    def test_mutations_vary(self):
        assert len({SPACE.mutate(EXAMPLE, seed, i) for seed in range(5) for i in range(8)}) > 8

    @given(st.integers(0, 2**31))
    @settings(max_examples=5)
    def test_samples_are_a_permutation_that_needs_no_earlier_draw(self, seed):
        draws = [SPACE.sample(seed, i) for i in range(50)]
        assert len(set(draws)) == 50
        assert SPACE.sample(seed, 30) == draws[30]
        with pytest.raises(UsageError, match="423624"):
            SPACE.sample(seed, 423_624)
