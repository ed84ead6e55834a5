"""The loop of `fit`: runs rounds, and between them reads metrics, evaluates, logs and saves."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.data.task_check import not_finite
from fedjax_core.metrics import Mean, Sum
from fedjax_core.run.checkpoint import Checkpoints
from fedjax_core.run.history import Stopped
from fedjax_core.run.log import Log
from fedjax_core.run.monitor import Best, Monitor
from fedjax_core.run.signals import Interruption
from fedjax_core.run.simulation import Simulation
from fedjax_core.run.snapshot import Saved
from fedjax_core.run.spending import Spending
from fedjax_core.xla import tuning_cache

log = logging.getLogger("fedjax_core")

EachRound = Callable[[int, Any, Mapping[str, float]], bool | None]
"""(rounds done, state, the metrics of the round) -> True to end the run, None or False to go on."""


class Rounds:
    """The bookkeeping of `fit` between rounds, besides the `State`; checkpoints hold all of it that matters
    after a crash."""

    log: Log

    def __init__(
        self,
        sim: Simulation,
        cohorts: Callable[[int], Any],
        judge: Monitor,
        checkpoints: Checkpoints | None,
        metadata: dict[str, Any],
        interruption: Interruption,
        each_round: EachRound | None = None,
        began: int = 0,
    ) -> None:
        self.sim, self.cohorts, self.judge, self.checkpoints = sim, cohorts, judge, checkpoints
        self.metadata, self.interruption, self.each_round = metadata, interruption, each_round
        self.spending = Spending(sim)
        self.done = self.began = began  # the rounds behind the first state of the run
        self.ended = False  # by `each_round`
        self.best: Best | None = None
        self.misses = 0  # evaluations since the best
        self.cohort_size = 0  # the largest so far, which a backend's buffers are made for
        self.refused: list[int] = []  # rounds with refused reports
        self.finite = True
        self.newest: Any = None  # the last state, which was not used up
        self.saved: int | None = None
        # {round of a checkpoint: what the backend must still have to go on from it}
        self.needs: dict[int, Any] = {}

    def resume(self, saved: Saved) -> None:
        """Takes over the bookkeeping of a checkpoint."""
        progress = saved.about["progress"]
        self.spending.resume(progress.get("privacy"), saved.round)
        self.done = self.saved = saved.round
        self.cohort_size, self.began = progress["cohort_size"], progress.get("began", 0)
        # without it the run goes on
        self.ended = progress.get("ended", False) and self.each_round is not None
        if progress["judged_by"] == [self.judge.metric, self.judge.mode]:
            self.best, self.misses = Best(*progress["best"]) if progress["best"] else None, progress["misses"]
        elif progress["best"]:
            log.warning(
                "the best was by %s (%s) and is now by %s (%s): it begins anew",
                *progress["judged_by"],
                self.judge.metric,
                self.judge.mode,
            )

    def until(self, rounds: int, state: Any, group: int, checkpoint_every: int) -> tuple[Any, Stopped]:
        """(the state after these rounds, why it stopped)."""
        self._reserve()
        self._retain()
        if self.saved is None:  # before any work is lost to a full disk, or to a metric that is not there
            self._evaluate(state)
            self._save(state)
            if self.checkpoints is not None:
                self.checkpoints.wait()
        stopped: Stopped = "finished"
        wanted, rounds = rounds, self.spending.until(rounds)
        unread: tuple[int, Any] | None = None
        while self.done < rounds:
            if self.ended or (self.judge.patience is not None and self.misses >= self.judge.patience):
                stopped = "early stop"
                break
            if self.interruption.asked:
                stopped = "interrupted"
                break
            start, stop = (
                self.done,
                min(rounds, *(_next(self.done, n) for n in (group, checkpoint_every, self.judge.every) if n)),
            )
            state, metrics = self._dispatch(state, start, stop, group)
            self.newest = state
            self._read(unread)  # metrics of the rounds before, while the device works on these
            unread, self.done = (start, metrics), stop
            if self.each_round is not None:
                row = self._read(unread)
                unread, self.ended = None, _ends(self.each_round(self.done, state, row))
            due = self.done % checkpoint_every == 0
            if self.judge.every and self.done % self.judge.every == 0:
                self._read(unread)
                unread = None
                due |= self._evaluate(state)
            if due:
                self._read(unread)
                unread = None
                self._save(state)
        self._read(unread)
        if stopped == "finished" and self.spending.ended(self.done, wanted):
            stopped = "budget spent"
        if self.saved != self.done:
            self._save(state)
        if len(self.refused) > 1:
            log.warning("reports were refused in %d rounds: see `refused` in the records", len(self.refused))
        return state, stopped

    def _reserve(self) -> None:
        """Lets the backend make its buffers for the largest cohort at once: how work is laid out in them may
        change last bits."""
        reserve = getattr(self.sim, "reserve", None)
        self.cohort_size = max(self.cohort_size, int(getattr(self.cohorts, "max_size", 0)))
        if reserve is not None and self.cohort_size:
            reserve(self.cohort_size)

    def _dispatch(self, state: Any, start: int, stop: int, group: int) -> tuple[Any, Any]:
        choose = getattr(self.cohorts, "choose", None)  # for single rounds only
        if choose is not None:
            drawn = [choose(start, state, partial(self.sim.score, state))]  # type: ignore[attr-defined]
        else:
            drawn = [self.cohorts(round) for round in range(start, stop)]
        self.cohort_size = max(
            self.cohort_size, *(int(np.size(getattr(cohort, "clients", cohort))) for cohort in drawn)
        )
        donate = self.each_round is None  # `each_round` may keep the state that it gets
        if group > 1:
            return self.sim.run_many(state, drawn, donate=donate)
        return self.sim.run(state, drawn[0], donate=donate)

    def _read(self, unread: tuple[int, Any] | None) -> dict[str, float]:
        """Fetches and logs the metrics of dispatched rounds; returns those of the last one."""
        row: dict[str, float] = {}
        if unread is None:
            return row
        start, metrics = unread
        values = {
            name: np.atleast_1d(_value(metric)) for name, metric in jax.device_get(dict(metrics)).items()
        }
        for i in range(max(len(column) for column in values.values())):
            row = {name: float(column[i]) for name, column in values.items()}
            self._warn(start + i + 1, row)
            examples, row = row.get("examples", 0.0), self.spending.recorded(start + i + 1, row)
            self.log.write(start + i + 1, "train", row, lacked=self._lacked(start + i + 1), examples=examples)
        return row

    def _lacked(self, round: int) -> list[str]:
        """The clients missing from this round, where the backend has a `lacked(round)`."""
        lacked = getattr(self.sim, "lacked", None)
        return [] if lacked is None else list(lacked(round))

    def _warn(self, round: int, row: dict[str, float]) -> None:
        if self.finite and row.get("examples", 1.0) > 0 and not math.isfinite(row.get("loss", 0.0)):
            self.finite = False
            log.warning(
                "the training loss is %s in round %d: a smaller learning rate or clipping may help",
                row["loss"],
                round,
            )
        # the backend says itself whose, and why
        if row.get("refused", 0.0) > 0 and not hasattr(self.sim, "lacked"):
            if not self.refused:
                self._explain(row)
                log.warning(
                    "round %d refused %d reports that were not finite, and went on without them",
                    round,
                    row["refused"],
                )
            self.refused.append(round)

    def _explain(self, row: dict[str, float]) -> None:
        """Raises where the first refused reports are those of all clients, because of examples whose loss is
        not finite."""
        sim = self.sim
        if (
            row.get("clients", 1.0) > 0
            or not isinstance(sim.clients, Clients)
            or sim.round.algorithm.personal
        ):
            return
        if (where := not_finite(sim.round.algorithm.task, self.newest.params, sim.clients)) is not None:
            raise ValueError(
                f"all clients' reports were refused, as they were not finite: so is the loss of {where}. Look at its columns, such as a "
                "label or a code that the model has no place for, a zero or a negative number that a logarithm is taken of"
            )

    def _evaluate(self, state: Any) -> bool:
        """Evaluates the state, and returns whether it is the best so far."""
        if not self.judge.every:
            return False
        values = self.judge(self.sim, state)
        self.log.write(self.done, "eval", values)
        better = self.judge.better(values[self.judge.metric], self.best)
        if better:
            self.best, self.misses = Best(self.done, values[self.judge.metric]), 0
        elif self.done > self.began:
            self.misses += 1
        return better

    def _save(self, state: Any) -> None:
        self.saved = self.done
        if self.checkpoints is None:
            return
        self.log.sync()
        progress = {
            "best": self.best,
            "misses": self.misses,
            "judged_by": [self.judge.metric, self.judge.mode],
            "cohort_size": self.cohort_size,
            "began": self.began,
            "ended": self.ended,
            "privacy": self.spending.saved(self.done),
        }
        best = self.best.round if self.best else None
        metadata = {**self.metadata, "progress": progress, "best": best, "measured": tuning_cache.entries()}
        if hasattr(self.sim, "needs"):
            metadata["needs"] = self.needs[self.done] = self.sim.needs(state)
        self.checkpoints.save(self.done, state, metadata)
        self._retain()

    def _retain(self) -> None:
        """Tells a backend whose clients keep old versions which checkpoints this run may still go on from:
        `needs(state)` of each."""
        if not hasattr(self.sim, "retain"):
            return
        if self.checkpoints is None:
            self.sim.retain([])
            return
        there = {*self.checkpoints.rounds(), self.saved} - {None}  # the newest is being written
        self.needs = {round: needs for round, needs in self.needs.items() if round in there}
        unknown = any(needs is None for needs in self.needs.values())  # in a checkpoint of a former version
        self.sim.retain(None if unknown else [*self.needs.values()])


def _ends(answer: Any) -> bool:
    """The answer of a callback, checked: None or a bool."""
    if answer is not None and not isinstance(answer, (bool, np.bool_)):
        raise TypeError(
            f"each_round= must return None, or True to end the run, and returned a {type(answer).__name__}"
        )
    return bool(answer)


def _next(done: int, every: int) -> int:
    return (done // every + 1) * every


def _value(metric: Any) -> Any:
    """The value of a metric, [R] or a scalar. Computed on the host: on the device it would queue behind the
    rounds under way."""
    if isinstance(metric, Mean):
        total, weight = np.asarray(metric.total), np.asarray(metric.weight)
        return np.divide(total, weight, out=np.full(total.shape, np.nan, total.dtype), where=weight > 0)
    return metric.total if isinstance(metric, Sum) else metric
