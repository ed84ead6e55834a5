"""`fit`: runs many rounds, with all that a long run needs around them: metrics, evaluation, checkpoints,
resume.

    rounds  ->  metrics, evaluation, best, early stop  ->  checkpoint  ->  again, or after a crash from the last checkpoint

Started again in the same `run_dir`, it goes on where it was and ends bit for bit where an uninterrupted run
ends. For that, the `State` holds all that goes from round to round, cohorts are addressed by their round, and
rounds are always dispatched in the same groups, which end at multiples of `rounds_per_dispatch`,
`checkpoint_every` and `evaluate_every`, wherever the run began.

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
from fedjax_core.data.choice import Chooser
from fedjax_core.data.cohort import Sampler
from fedjax_core.run.arguments import check_each_round, check_one_process, given_state, sampler_of
from fedjax_core.run.begin import begin, checkpoint_key, opened, run_metadata
from fedjax_core.run.checkpoint import best, read
from fedjax_core.run.history import History
from fedjax_core.run.log import Log
from fedjax_core.run.monitor import Evaluate, Monitor
from fedjax_core.run.plan import Plan, write_plan
from fedjax_core.run.rounds import EachRound, Rounds
from fedjax_core.run.seeds import warn_of_other_seeds
from fedjax_core.run.signals import Interruption
from fedjax_core.run.simulation import Simulation
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
    """Runs until `rounds` rounds are done in all, from the newest checkpoint in `run_dir` if there is one;
    without `run_dir` it writes nothing.

    `key` (default `jax.random.key(0)`) is not the only seed: it draws the first parameters, and what clients
    draw as they train (dropout, rounding). The order of examples goes by the backend's `seed`, and cohorts by
    theirs: to repeat a run with other draws, change all three.

    It begins from `params` where given, or from a whole `state` with client state, whose rounds count as
    done. A checkpoint in `run_dir` comes first.

    `cohorts(round)` gives the clients of a round, from 0; a list of them is taken as it stands; and a sampler
    may look at the state before it chooses (`fc.cohorts.power_of_choice`). The state is evaluated every
    `evaluate_every` rounds (0: never), and once before the first: by default on the clients trained on, or on
    the people that real sites hold out (`Federation(held_out=)`). The metric `best` chooses the best
    checkpoint, and `patience` evaluations in a row without a better one end the run.

    `each_round(rounds done, state, metrics)` is called after each round with its state, which may be kept,
    and its metrics as in the records. Returning True ends the run, which stays ended when it is started
    again. The device waits for it, and after a crash the rounds since the last checkpoint come again.

    Where the uplink keeps a privacy account (`fc.privacy.client_level`), each record has the `epsilon` spent
    so far and no counts, cohorts must be the account's, evaluation must be on other clients, and the run ends
    when the epsilon is spent.

    Ctrl-C or SIGTERM finishes the running rounds, saves, and returns. In one `run_dir` everything that
    changes the answer must stay as it was, unless `override=True`. `encrypt`: a file with a key, or
    "env:NAME", by which checkpoints, and nothing else, are encrypted (`fedjax_core.run.encryption`). As one
    of several processes of `jax.distributed` it takes no `run_dir`. Files of a federation's run are for their
    owner alone, others as the umask says.

    A checkpoint costs 25 ms however small the state (2-core x86, local disk), and 2 s in the background for
    400 MB: where a round takes a millisecond, `checkpoint_every=100` makes more sense. Encrypted ones are
    faster, as Orbax compresses and its files are digested: 200 MB take 0.11 s instead of 1.1 s.
    """
    given = None if state is None else given_state(state, rounds, key, params)
    key = jax.random.key(0) if key is None else key
    sampler = sampler_of(sim, cohorts, rounds, rounds_per_dispatch)
    keys.check(key)
    check_each_round(each_round, rounds_per_dispatch)
    check_one_process(run_dir)
    at_least(
        1,
        rounds=rounds,
        checkpoint_every=checkpoint_every,
        keep=keep,
        rounds_per_dispatch=rounds_per_dispatch,
    )
    judge = Monitor(evaluate_every, evaluate, best, mode, patience)
    Spending(sim).check(sim, sampler, evaluates_on_clients=evaluate_every > 0 and evaluate is None)
    _say(sim, judge, progress)
    private = getattr(sim, "private", False)
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        checkpoints = stack.enter_context(opened(run_dir, keep, encrypt, private=private))
        newest = None if checkpoints is None else checkpoints.newest()
        # Choices such as the number of lanes: made anew they might differ, and so might the last bits.
        tuning_cache.adopt({} if newest is None else newest.about.get("measured", {}))
        warn_of_other_seeds(sim, sampler, key, params)
        metadata = run_metadata(
            sim,
            sampler,
            judge,
            key,
            params,
            given,
            rounds_per_dispatch=rounds_per_dispatch,
            saves=checkpoints is not None,
        )
        run = Rounds(
            sim,
            sampler,
            judge,
            checkpoints,
            metadata,
            interruption,
            each_round,
            began=0 if given is None else given.round,
        )
        state = begin(run, newest, given, key, params, rounds=rounds, override=override)
        given = None  # a copy of all that is in it
        folder = None if checkpoints is None else checkpoints.run_dir
        run.log = stack.enter_context(
            Log(folder, rounds=rounds, done=run.done, began=run.began, progress=progress, private=private)
        )
        if folder is not None:
            write_plan(folder, Plan(rounds), private=private)
        if hasattr(sim, "retain"):
            # a user who runs rounds by hand may go on from states that the backend does not know of
            stack.callback(sim.retain, None)
        state, stopped = run.until(rounds, state, rounds_per_dispatch, checkpoint_every)
        if folder is not None:
            write_plan(folder, Plan(rounds, stopped), private=private)
        speed = dict(sim.meter.report()) if hasattr(sim, "meter") else {}
        if speed and progress:
            log.info("%s", ", ".join(f"{name} {value:,.3g}" for name, value in speed.items()))
        return History(state, run.log.records, run.best, stopped, speed)


def _say(sim: Simulation, judge: Monitor, progress: bool) -> None:
    """Says which of the sites' examples decide the best model and the end by patience."""
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


def load_best(
    run_dir: str | os.PathLike[str], sim: Simulation, *, encrypt: str | os.PathLike[str] | None = None
) -> Any:
    """The whole `State` of the best evaluation in `run_dir`; `.params` of it is the best model. `encrypt` is
    as it was for `fit`."""
    return read(best(Path(run_dir)), checkpoint_key(encrypt, Path(run_dir))).place(
        sim.init(jax.random.key(0))
    )
