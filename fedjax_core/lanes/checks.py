"""Checks what a lane simulator is given before anything runs, in this process or on the workers of a
cluster."""

import logging
from typing import Any

import jax
import numpy as np

from fedjax_core.aggregators.base import check_cohort
from fedjax_core.composition import check_metrics, check_population, check_repeats
from fedjax_core.data.clients import Clients
from fedjax_core.data.columns import forget, mapped, narrow
from fedjax_core.data.task_check import check_data
from fedjax_core.round import Round

log = logging.getLogger("fedjax_core")


def check_simulation(name: str, composed: Any, clients: Any, lanes: Any) -> None:
    """Raises where simulator `name` was given something else than a `Round`, `Clients` that 32 bits hold, and
    a number of lanes."""
    if not isinstance(composed, Round):
        raise TypeError(
            f"{name} needs a Round, got {type(composed).__name__}: make one with fc.compose(algorithm)"
        )
    if not isinstance(clients, Clients):
        raise TypeError(
            f"{name} needs Clients, got {type(clients).__name__}: make them with fc.Clients.from_list or from_arrays"
        )
    if lanes != "auto" and (not isinstance(lanes, (int, np.integer)) or lanes < 1):
        raise ValueError(f'lanes must be "auto" or a whole number of at least 1, got {lanes!r}')
    check_population(composed, len(clients), "clients")
    clients.check_numbers(whole=not mapped(clients.columns))


def check_model(composed: Round, clients: Clients, batch_size: int) -> None:
    """Raises where the task does not fit the clients' examples, or a metric has a name or form that cannot be
    reported."""
    check_data(composed.algorithm.task, clients, batch_size)
    check_metrics(composed, narrow(jax.tree.map(lambda x: x[:1], clients.columns)), batch_size)
    forget(clients.columns)


def check_state(state: Any) -> None:
    """Raises where a round cannot begin from the state: it was used up, or a gradient is taken of it."""
    leaves = [state.round, *jax.tree.leaves(state.server)]
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        raise TypeError(
            "a round runs as a program of its own, and cannot be part of another or have its gradient taken: call run outside "
            "of jax.jit and jax.grad, or take gradients through fc.Loops(...), which is slow"
        )
    if any(isinstance(x, jax.Array) and x.is_deleted() for x in leaves):
        raise ValueError(
            "this state was used up by run(..., donate=True): go on from the state that run gave back, or leave donate= out"
        )


def check_counts(composed: Round, counts: np.ndarray) -> None:
    """Raises where a cohort drawn so often ([K] counts) is too small for the round, or has repeats that it
    cannot count."""
    check_cohort(composed.aggregator, int(np.sum(counts > 0)))
    check_repeats(composed, int(np.max(counts, initial=0)))


def warn_outgrown(cohort_size: int, room: int) -> None:
    """Warns that a cohort larger than the room compiles again, and says how to avoid that; silent where there
    was no room yet."""
    if room:
        log.warning(
            "a cohort of %d clients outgrows the %d that the program was compiled for, which compiles it again; "
            "call reserve(%d) before the first round to avoid it",
            cohort_size,
            room,
            cohort_size,
        )
