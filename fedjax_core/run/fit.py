"""`fit`: many rounds, with everything around them that a long run needs, and nothing of it inside a round.

    rounds  ->  metrics, evaluation, best, early stop  ->  checkpoint  ->  again, or after a crash from the last checkpoint

Started again in the same `run_dir`, it goes on where it was and ends bit for bit where an uninterrupted run ends. That holds
because all that crosses a round is in the `State`, cohorts are addressed by their round, and rounds are always dispatched in the
same groups: those end at multiples of `rounds_per_dispatch`, `checkpoint_every` and `evaluate_every`, wherever the run began.

>>> import jax, numpy as np, optax, tempfile
>>> import fedjax_core as fc
>>> clients = fc.Clients.from_list([{"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)} for n in (2, 3, 1)])
>>> algorithm = fc.algorithms.fedavg(fc.models.linear(features=2), local=optax.sgd(0.1))
>>> simulator = fc.Simulator(fc.compose(algorithm), clients, batch_size=2, epochs=1)
>>> with tempfile.TemporaryDirectory() as run_dir:
...     first = fit(simulator, 2, cohorts=lambda round: [0, 1], run_dir=run_dir, evaluate_every=1)
...     more = fit(simulator, 4, cohorts=lambda round: [0, 1], run_dir=run_dir, evaluate_every=1)
...     best = load_best(run_dir, simulator)
>>> more.stopped, int(more.state.round), more.best.round, int(best.round)
('finished', 4, 4, 4)
>>> [record["round"] for record in more.records if record["kind"] == "train"]
[1, 2, 3, 4]
"""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.data.task_check import not_finite
from fedjax_core.metrics import Mean, Sum
from fedjax_core.run import config
from fedjax_core.run.checkpoint import Checkpoints, best, read
from fedjax_core.run.encryption import load_key
from fedjax_core.run.lock import claim
from fedjax_core.run.log import Log, Record
from fedjax_core.run.monitor import Best, Evaluate, Judge, check_counts
from fedjax_core.run.resume import resumable
from fedjax_core.run.seeds import warn_of_other_seeds
from fedjax_core.run.signals import Interruption
from fedjax_core.run.snapshot import Saved
from fedjax_core.types import Key, Params
from fedjax_core.xla import tuning_cache

log = logging.getLogger("fedjax_core")


class Simulation(Protocol):
    """What `fit` needs of a backend: the lane simulator, a cluster of them, or real sites."""

    @property
    def round(self) -> Any: ...
    @property
    def clients(self) -> Any: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...  # all that changes the answer to the last bit, besides round and clients
    def init(self, key: Key, params: Params | None = None) -> Any: ...
    def run(self, state: Any, cohort: Any, *, donate: bool = False) -> tuple[Any, Mapping[str, Any]]: ...
    def run_many(self, state: Any, cohorts: Sequence[Any], *, donate: bool = False) -> tuple[Any, Mapping[str, Any]]: ...
    def evaluate(self, state: Any, clients: Any = None) -> Any: ...


Stopped = Literal["finished", "early stop", "interrupted"]


class History(NamedTuple):
    """How a run went, from its first round on, however often it was interrupted."""

    state: Any  # the `State` after the last round
    records: list[Record]  # {"round", "kind": "train" or "eval", and the metrics}, as in metrics.jsonl
    best: Best | None  # None without evaluation
    stopped: Stopped
    speed: dict[str, float]
    """Since it was last started: client updates, local steps, examples and operations a second, fill, share of time waiting for data,
    programs, compile seconds; empty where the backend has no meter. Also the last line of the log."""

    def __repr__(self) -> str:
        rounds = self.records[-1]["round"] if self.records else 0
        best = "" if self.best is None else f", best {self.best.value:.4g} after round {self.best.round}"
        return f"History({self.stopped!r} after {rounds} rounds, {len(self.records)} records{best})"


