"""FedAvg without sampling bias: a report is weighted by the inverse of its client's rate of participation.

    x <- x + sum over the cohort of (w_i / r_i) (y_i - x),     r_i the times that client i is expected in a cohort

The expectation over cohorts is the step of all clients, sum_i w_i (y_i - x). With r_i proportional to w_i
|y_i - x| the variance is least (Chen, Horváth and Richtárik, "Optimal Client Sampling for Federated
Learning", TMLR 2022, eq. 7): `fc.cohorts.optimal_rates(norms, size)` has those rates, and
`fc.cohorts.independent(rates)` draws each client by its own.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = importance(models.linear(features=3), optax.sgd(0.1), rates=[0.5, 0.25, 1.0], shares=[0.2, 0.3, 0.5])
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import (
    Aggregate,
    Algorithm,
    Client,
    Exchange,
    Report,
    Seen,
    Told,
    nothing,
    uniform,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training, server_step
from fedjax_core.task import Task
from fedjax_core.types import Params


class Global(NamedTuple):
    """The model, and the server optimiser's state."""

    params: Params
    opt: optax.OptState


@scheduled("task", "local", "server")
def importance(
    task: Task,
    local: optax.GradientTransformation,
    rates: Any,
    shares: Any = None,
    server: optax.GradientTransformation | None = None,
) -> Algorithm:
    """FedAvg for clients who are in a cohort `rates` [N] times on average, each above 0.

    `shares` [N] are the w_i, by default equal, such as `clients.sizes / clients.examples`. An empty cohort
    moves nothing."""
    often = np.asarray(rates, np.float64)
    if often.ndim != 1 or not often.size or not (np.isfinite(often) & (often > 0)).all():
        raise ValueError(
            f"rates must be a number above 0 for each client: of one who is never drawn no weight makes up; got {rates!r}"
        )
    wanted = np.full(len(often), 1 / len(often)) if shares is None else np.asarray(shares, np.float64)
    if (
        wanted.shape != often.shape
        or not (np.isfinite(wanted) & (wanted >= 0)).all()
        or abs(wanted.sum() - 1) > 1e-6
    ):
        raise ValueError(f"shares must be {len(often)} numbers of at least 0 that sum to 1, got {shares!r}")
    factors = (wanted / often).astype(np.float32)
    begin, step = local_training(task, local, start=lambda received, own: received.message)
    server = optax.sgd(1.0) if server is None else server
    move = server_step(server, averaged=task.statistics.names)

    def finish(received: Told, carry: Local, seen: Seen) -> Report:
        return Report(
            tree.scale(received.mine, tree.sub(carry.params, received.message)), uniform(seen), own=()
        )

    def update(state: Global, reports: Aggregate) -> Global:
        # the weighted mean times the weight is the sum
        return Global(*move(state.params, state.opt, tree.scale(reports.weight, reports.value)))

    exchange = Exchange(
        lambda state: state.params,
        Client(begin, step, finish),
        update,
        reports="mean",
        address=lambda state, positions: jnp.asarray(factors).at[positions].get(mode="clip"),
    )
    begun = Algorithm(
        task, task.init, lambda params: Global(params, server.init(params)), nothing, (exchange,)
    )
    return begun._replace(population=len(often))
