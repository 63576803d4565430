"""NAS-Bench-301 (Zela et al., ICLR 2022): the cells of DARTS without "none", in networks of 8 cells and 16 channels.

The surrogate benchmark rests on networks of 8 cells and 32 channels that were trained with an auxiliary classifier.
Zero-cost proxies were published for it with 16 channels and without (NAS-Bench-Suite-Zero, NASLib), which is what is
built here, of the benchmark's own layers: NASLib's cells have batch norms without affine weights and one more after
each pool, as DARTS has while it searches.

A node's two edges read different nodes, and in texts the lower one comes first; the benchmark draws operations and
pairs of nodes uniformly.
"""

from __future__ import annotations

from zcpipe.spaces.base import Dataset
from zcpipe.spaces.genotypes import DARTS, GenotypeSpace, Scale

NASBENCH301 = GenotypeSpace(
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
