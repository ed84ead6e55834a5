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
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from fedjax_core import keys
from fedjax_core.checks import at_least
from fedjax_core.data.cohorts import Chooser, Sampler, listed
from fedjax_core.run import config
from fedjax_core.run.checkpoint import Checkpoints, best, read
from fedjax_core.run.encryption import load_key
from fedjax_core.run.history import History
from fedjax_core.run.lock import claim
from fedjax_core.run.log import Log
from fedjax_core.run.monitor import Evaluate, Monitor
from fedjax_core.run.resume import resumable
from fedjax_core.run.rounds import EachRound, Rounds
from fedjax_core.run.seeds import warn_of_other_seeds
from fedjax_core.run.signals import Interruption
from fedjax_core.run.simulation import Simulation
from fedjax_core.run.snapshot import Saved, fingerprint, taken
from fedjax_core.run.spending import Spending
from fedjax_core.types import Key, Params
from fedjax_core.xla import tuning_cache

log = logging.getLogger("fedjax_core")


def fit(
    sim: Simulation,
    rounds: int,
    cohorts: Sampler | Callable[[int], Any] | Chooser | Sequence[Any] | np.ndarray,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    key: Key | None = None,
    params: Params | None = None,
    state: Any = None,
    each_round: EachRound | None = None,
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

    It begins from `params` where given, or from a whole `state`, with what clients keep: the rounds that this has behind
    it count as done. A checkpoint in `run_dir` comes first.

    `cohorts(round)` gives the clients of a round, from 0; a list of them is taken as it stands; and a sampler may look at
    the state before it chooses (`fc.cohorts.power_of_choice`). `evaluate_every` rounds (0: never), and once before the first, the
    state is evaluated, by default on the clients trained on, or on the people that real sites hold out
    (`Federation(held_out=)`); the metric `best` of that chooses the best checkpoint, and `patience` evaluations in a row
    without a better one end the run.

    `each_round(rounds done, state, metrics)` is called after each round with its state, which may be kept, and its metrics
    as in the records. Returning True ends the run, which stays ended when it is started again. The device waits for it,
    and after a crash the rounds since the last checkpoint come again.

    Where the uplink keeps an account of privacy (`fc.privacy.client_level`), each record has the `epsilon` that the rounds so far tell
    and no counts, cohorts have to be the account's, evaluation is of others, and the run ends when the epsilon is spent.

    Ctrl-C or SIGTERM finishes the running rounds, saves, and returns. In one `run_dir` everything that changes the answer
    must stay as it was, unless `override=True`. `encrypt`: a file with a key, or "env:NAME", by which checkpoints, and
    nothing else, are encrypted (`fedjax_core.run.encryption`). As one of several processes of `jax.distributed` it takes no
    `run_dir`. Of a federation, what it writes is for its owner alone; else as the umask says.

    A checkpoint costs 25 ms however small the state (2-core x86, local disk), and 2 s in the background for 400 MB: where a round
    takes a millisecond, `checkpoint_every=100` makes more sense. Encrypted ones are faster, for Orbax compresses and has its files
    digested: 200 MB in 0.11 s, not 1.1 s.
    """
    given = None if state is None else _given(state, rounds, key, params)
    key = jax.random.key(0) if key is None else key
    sampler = _sampler(sim, cohorts, rounds, rounds_per_dispatch)
    keys.check(key)
    _check_each(each_round, rounds_per_dispatch)
    if run_dir is not None and jax.process_count() > 1:
        raise ValueError(
            f"run_dir {str(run_dir)!r} is written by one process, and jax.distributed has {jax.process_count()}: leave run_dir= out and "
            "save History.state where jax.process_index() is 0, or train with fc.ClusterSimulator, whose run_dir resumes"
        )
    at_least(1, rounds=rounds, checkpoint_every=checkpoint_every, keep=keep, rounds_per_dispatch=rounds_per_dispatch)
    judge = Monitor(evaluate_every, evaluate, best, mode, patience)
    Spending(sim).check(sim, sampler, evaluates_on_clients=evaluate_every > 0 and evaluate is None)
    _say(sim, judge, progress)
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        private = getattr(sim, "private", False)
        folder = stack.enter_context(claim(run_dir, private=private)) if run_dir is not None else None
        secret = _key(encrypt, folder)
        checkpoints = stack.enter_context(Checkpoints(folder, keep, secret, private=private)) if folder is not None else None
        newest = None if checkpoints is None else checkpoints.newest()
        # How many lanes, on how many cores, and the like: chosen anew, it might come out otherwise, and so the last bits.
        tuning_cache.adopt({} if newest is None else newest.about.get("measured", {}))
        configuration = {
            "settings": sim.settings,
            "clients": {"count": len(sim.clients), "fingerprint": sim.clients.fingerprint() if run_dir is not None else None},
            "round": sim.round,
            "cohorts": sampler,
            "key": key,
            "params": params,
            "rounds_per_dispatch": rounds_per_dispatch,
            "evaluation": judge.settings,
            **({} if given is None else {"state": fingerprint(given.leaves, given.arrays)}),
        }
        warn_of_other_seeds(sim, sampler, key, params)
        described = config.describe(configuration) if run_dir is not None else {}
        about = {"config": described, "versions": config.versions()}
        saved, changed = (None, []) if checkpoints is None else resumable(checkpoints, newest, about, rounds=rounds, override=override)
        if checkpoints is not None and saved is not None:
            _note(sim, checkpoints, saved, changed)
        state = sim.init(key, params)
        run = Rounds(sim, sampler, judge, checkpoints, about, interruption, each_round, began=0 if given is None else given.round)
        if given is not None and saved is None:
            state = given.place(state, "the given state", "bring its parts together by state._replace(...)")
        given = None  # a copy of all that is in it
        if saved is not None:
            assert checkpoints is not None
            state = saved.place(state)
            run.resume(saved)
            run.needs = {round: about.get("needs") for round, about in checkpoints.abouts().items()}
        run.log = stack.enter_context(Log(folder, rounds=rounds, done=run.done, began=run.began, progress=progress, private=private))
        if hasattr(sim, "retain"):
            stack.callback(sim.retain, None)  # whoever runs rounds by hand may go on from states that nobody knows of
        state, stopped = run.until(rounds, state, rounds_per_dispatch, checkpoint_every)
        speed = dict(sim.meter.report()) if hasattr(sim, "meter") else {}
        if speed and progress:
            log.info("%s", ", ".join(f"{name} {value:,.3g}" for name, value in speed.items()))
        return History(state, run.log.records, run.best, stopped, speed)


def _say(sim: Simulation, judge: Monitor, progress: bool) -> None:
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


def _given(state: Any, rounds: int, key: Any, params: Any) -> Saved:
    """A state that was given, copied to the host, so that it stays as it is; raises where a run cannot begin from it."""
    if not hasattr(state, "round"):
        raise TypeError(f"state= is a whole State, such as History.state, got {type(state).__name__}: for a model alone give params=")
    if key is not None or params is not None:
        name = "key" if key is not None else "params"
        raise ValueError(f"{name}= is given, and so is state=, which has its own: leave one of them out, or use state._replace(...)")
    if any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(state)):
        raise ValueError("state= was used up by run(..., donate=True), which put the state that came of it in its place: give that one")
    if (done := int(state.round)) > rounds:
        raise ValueError(f"state= has {done} rounds behind it, and rounds={rounds} in all are asked for: ask for at least as many")
    leaves, arrays = taken(state)
    return Saved(done, {}, leaves, arrays)


def _check_each(each_round: Any, rounds_per_dispatch: int) -> None:
    if each_round is not None and not callable(each_round):
        raise TypeError(f"each_round= is a function (round, state, metrics), got {type(each_round).__name__}")
    if each_round is not None and rounds_per_dispatch > 1:
        raise ValueError(
            f"each_round= sees the state of every round, and rounds_per_dispatch={rounds_per_dispatch} has that of some alone: leave one "
            "of them out"
        )


def _sampler(sim: Simulation, cohorts: Any, rounds: int, rounds_per_dispatch: int) -> Any:
    """Who says who takes part, `cohorts` itself or made of a list; raises where it does not fit the run."""
    chooses = hasattr(cohorts, "choose")
    if isinstance(cohorts, (Sequence, np.ndarray, jax.Array)) and not isinstance(cohorts, str):
        cohorts = listed(cohorts, len(sim.clients))  # type: ignore[arg-type]
        if cohorts.rounds < rounds:
            raise ValueError(f"cohorts= lists {cohorts.rounds} rounds, and rounds={rounds}: list a cohort for each, or give a function")
    elif not callable(cohorts) and not chooses:
        raise TypeError(
            f"cohorts= must be a function of the round or a list with a cohort for each, got {type(cohorts).__name__}: use "
            "fc.cohorts.uniform(...) or the like"
        )
    population = getattr(cohorts, "population", len(sim.clients))
    if population != len(sim.clients):
        raise ValueError(
            f"cohorts= draws from {population} clients, but the simulation has {len(sim.clients)}; build both from the same clients: "
            "fc.cohorts.uniform(len(clients), size=...)"
        )
    if chooses and not hasattr(sim, "score"):
        raise TypeError(f"{type(cohorts).__name__} asks what clients' losses are, and a {type(sim).__name__} has no score(state, clients)")
    if chooses and rounds_per_dispatch > 1:
        raise ValueError(
            f"{type(cohorts).__name__} looks at the state before each round, and rounds_per_dispatch={rounds_per_dispatch} has only "
            "that of some: leave it at 1"
        )
    return cohorts
