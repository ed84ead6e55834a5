"""Checks the arguments of `fit`, and prepares a run's sampler of cohorts and the state that it begins
from."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedjax_core.checks import takes
from fedjax_core.data.cohorts import listed
from fedjax_core.run.simulation import Simulation
from fedjax_core.run.snapshot import Saved, taken


def given_state(state: Any, rounds: int, key: Any, params: Any) -> Saved:
    """A copy on the host of the state given to `fit`, which so stays as it is; raises where a run cannot
    begin from it."""
    if not hasattr(state, "round"):
        raise TypeError(
            f"state= is a whole State, such as History.state, got {type(state).__name__}: for a model alone give params="
        )
    if key is not None or params is not None:
        name = "key" if key is not None else "params"
        raise ValueError(
            f"{name}= is given, and so is state=, which has its own: leave one of them out, or use state._replace(...)"
        )
    if any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(state)):
        raise ValueError(
            "state= was used up by run(..., donate=True), which put the state that came of it in its place: give that one"
        )
    if (done := int(state.round)) > rounds:
        raise ValueError(
            f"state= has {done} rounds behind it, and rounds={rounds} in all are asked for: ask for at least as many"
        )
    leaves, arrays = taken(state)
    return Saved(done, {}, leaves, arrays)


def check_each_round(each_round: Any, rounds_per_dispatch: int) -> None:
    """Raises where `each_round` is not a function, or where not every round has a state to pass to it."""
    if each_round is not None:
        takes("each_round", each_round, "round", "state", "metrics")
    if each_round is not None and rounds_per_dispatch > 1:
        raise ValueError(
            f"each_round= sees the state of every round, and rounds_per_dispatch={rounds_per_dispatch} has that of some alone: leave one "
            "of them out"
        )


def check_one_process(run_dir: str | os.PathLike[str] | None) -> None:
    """Raises where several processes would write one `run_dir`."""
    if run_dir is not None and jax.process_count() > 1:
        raise ValueError(
            f"run_dir {str(run_dir)!r} is written by one process, and jax.distributed has {jax.process_count()}: leave run_dir= out and "
            "save History.state where jax.process_index() is 0, or train with fc.ClusterSimulator, whose run_dir resumes"
        )


def sampler_of(sim: Simulation, cohorts: Any, rounds: int, rounds_per_dispatch: int) -> Any:
    """The sampler of cohorts: `cohorts` itself, or one made of a list; raises where it does not fit the
    run."""
    chooses = hasattr(cohorts, "choose")
    if isinstance(cohorts, (Sequence, np.ndarray, jax.Array)) and not isinstance(cohorts, str):
        cohorts = listed(cohorts, len(sim.clients))  # type: ignore[arg-type]
        if cohorts.rounds < rounds:
            raise ValueError(
                f"cohorts= lists {cohorts.rounds} rounds, and rounds={rounds}: list a cohort for each, or give a function"
            )
    elif not callable(cohorts) and not chooses:
        raise TypeError(
            f"cohorts= must be a function of the round or a list with a cohort for each, got {type(cohorts).__name__}: use "
            "fc.cohorts.uniform(...) or the like"
        )
    if callable(cohorts) and not chooses:
        takes("cohorts", cohorts, "round")
    population = getattr(cohorts, "population", len(sim.clients))
    if population != len(sim.clients):
        raise ValueError(
            f"cohorts= draws from {population} clients, but the simulation has {len(sim.clients)}; build both from the same clients: "
            "fc.cohorts.uniform(len(clients), size=...)"
        )
    if chooses and not hasattr(sim, "score"):
        raise TypeError(
            f"{type(cohorts).__name__} asks what clients' losses are, and a {type(sim).__name__} has no score(state, clients)"
        )
    if chooses and rounds_per_dispatch > 1:
        raise ValueError(
            f"{type(cohorts).__name__} looks at the state before each round, and rounds_per_dispatch={rounds_per_dispatch} has only "
            "that of some: leave it at 1"
        )
    return cohorts
