"""Published correlations of proxies with accuracy on NAS-Bench-201 for CIFAR-10, and why ours differ where they do.

Everything that is quoted is here, and everything that explains a difference.
"""

from __future__ import annotations

from dataclasses import dataclass

TEST = "cifar10_test_200"
VALIDATION = "cifar10_val_200"


@dataclass(frozen=True)
class Source:
    """Where figures come from, and what they are to be compared with.

    Attributes:
        text: the publication.
        target: the accuracy it correlates with.
        distinct: it is taken on one cell of each key rather than on all.
        absolute: it gives the absolute value of rho.
        failed_last: it ranks architectures without a score last, where ours leave them out.
    """

    text: str
    target: str = TEST
    distinct: bool = False
    absolute: bool = False
    failed_last: bool = False


def comparison(source: Source) -> str:
    """Name what a source is compared with: a target and a population."""
    population = ", one cell of each key" if source.distinct else ""
    return source.target + population + (", failed ones last" if source.failed_last else "")


SOURCES = {
    "ICLR2021": Source(
        "Abdelfattah et al., ICLR 2021: its notebook, all cells, real images, batch 64; absolute values", absolute=True
    ),
    "NBSZ": Source(
        "Krishnakumar et al., NAS-Bench-Suite-Zero, 2022: validation accuracy", target=VALIDATION, failed_last=True
    ),
    "VKDNW": Source(
        "Tybl & Neumann, VKDNW, CVPR 2025, Table 1: re-runs with the authors' codes; compared on one cell of each key",
        distinct=True,
    ),
    "APD": Source("APD, NeurIPS 2025, Table 2: re-runs, all cells"),
    "AZ-NAS": Source("Lee & Ham, AZ-NAS, CVPR 2024, Table 1, and its notebook: all cells"),
    "GradSign": Source("GradSign, ICLR 2022, as VKDNW quotes it"),
    "MeCo": Source("MeCo, NeurIPS 2023, abstract"),
}


@dataclass(frozen=True)
class Figure:
    """One published figure; None is what the source does not give."""

    proxy: str
    source: str
    kendall: float | None
    spearman: float | None


def _of(source: str, **figures: tuple[float | None, float | None]) -> tuple[Figure, ...]:
    return tuple(Figure(proxy, source, *pair) for proxy, pair in figures.items())


FIGURES = (
    *_of(
        "ICLR2021",
        grad_norm=(None, 0.594),
        snip=(None, 0.596),
        grasp=(None, 0.514),
        fisher=(None, 0.360),
        synflow=(None, 0.737),
        jacob_cov=(None, 0.731),
    ),
    *_of(
        "NBSZ",
        epe_nas=(None, 0.70),
        fisher=(None, 0.50),
        macs=(None, 0.69),
        grad_norm=(None, 0.58),
        grasp=(None, 0.51),
        jacob_cov=(None, 0.75),
        l2_norm=(None, 0.68),
        nwot=(None, 0.77),
        params=(None, 0.72),
        plain=(None, -0.26),
        snip=(None, 0.58),
        synflow=(None, 0.73),
        zen=(None, 0.35),
    ),
    *_of(
        "VKDNW",
        macs=(0.623, 0.799),
        grad_norm_global=(0.328, 0.438),  # its code takes one norm over all parameters
        grasp=(0.352, 0.505),
        snip=(0.431, 0.591),
        synflow=(0.561, 0.758),
        jacob_cov=(0.616, 0.800),
        nwot=(0.571, 0.762),
        zen=(0.102, 0.103),
        zico=(0.607, 0.802),
        tenas=(0.536, 0.722),
        aznas=(0.712, 0.892),
        num_layers=(0.626, 0.767),
        vkdnw=(0.618, 0.815),
    ),
    *_of(
        "APD",
        params=(0.576, 0.751),
        macs=(0.541, 0.733),
        snip=(0.455, 0.614),
        grasp=(0.318, 0.460),
        synflow=(0.571, 0.769),
        nwot=(0.557, 0.743),
        zen=(0.283, 0.365),
        zico=(0.589, 0.784),
        swap=(0.634, 0.810),
    ),
    *_of("AZ-NAS", gradsign=(0.618, None), aznas=(0.741, 0.913), aznas_linear=(0.697, None)),
    *_of("GradSign", gradsign=(None, 0.765)),
    *_of("MeCo", meco=(None, 0.89)),
)

VOTE = 0.817  # ICLR2021's notebook: the share of pairs that the vote orders rightly

TOLERANCE = 0.03  # in Spearman's rho: a larger difference wants an explanation

# The batch of docs/nasbench201_proxies.md, and the proxies whose explanations were found at it and hold at no other.
BATCH = 16
AT_THAT_BATCH = ("grasp", "plain", "aznas", "gradsign")

# By proxy: why it differs from a published figure by more than the tolerance; {batch} is that of the page.
_NOISE = "noise in place of images costs what it costs; the published figures are on images"
EXPLANATIONS: dict[str, str] = {
    "grad_norm": "the sources themselves lie apart (0.438 to 0.594); one batch of {batch}, without their augmentation",
    "snip": "the sources lie apart (0.58 to 0.614); one batch of {batch}, without their augmentation",
    "fisher": "above both sources (0.36, 0.50); values equal the published code's on the same "
    "weights and batch, so what is left is their batch, their weights (ICLR 2021 has biased convolutions and norms "
    f"without scales) and ours; {_NOISE}",
    "synflow": "every norm is left out; the code of ICLR 2021 keeps those of the two reduction blocks",
    "jacob_cov": "ICLR 2021's network has biased convolutions and norms without scales, and is one reason; another "
    f"batch is none (docs/proxies.md), and the rest is not found; {_NOISE}",
    "epe_nas": _NOISE,
    "grasp": "second derivatives of one small batch; values equal the published code's on the same weights and batch "
    "(tests/proxies/test_grasp.py); a batch of 64 gives 0.04 more (docs/proxies.md)",
    "nwot": f"APD's figure is the odd one out (0.743; 0.762 and 0.77 elsewhere); {_NOISE}",
    "plain": "a sum of terms that cancel, which a batch of 16 determines poorly (docs/proxies.md has another)",
    "grad_norm_global": "fused, it sees images and not the noise that its code takes",
    "zen": "the sources contradict each other (0.103, 0.35, 0.365); values equal NASLib's on its own weights",
    "tenas": "linear_regions saturates at the batch and tells only cells without a path apart, so the "
    "sum of ranks is that of ntk_condition; TE-NAS counts the regions of another, tiny network",
    "aznas": "fused, the four see images in place of noise: progressivity falls from 0.68 to 0.22: the cost of fusing",
    "vkdnw": "1,000 cells, one in fifteen",
    "swap": _NOISE,
    "gradsign": "1,000 cells, 16 samples in place of 64; VKDNW quotes the figure of the original paper, whose code "
    "averages over weights where ours sums",
}
