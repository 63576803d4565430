"""The 24 NAS-Bench-201 cells that every benchmark uses, by the benchmark's index."""

# The first 24 draws of `get_space("nasbench201").sample(seed=0, i)`, written out so that they never move.
CELLS = (
    *(3089, 9077, 628, 5067, 578, 2943, 15242, 1882, 13746, 6760, 12782, 14094),
    *(5853, 12942, 6392, 5300, 12089, 15026, 11410, 3172, 12309, 8585, 564, 5882),
)