def fit(
    sim: Simulation,
    rounds: int,
    cohorts: Callable[[int], Any],
    run_dir: str | os.PathLike[str] | None = None,
    *,
    key: Key | None = None,
    params: Params | None = None,
    checkpoint_every: int = 10,
    keep: int = 3,
    evaluate_every: int = 0,
    evaluate: Evaluate | None = None,
    best: str = "loss",
    mode: Literal["min", "max"] = "min",
    patience: int | None = None,
    rounds_per_dispatch: int = 1,
    progress: bool = True,
    override: bool = False,
    encrypt: str | os.PathLike[str] | None = None,
) -> History:
    """Runs until `rounds` rounds are done in all, from the newest checkpoint in `run_dir` where there is one; None writes nothing.

    `key` (default `jax.random.key(0)`) is not the only seed: it draws the first parameters, and what clients draw as they train
    (dropout, rounding). The order of examples goes by the backend's `seed`, and cohorts by theirs: to repeat a run with other draws,
    change all three.

    `cohorts(round)` gives the clients of a round. `evaluate_every` rounds (0: never), and
    once before the first, the state is evaluated, by default on the clients trained on, or on the people that real sites hold out
    (`Federation(held_out=)`); the metric `best` of that chooses the best checkpoint, and `patience` evaluations in a row without a better
    one end the run. Ctrl-C or SIGTERM finishes the running rounds, saves, and returns. In one `run_dir` everything that changes the answer
    must stay as it was, unless `override=True`. `encrypt`: a file with a key, or "env:NAME", by which checkpoints, and nothing else, are
    encrypted (`fedjax_core.run.encryption`). As one of several processes of `jax.distributed` it takes no `run_dir`. Of a federation,
    what it writes is for its owner alone; else as the umask says.

    A checkpoint costs 25 ms however small the state (2-core x86, local disk), and 2 s in the background for 400 MB: where a round
    takes a millisecond, `checkpoint_every=100` makes more sense. Encrypted ones are faster, for Orbax compresses and has its files
    digested: 200 MB in 0.11 s, not 1.1 s.
    """
    key = jax.random.key(0) if key is None else key
    _check(sim, cohorts, key)
    if run_dir is not None and jax.process_count() > 1:
        raise ValueError(
            f"run_dir {str(run_dir)!r} is written by one process, and jax.distributed has {jax.process_count()}: leave run_dir= out and "
            "save History.state where jax.process_index() is 0, or train with fc.ClusterSimulator, whose run_dir resumes"
        )
    check_counts(rounds=rounds, checkpoint_every=checkpoint_every, keep=keep, rounds_per_dispatch=rounds_per_dispatch)
    judge = Judge(evaluate_every, evaluate, best, mode, patience)
    _say(sim, judge, progress)
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        private = getattr(sim, "private", False)
        folder = stack.enter_context(claim(run_dir, private=private)) if run_dir is not None else None
        secret = _key(encrypt, folder)
        checkpoints = stack.enter_context(Checkpoints(folder, keep, secret, private=private)) if folder is not None else None
        newest = None if checkpoints is None else checkpoints.newest()
        if newest is not None:  # how many lanes, and the like: measured anew, it might come out otherwise, and so the last bits
            tuning_cache.go_by(newest.about.get("measured", {}))
        configuration = {
            "settings": sim.settings,
            "clients": {"count": len(sim.clients), "fingerprint": sim.clients.fingerprint() if run_dir is not None else None},
            "round": sim.round,
            "cohorts": cohorts,
            "key": key,
            "params": params,
            "rounds_per_dispatch": rounds_per_dispatch,
            "evaluation": judge.settings,
        }
        warn_of_other_seeds(sim, cohorts, key, params)
        described = config.describe(configuration) if run_dir is not None else {}
        about = {"config": described, "versions": config.versions()}
        saved, changed = (None, []) if checkpoints is None else resumable(checkpoints, newest, about, rounds=rounds, override=override)
        if checkpoints is not None and saved is not None:
            _note(sim, checkpoints, saved, changed)
        state = sim.init(key, params)
        run = _Run(sim, cohorts, judge, checkpoints, about, interruption)
        if saved is not None:
            assert checkpoints is not None
            state = saved.place(state)
            run.resume(saved)
            run.needs = {round: about.get("needs") for round, about in checkpoints.abouts().items()}
        run.log = stack.enter_context(Log(folder, rounds=rounds, done=run.done, progress=progress, private=private))
        if hasattr(sim, "retain"):
            stack.callback(sim.retain, None)  # whoever runs rounds by hand may go on from states that nobody knows of
        state, stopped = run.until(rounds, state, rounds_per_dispatch, checkpoint_every)
        speed = dict(sim.meter.report()) if hasattr(sim, "meter") else {}
        if speed and progress:
            log.info("%s", ", ".join(f"{name} {value:,.3g}" for name, value in speed.items()))
        return History(state, run.log.records, run.best, stopped, speed)


def _say(sim: Simulation, judge: Judge, progress: bool) -> None:
    """Says of which of the sites' examples the metric is by which the best model is chosen, and patience ends."""
    on = getattr(sim, "judged_on", None)
    if not judge.every or judge.evaluate is not None or on is None:
        return
    if on == "trained on":
        log.warning(
            "the best model, and patience, go by %r on the examples that were trained on, where learning by heart looks best: "
            "have the sites hold some out, fc.Federation(..., held_out=0.2)",
            judge.metric,
        )
    elif progress:
        log.info("the best model, and patience, go by %r on the sites' %s examples", judge.metric, on)


