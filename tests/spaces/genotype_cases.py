"""Cell architectures for tests: drawn ones, and the same with their nodes called otherwise."""

import json

from hypothesis import strategies as st

from zcpipe import get_space
from zcpipe.spaces.genotype_cells import INPUTS, Cell
from zcpipe.spaces.genotypes import GENOTYPE_SPACES

NDS = {space.family: space for space in GENOTYPE_SPACES}
SPACES = [*GENOTYPE_SPACES, get_space("nasbench301")]
FILES = {"darts": "DARTS", "enas": "ENAS", "pnas": "PNAS", "nasnet": "NASNet", "amoeba": "Amoeba"}

spaces = st.sampled_from(SPACES)


@st.composite
def drawn(draw, among=spaces):
    """A space and one of its architectures."""
    space = draw(among)
    return space, space.sample(draw(st.integers(0, 10)), draw(st.integers(0, 10_000)))


def entries(data, family):
    """The entries of a family's official ImageNet file."""
    return json.loads(data(f"nds/{FILES[family]}_in.json").read_text())


def relabelled(cell, random):
    """Return the cell with its nodes in another order that is possible, and the edges of some nodes exchanged."""
    left = list(range(INPUTS, INPUTS + len(cell.nodes)))
    order = [0, 1]
    while left:
        ready = [node for node in left if all(source in order for _, source in cell.nodes[node - INPUTS])]
        order.append(random.choice(ready))
        left.remove(order[-1])
    name = {old: new for new, old in enumerate(order)}
    nodes = []
    for old in order[INPUTS:]:
        pair = [(operation, name[source]) for operation, source in cell.nodes[old - INPUTS]]
        nodes.append(tuple(random.sample(pair, 2)))
    return Cell(tuple(nodes), tuple(sorted(name[node] for node in cell.concat)))
