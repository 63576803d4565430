"""The sizes and members that predictors have by default: all that is chosen by experiment, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXTRA_TREES = 300
EXTRA_TREES_FEATURES = 0.3

# The grid of the boosted trees, of which cross-validation chooses: every depth with every number of trees.
BOOSTED_DEPTHS = (2, 4, 6)
BOOSTED_TREES = (50, 100, 200, 300)
BOOSTED_RATE = 0.05
BOOSTED_ROWS = 0.8  # of the rows, for each tree
BOOSTED_FEATURES = 0.3  # of the features, for each tree
BOOSTED_FOLDS = 3

RIDGE_PENALTIES = tuple(10.0**power for power in range(-1, 7))  # over standardised features

MABN: Mapping[str, Any] = {
    "dim": 48,
    "depth": 2,
    "token_hidden": 32,
    "channel_hidden": 64,
    "dropout": 0.1,
    "settings": {"loss": "mse+diffkendall", "kl_weight": 1.0, "epochs": 60, "members": 3},
}
# The published sizes are tuned for NDS and take minutes on a CPU; these are a quarter as wide.
PUBLISHED: Mapping[str, Any] = {
    "size": 256,
    "dim": 128,
    "depth": 3,
    "dropout": 0.1,
    "settings": {"loss": "diffkendall", "epochs": 100, "members": 1},
}

GP_ROWS = 4000  # labelled rows at most, since memory grows with their square
GP_LIKELIHOOD_ROWS = 1000
GP_ITERATIONS = 40

# Tried out on NAS-Bench-201's CIFAR-10. pipelines/parzc.py measures each alone, each left out, and others added.
PARZC: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("gaussian-process", {}),
    ("extra-trees:proxies", {"max_features": 1.0}),
    ("extra-trees", {"max_features": 0.15}),
)
