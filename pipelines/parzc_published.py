"""What the published code of ParZC logged on NAS-Bench-201: Kendall's tau."""

from __future__ import annotations

# By model, loss and epochs, then by the number of labels; a text where several runs are logged.
LOGS: dict[str, dict[int, str]] = {
    "PINAT baseline, mse, 300": {78: "0.572", 156: "0.640", 469: "0.699", 781: "0.760", 1563: "0.793"},
    "ParZCBMM best_nb201, mse, 153": {78: "0.692", 156: "0.724", 469: "0.763", 781: "0.783", 1563: "0.767"},
    "ParZCBMM, mse, 300": {
        78: "0.688 to 0.698",
        156: "0.690 to 0.712",
        469: "0.744",
        781: "0.757",
        1563: "0.745 to 0.752",
    },
    "PINATModel5, mse, 300": {78: "0.63 to 0.65", 156: "0.707 to 0.713", 469: "0.805", 781: "0.832", 1563: "0.855"},
}
CAVEAT = (
    "The logs are of the published code's own split: the whole space with the architectures trained on among it, one "
    "draw of labels, and a network that also encodes the cell's graph (adjacency and operations). ParZCBMM is its "
    "MABN with that encoding, PINATModel5 has layer statistics and gating without Bayesian layers, PINAT has the "
    "graph alone. Our rows beside them are of the same split, means over the draws, and do not see the graph."
)