def load_best(run_dir: str | os.PathLike[str], sim: Simulation, *, encrypt: str | os.PathLike[str] | None = None) -> Any:
    """The whole `State` of the best evaluation in `run_dir`; `.params` of it is the best model. `encrypt` is as it was for `fit`."""
    return read(best(Path(run_dir)), _key(encrypt, Path(run_dir))).place(sim.init(jax.random.key(0)))


def _key(encrypt: str | os.PathLike[str] | None, folder: Path | None) -> bytes | None:
    """The key of the checkpoints, None where they are plain."""
    if encrypt is None:
        return None
    if folder is None:
        raise ValueError(f"encrypt={encrypt!r} encrypts checkpoints, but without a run_dir there are none: name one, or leave encrypt= out")
    return load_key(encrypt, folder)


def _note(sim: Simulation, checkpoints: Checkpoints, saved: Saved, changed: list[str]) -> None:
    """Tells a backend that keeps an audit log, by its `note(what, round, about)`, what the run goes on from."""
    note = getattr(sim, "note", None)
    if note is None:
        return
    for round, name, why in checkpoints.set_aside:
        note("checkpoint damaged", round, {"set_aside": name, "reason": why})
    note("resumed", saved.round, {f"changed.{i}": line for i, line in enumerate(changed)})


