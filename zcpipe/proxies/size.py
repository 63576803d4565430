"""Size of the full architecture: the baselines every proxy must beat."""

from __future__ import annotations

from zcpipe.proxies.base import Proxy

_PAPER = "counted on the full architecture, dead layers included, as the benchmarks do"

PROXIES = (
    Proxy(
        name="params",
        direction="higher",
        scope="full",
        cost="static",
        recipe=None,
        statistics=(),
        reduce=lambda counts: float(counts["params"]),
        unit="",
        formula="number of independent scalars in weights and biases",
        paper=_PAPER,
    ),
    Proxy(
        name="macs",
        direction="higher",
        scope="full",
        cost="static",
        recipe=None,
        statistics=(),
        reduce=lambda counts: float(counts["macs"]),
        unit="MAC",
        formula="multiply-accumulates of convolutions and linear layers for one input",
        paper=_PAPER,
    ),
)
