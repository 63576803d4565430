"""A scorer on a GPU that this machine need not have, and an agent with a fault."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from zcpipe.run.executor import Lease, Outcome
from zcpipe.run.nodes.agent import Agent
from zcpipe.run.rows import UnitScorer


class ColdScorer(UnitScorer):
    """The first use of the device takes as many seconds as WARM_UP says."""

    def warm_up(self) -> None:
        time.sleep(float(os.environ["WARM_UP"]))


class BrokenScorer(UnitScorer):
    """The device of some places is broken: BROKEN says by JSON how long it takes to be found."""

    def warm_up(self) -> None:
        if (seconds := json.loads(os.environ["BROKEN"]).get(os.environ["PLACE"])) is not None:
            time.sleep(seconds)
            raise RuntimeError("CUDA error: device unavailable")


class FaultyAgent(Agent):
    """The first lease that any of them is given raises what no agent should."""

    def work(self, lease: Lease) -> list[Outcome]:
        marker = Path(os.environ["HAZARD_MARKS"]) / "faulty"
        if not marker.exists():
            marker.touch()
            raise ValueError("a fault of the agent")
        return super().work(lease)