class _Run:
    """What `fit` keeps between rounds besides the `State`; all of it that matters after a crash is in the checkpoints."""

    log: Log

    def __init__(
        self,
        sim: Simulation,
        cohorts: Callable[[int], Any],
        judge: Judge,
        checkpoints: Checkpoints | None,
        about: dict[str, Any],
        interruption: Interruption,
    ) -> None:
        self.sim, self.cohorts, self.judge, self.checkpoints = sim, cohorts, judge, checkpoints
        self.about, self.interruption = about, interruption
        self.done = 0
        self.best: Best | None = None
        self.misses = 0  # evaluations since the best
        self.cohort_size = 0  # the largest so far: a backend's buffers are made for it
        self.refused: list[int] = []  # rounds with refused reports
        self.finite = True
        self.newest: Any = None  # the last state, of which nothing was used up
        self.saved: int | None = None
        self.needs: dict[int, Any] = {}  # of each checkpoint: what the backend must still have to go on from it

    def resume(self, saved: Saved) -> None:
        """Takes up the bookkeeping of a checkpoint."""
        progress = saved.about["progress"]
        self.done = self.saved = saved.round
        self.cohort_size = progress["cohort_size"]
        if progress["judged_by"] == [self.judge.metric, self.judge.mode]:
            self.best, self.misses = Best(*progress["best"]) if progress["best"] else None, progress["misses"]
        elif progress["best"]:
            log.warning(
                "the best was by %s (%s) and is now by %s (%s): it begins anew", *progress["judged_by"], self.judge.metric, self.judge.mode
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
        unread: tuple[int, Any] | None = None
        while self.done < rounds:
            if self.judge.patience is not None and self.misses >= self.judge.patience:
                stopped = "early stop"
                break
            if self.interruption.asked:
                stopped = "interrupted"
                break
            start, stop = self.done, min(rounds, *(_next(self.done, n) for n in (group, checkpoint_every, self.judge.every) if n))
            state, metrics = self._dispatch(state, start, stop, group)
            self.newest = state
            self._read(unread)  # of the rounds before: the device is at work on these
            unread, self.done = (start, metrics), stop
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
        if self.saved != self.done:
            self._save(state)
        if len(self.refused) > 1:
            log.warning("reports were refused in %d rounds: see `refused` in the records", len(self.refused))
        return state, stopped

    def _reserve(self) -> None:
        """Has the backend make its buffers for the largest cohort at once: how work is laid out on them may change last bits."""
        reserve = getattr(self.sim, "reserve", None)
        self.cohort_size = max(self.cohort_size, int(getattr(self.cohorts, "max_size", 0)))
        if reserve is not None and self.cohort_size:
            reserve(self.cohort_size)

    def _dispatch(self, state: Any, start: int, stop: int, group: int) -> tuple[Any, Any]:
        drawn = [self.cohorts(round) for round in range(start, stop)]
        self.cohort_size = max(self.cohort_size, *(int(np.size(getattr(cohort, "clients", cohort))) for cohort in drawn))
        if group > 1:
            return self.sim.run_many(state, drawn, donate=True)
        return self.sim.run(state, drawn[0], donate=True)

    def _read(self, unread: tuple[int, Any] | None) -> None:
        """Fetches and logs the metrics of rounds that were dispatched."""
        if unread is None:
            return
        start, metrics = unread
        values = {name: np.atleast_1d(_value(metric)) for name, metric in jax.device_get(dict(metrics)).items()}
        for i in range(max(len(column) for column in values.values())):
            row = {name: float(column[i]) for name, column in values.items()}
            self._warn(start + i + 1, row)
            self.log.write(start + i + 1, "train", row, lacked=self._lacked(start + i + 1))

    def _lacked(self, round: int) -> list[str]:
        """Who was to be in this round and was not, where the backend tells, by its `lacked(round)`."""
        lacked = getattr(self.sim, "lacked", None)
        return [] if lacked is None else list(lacked(round))

    def _warn(self, round: int, row: dict[str, float]) -> None:
        if self.finite and row.get("examples", 1.0) > 0 and not math.isfinite(row.get("loss", 0.0)):
            self.finite = False
            log.warning("the training loss is %s in round %d: a smaller learning rate or clipping may help", row["loss"], round)
        if row.get("refused", 0.0) > 0 and not hasattr(self.sim, "lacked"):  # which says itself whose, and why
            if not self.refused:
                self._explain(row)
                log.warning("round %d refused %d reports that were not finite, and went on without them", round, row["refused"])
            self.refused.append(round)

    def _explain(self, row: dict[str, float]) -> None:
        """Raises where the first refused reports are those of all clients, because of examples whose loss is not finite."""
        sim = self.sim
        if row.get("clients", 1.0) > 0 or not isinstance(sim.clients, Clients) or sim.round.algorithm.personal:
            return
        if (where := not_finite(sim.round.algorithm.task, self.newest.params, sim.clients)) is not None:
            raise ValueError(
                f"all clients' reports were refused, as they were not finite: so is the loss of {where}. Look at its columns, such as a "
                "label or a code that the model has no place for, a zero or a negative number that a logarithm is taken of"
            )

    def _evaluate(self, state: Any) -> bool:
        """Whether the state is the best so far."""
        if not self.judge.every:
            return False
        values = self.judge(self.sim, state)
        self.log.write(self.done, "eval", values)
        better = self.judge.better(values[self.judge.metric], self.best)
        if better:
            self.best, self.misses = Best(self.done, values[self.judge.metric]), 0
        elif self.done:
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
        }
        best = self.best.round if self.best else None
        about = {**self.about, "progress": progress, "best": best, "measured": tuning_cache.answers()}
        if hasattr(self.sim, "needs"):
            about["needs"] = self.needs[self.done] = self.sim.needs(state)
        self.checkpoints.save(self.done, state, about)
        self._retain()

    def _retain(self) -> None:
        """Tells a backend whose clients keep old versions from which checkpoints this run may still go on: `needs(state)` of each."""
        if not hasattr(self.sim, "retain"):
            return
        if self.checkpoints is None:
            self.sim.retain([])
            return
        there = {*self.checkpoints.rounds(), self.saved} - {None}  # the newest is being written
        self.needs = {round: needs for round, needs in self.needs.items() if round in there}
        unknown = any(needs is None for needs in self.needs.values())  # in a checkpoint of a former version
        self.sim.retain(None if unknown else [*self.needs.values()])


def _next(done: int, every: int) -> int:
    return (done // every + 1) * every


def _value(metric: Any) -> Any:
    """What a metric's sums mean, [R] or a scalar. On the host, as on the device it would queue behind the rounds at work."""
    if isinstance(metric, Mean):
        total, weight = np.asarray(metric.total), np.asarray(metric.weight)
        return np.divide(total, weight, out=np.full(total.shape, np.nan, total.dtype), where=weight > 0)
    return metric.total if isinstance(metric, Sum) else metric


def _check(sim: Simulation, cohorts: Any, key: Any) -> None:
    if not callable(cohorts):
        raise TypeError(
            f"cohorts= must be a function of the round, got {type(cohorts).__name__}: use fc.cohorts.uniform(...) or the like, "
            "or lambda round: table[round] for cohorts that are already drawn"
        )
    population = getattr(cohorts, "population", len(sim.clients))
    if population != len(sim.clients):
        raise ValueError(
            f"cohorts= draws from {population} clients, but the simulation has {len(sim.clients)}; build both from the same clients: "
            "fc.cohorts.uniform(len(clients), size=...)"
        )
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape:
        raise TypeError(f"key= must be one typed key, such as jax.random.key(0), got {key!r}")
