"""Predictors: one file each, behind one interface, found by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zcpipe.errors import unknown_name
from zcpipe.parzc.predictors.base import Context, Fitted, Prediction, Predictor
from zcpipe.parzc.predictors.boosted_trees import BoostedTrees
from zcpipe.parzc.predictors.extra_trees import ExtraTrees
from zcpipe.parzc.predictors.gaussian_process import GaussianProcess
from zcpipe.parzc.predictors.mabn import Mabn, PublishedMabn
from zcpipe.parzc.predictors.parzc import Parzc
from zcpipe.parzc.predictors.ridge import Ridge

__all__ = ["PREDICTORS", "Context", "Fitted", "Prediction", "Predictor", "predictor"]

PREDICTORS: Mapping[str, type[ExtraTrees | BoostedTrees | GaussianProcess | Ridge | Mabn | PublishedMabn | Parzc]] = {
    kind.name: kind for kind in (Parzc, Mabn, PublishedMabn, ExtraTrees, BoostedTrees, GaussianProcess, Ridge)
}


def predictor(name: str, parameters: Mapping[str, Any] | None = None) -> Predictor:
    """Make a predictor.

    Args:
        name: one of `PREDICTORS`.
        parameters: what differs from its defaults.

    Raises:
        UsageError: no predictor is called so (the message names near ones), or it has no such parameter.
    """
    if name not in PREDICTORS:
        raise unknown_name("predictor", name, PREDICTORS)
    return PREDICTORS[name].model_validate(dict(parameters or {}))
