"""Searches for architectures that proxies guide: random, evolution, REINFORCE and others, within budgets.

A search is a deterministic function of what it was asked and of what it measured; that alone is kept (`journal`), so
that one which was killed goes on as if nothing had happened.
"""

from __future__ import annotations

from zcpipe.search.accuracy import Accuracy, Evaluated, Trained, TrainingError, TruthAccuracy
from zcpipe.search.api import Guidance, read_scores, search
from zcpipe.search.aznas import AzNasFound, AzNasSpec, aznas_search
from zcpipe.search.budget import Budget
from zcpipe.search.features import Features
from zcpipe.search.limits import Limits
from zcpipe.search.live import LiveScores, live_scores
from zcpipe.search.pareto import front
from zcpipe.search.result import Found, Pick
from zcpipe.search.scores import Guide, Scores, TableScores
from zcpipe.search.status import SearchStatus, search_status

__all__ = [
    "Accuracy",
    "AzNasFound",
    "AzNasSpec",
    "Budget",
    "Evaluated",
    "Features",
    "Found",
    "Guidance",
    "Guide",
    "Limits",
    "LiveScores",
    "Pick",
    "Scores",
    "SearchStatus",
    "TableScores",
    "Trained",
    "TrainingError",
    "TruthAccuracy",
    "aznas_search",
    "front",
    "live_scores",
    "read_scores",
    "search",
    "search_status",
]
