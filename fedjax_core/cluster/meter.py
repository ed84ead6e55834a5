"""Measures how fast a cluster goes, and what holds it up.

>>> math.isnan(ClusterMeter().report()["examples/s"])
True
"""

import math
from collections.abc import Sequence

from fedjax_core.cluster.shard import ShardResult


class ClusterMeter:
    """Adds up what rounds cost; `report` gives the rates over the rounds in which nothing was compiled."""

    def __init__(self) -> None:
        self.seconds = self.work_seconds = self.compile_seconds = 0.0
        self.rounds = self.clients = self.steps = self.examples = self.places = self.moved = 0

    def add(
        self, seconds: float, clients: int, done: Sequence[ShardResult], workers: int, moved: int
    ) -> None:
        """Adds a round: its seconds, clients, share results and workers, and the bytes of client state
        `moved`."""
        if any(part.compiled for part in done):
            self.compile_seconds += seconds
            return
        self.seconds += seconds
        self.rounds += 1
        self.moved += moved
        self.clients += clients
        self.work_seconds += sum(part.seconds for part in done) / max(1, workers)
        self.steps += sum(part.work.steps for part in done)
        self.examples += sum(part.work.examples for part in done)
        self.places += sum(part.work.room for part in done)

    def report(self) -> dict[str, float]:
        """Rates, how full the lanes are, and the share of the time that workers were busy; NaN before the
        first round."""

        def over(a: float, b: float) -> float:
            return a / b if b else math.nan

        return {
            "client updates/s": over(self.clients, self.seconds),
            "local steps/s": over(self.steps, self.seconds),
            "examples/s": over(self.examples, self.seconds),
            "fill": over(self.examples, self.places),
            "at work": over(self.work_seconds, self.seconds),
            "client state MB/round": over(self.moved / 1e6, self.rounds),
            "compile seconds": self.compile_seconds,
        }
