"""The aggregates that have a name: what each combines and how. Another one is one more entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """A published (or frozen) aggregate.

    Attributes:
        name: what ``zcpipe rank --method`` and the rows of ``zcpipe correlate`` call it.
        method: how it combines; one of `zcpipe.rank.METHODS`.
        proxies: the columns it combines.
        paper: where it comes from.
    """

    name: str
    method: str
    proxies: tuple[str, ...]
    paper: str


_AZNAS = "Lee & Ham, AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search, CVPR 2024"
_OURS = "zcpipe: chosen on 700 cells of NAS-Bench-201 and frozen (docs/nasbench201_proxies.md)"
_FOUR = ("expressivity", "progressivity", "trainability", "complexity")

NAMED: Mapping[str, Named] = {
    entry.name: entry
    for entry in (
        Named("aznas", "logrank", _FOUR, _AZNAS),
        Named("aznas_linear", "linear", _FOUR, f"{_AZNAS} (the alternative it compares with)"),
        Named(
            "vote",
            "vote",
            ("synflow", "jacob_cov", "snip"),
            "Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021",
        ),
        Named(
            "tenas",
            "linear",
            ("ntk_condition", "linear_regions"),
            "Chen et al., Neural Architecture Search on ImageNet in Four GPU Hours (TE-NAS), ICLR 2021",
        ),
        Named(
            "swap_regularised",
            "size_regularised",
            ("swap", "params"),
            "Peng et al., SWAP-NAS: Sample-Wise Activation Patterns for Ultra-fast NAS, ICLR 2024",
        ),
        Named(
            "stages",
            "logrank",
            ("expressivity", "num_layers", "params", "stage_expressivity", "trainability"),
            f"{_OURS}, out of one pass",
        ),
        Named(
            "stages_and_more",
            "logrank",
            ("jacob_cov", "meco", "stage_expressivity", "swap", "zen"),
            f"{_OURS}, out of any passes",
        ),
    )
}
