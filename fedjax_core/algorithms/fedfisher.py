"""FedFisher: models are averaged number by number, weighted by each client's Fisher information; one round is
enough.

    exchange 1 (silent)    y_i <- local steps from x, to the minimum
    exchange 2             F_i = the Fisher information of f_i at y_i, its diagonal, in one pass
    server                 x <- (sum_i n_i F_i)^-1 sum_i n_i F_i y_i

which minimises the sum of the clients' losses where these are quadratic with diagonal F_i.

Jhunjhunwala, Wang and Joshi, "FedFisher: Leveraging Fisher Information for One-Shot Federated Learning",
AISTATS 2024.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedfisher(models.logistic(features=3, classes=2), local=optax.sgd(0.1))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import (
    Aggregate,
    Algorithm,
    Client,
    Exchange,
    Report,
    Seen,
    by_examples,
    gradient,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, keep, local_training, look
from fedjax_core.task import Task
from fedjax_core.types import Batch, Key, Own, Params
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The model x."""

    params: Params


class Sure(NamedTuple):
    """(a client's change of the model, times the information; the information)."""

    moved: Any
    information: Any


def squares(task: Task, params: Params, batch: Batch, key: Key) -> Params:
    """The empirical Fisher information's diagonal: the mean square of the examples' gradients."""

    def of_one(columns: Any, weight: Any) -> Params:
        one = Batch(jax.tree.map(lambda x: x[None], columns), jnp.ones(1))
        return jax.tree.map(lambda g: weight * jnp.square(g), gradient(task, params, one, key)[0])

    share = batch.mask / jnp.maximum(jnp.sum(batch.mask), 1)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(of_one)(batch.columns, share))


@scheduled("task", "local")
def fedfisher(
    task: Task,
    local: optax.GradientTransformation,
    damping: float = 1e-6,
    fisher: Callable[[Task, Params, Batch, Key], Params] = squares,
) -> Algorithm:
    """FedFisher; `fisher(task, params, batch, key)` gives the diagonal, as a mean over the batch's examples.

    `damping` is added to the information of each number, so that one without information stays where it
    is."""
    begin, step = local_training(task, local)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return keep(carry.params)

    def report(params: Params, own: Own, fisher: Params, seen: Seen) -> Report:
        return Report(
            Sure(jax.tree.map(lambda f, y, x: f * (y - x), fisher, own, params), fisher),
            by_examples(seen),
            own,
        )

    def update(server: Global, reports: Aggregate) -> Global:
        moved = jax.tree.map(lambda d, f: d / (f + damping), *reports.value)
        return Global(tree.add(server.params, moved))

    measure = look(
        lambda params, own: tree.zeros_like(own),
        lambda params, own, batch, key: fisher(task, own, batch, key),
        report,
    )
    train = Exchange(lambda server: server.params, Client(begin, step, finish), None)
    tell = Exchange(lambda server: server.params, measure, update, work=ONCE, reports="mean")
    return Algorithm(task, task.init, Global, lambda params: params, (train, tell))
