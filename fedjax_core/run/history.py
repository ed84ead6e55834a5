"""The history of a run: what `fit` returns.

>>> records = [{"round": round, "kind": "eval", "loss": loss} for round, loss in ((5, 0.5), (10, 0.3))]
>>> history = History(None, records, Best(10, 0.3), "finished", {})
>>> history
History('finished' after 10 rounds, 2 records, best 0.3 after round 10)
>>> rounds, values = history.curve("loss")
>>> rounds.tolist(), values.tolist()
([5, 10], [0.5, 0.3])
>>> steps = [{"round": round, "kind": "train", "ticks": 2.5} for round in range(1, 11)]
>>> history._replace(records=steps + records).curve("loss", by="ticks")[0].tolist()
[12.5, 25.0]
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_core.run.log import Record
from fedjax_core.run.monitor import Best

Stopped = Literal["finished", "early stop", "interrupted", "budget spent"]


class History(NamedTuple):
    """The history of a run from its first round on, however often it was interrupted."""

    state: Any  # the `State` after the last round
    records: list[Record]
    """{"round", "kind": "train" or "eval", and the metrics}, as in metrics.jsonl.

    In a "train" record a metric of the clients' steps, such as `loss`, is the mean over all batches of the
    round, each under its client's model as it was before that step: neither the global model's before the
    round nor after it. "eval" records are of the model after the round, without dropout. `examples` counts
    each of a client's examples once, however often the client went through them.
    """
    best: Best | None  # None without evaluation
    stopped: Stopped
    speed: dict[str, float]
    """Speed since the last start: client updates, local steps, examples and operations a second, fill, share
    of time waiting for data, programs, compile seconds; empty if the backend has no meter. Also the last line
    of the log."""

    def __repr__(self) -> str:
        rounds = self.records[-1]["round"] if self.records else 0
        best = "" if self.best is None else f", best {self.best.value:.4g} after round {self.best.round}"
        return f"History({self.stopped!r} after {rounds} rounds, {len(self.records)} records{best})"

    def curve(
        self, metric: str = "loss", kind: Literal["train", "eval"] = "eval", *, by: str = "round"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rounds [n] after which a metric was recorded, its values [n]). Raises KeyError where no record has
        it.

        `by` names a metric whose sum so far replaces the rounds as the axis: "ticks" of an asynchronous run,
        which are seconds if its delays are; "bits_up"; "examples".
        """
        points = [
            (record["round"], record[metric])
            for record in self.records
            if record["kind"] == kind and metric in record
        ]
        if not points:
            there = {name for record in self.records if record["kind"] == kind for name in record} - {
                "round",
                "kind",
                "lacked",
            }
            way_out = f"there are {', '.join(sorted(there))}" if there else "fit(evaluate_every=) makes them"
            raise KeyError(f"no {kind!r} record has {metric!r}: {way_out}")
        rounds, values = zip(*points, strict=True)
        return (np.array(rounds) if by == "round" else self._so_far(by, np.array(rounds))), np.array(
            values, np.float64
        )

    def _so_far(self, metric: str, rounds: np.ndarray) -> np.ndarray:
        """The sum of a metric over all rounds up to each of these."""
        recorded, values = self.curve(metric, "train")
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return sums[np.searchsorted(recorded, rounds, side="right")]
