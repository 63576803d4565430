"""NAS-Bench-301 (Zela et al., ICLR 2022): the cells of DARTS without "none", in networks of 8 cells and 16 channels.

The surrogate benchmark rests on networks of 8 cells and 32 channels that were trained with an auxiliary classifier.
Zero-cost proxies were published for it with 16 channels and without (NAS-Bench-Suite-Zero, NASLib), which is what is
built here, of the benchmark's own layers: NASLib's cells have batch norms without affine weights and one more after
each pool, as DARTS has while it searches.

A node's two edges read different nodes, and in texts the lower one comes first; the benchmark draws operations and
pairs of nodes uniformly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from zcpipe.spaces.base import Dataset
from zcpipe.spaces.genotype_cells import INPUTS, Cell, CellNetwork
from zcpipe.spaces.genotypes import DARTS, GenotypeSpace, Scale


class NasBench301(GenotypeSpace):
    """The space: what `GenotypeSpace` says, and of which choices its cells are made."""

    @property
    def choices(self) -> tuple[int, ...]:
        """For each node of the normal and then of the reduction cell the pair that it reads and two operations."""
        pairs = (len(_pairs(node)) for node in range(INPUTS, INPUTS + self.nodes))
        return 2 * tuple(options for n in pairs for options in (n, len(self.operations), len(self.operations)))

    def choose(self, numbers: Sequence[int]) -> CellNetwork:
        """Return the network of the cells with these options."""
        rest = iter(numbers)
        normal, reduce = (self._chosen(rest) for _ in range(2))
        scale = self.scales[0]  # of one width and one depth
        return CellNetwork(self.family, scale.widths[0], scale.depths[0], normal, reduce)

    def _chosen(self, numbers: Iterator[int]) -> Cell:
        nodes = []
        for node in range(INPUTS, INPUTS + self.nodes):
            low, high = _pairs(node)[next(numbers)]
            first, second = (self.operations[next(numbers)] for _ in range(2))
            nodes.append(((first, low), (second, high)))
        return Cell(tuple(nodes), self._concat(tuple(nodes)))


def _pairs(node: int) -> list[tuple[int, int]]:
    """Return what a node may read: two different nodes before it."""
    return list(combinations(range(node), 2))


NASBENCH301 = NasBench301(
    "nasbench301",
    "Zela et al., Surrogate NAS Benchmarks: Going Beyond the Limited Search Spaces of Tabular NAS Benchmarks, "
    "ICLR 2022",
    DARTS,
    nodes=4,
    loose=False,
    scales=(Scale(Dataset("cifar10", (3, 32, 32), 10), widths=(16,), depths=(8,)),),
    strict=True,
)

SPACES = (NASBENCH301,)
