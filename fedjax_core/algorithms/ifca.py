"""IFCA / HypCluster: the server keeps k models; each client takes the one that fits its data best, and trains that.

    exchange 1 (silent)    j_i = argmin_j f_i(x_j)            one pass; the choice stays with the client
    exchange 2             y <- local steps from x_{j_i};     x_j <- x_j + mean of (y_i - x_j) over clients with j_i = j

Ghosh et al., "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020; Mansour et al., "Three Approaches for
Personalization with Applications to Federated Learning", 2020 (HypCluster). The global model `state.params` is the k models stacked.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = ifca(models.linear(features=3), models=2, local=optax.sgd(0.1))
>>> [exchange.update is None for exchange in algorithm.exchanges]
[True, False]
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core.algorithms.base import (
    Aggregate,
    Algorithm,
    Client,
    Exchange,
    LocalOptimizer,
    Report,
    Seen,
    by_examples,
    check_local,
    gradient,
    made_by_round,
)
from fedjax_core.algorithms.by_round import by_round
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params


class Global(NamedTuple):
    """The k models, each leaf [k, ...]."""

    params: Params


class Local(NamedTuple):
    """The model a client trains, which of the k it is, and the optimiser's state."""

    params: Params
    choice: Array
    opt: optax.OptState


class Part(NamedTuple):
    """A client's change put in its model's place, zeros elsewhere, and a one at that place: their means give each model's own mean."""

    change: Any  # leaves [k, ...]
    chosen: Array  # [k]


def ifca(task: Task, models: int, local: LocalOptimizer) -> Algorithm:
    """Clustered training of `models` models, each begun from its own key; clients count by their examples."""
    if (make := made_by_round(local)) is not None:
        return by_round(lambda round: ifca(task, models, make(round)))
    local = check_local(local, task)
    if models < 1:
        raise ValueError(f"ifca needs models >= 1, got {models}")

    def begin(params: Params, choice: Array, key: Key) -> Local:
        mine = jax.tree.map(lambda x: x[choice], params)
        return Local(mine, choice, local.init(mine))

    def step(params: Params, carry: Local, batch: Batch, key: Key) -> tuple[Local, dict[str, Mean]]:
        grads, seen = gradient(task, carry.params, batch, key)
        change, opt = local.update(grads, carry.opt, carry.params)
        return Local(optax.apply_updates(carry.params, change), carry.choice, opt), seen

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        change = jax.tree.map(lambda x, y: jnp.zeros_like(x).at[carry.choice].set(y - x[carry.choice]), params, carry.params)
        return Report(Part(change, jax.nn.one_hot(carry.choice, models)), by_examples(seen), own=carry.choice)

    def update(server: Global, reports: Aggregate) -> Global:
        def move(x: Array, change: Array) -> Array:
            share = reports.value.chosen.reshape((models,) + (1,) * (x.ndim - 1)).astype(x.dtype)
            return x + jnp.where(share > 0, change / jnp.where(share > 0, share, 1), 0)

        return Global(jax.tree.map(move, server.params, reports.value.change))

    def several(key: Key) -> Params:
        return jax.vmap(task.init)(jax.random.split(key, models))

    choose = Exchange(lambda server: server.params, _chooser(task, models), None, work="once")
    train = Exchange(lambda server: server.params, Client(begin, step, finish), update, needs_mean=True)

    def personal(server: Global, choice: Array) -> Params:
        return jax.tree.map(lambda x: x[choice], server.params)

    return Algorithm(task, several, Global, lambda params: jnp.int32(0), (choose, train), personal)


def _chooser(task: Task, models: int) -> Client:
    """A client that finds which of the models has the smallest loss on its data, and keeps that to itself."""

    def step(params: Params, losses: Array, batch: Batch, key: Key) -> tuple[Array, dict[str, Mean]]:
        found = jax.vmap(lambda one: task.mean_loss(one, batch, key))(params)
        return losses + (found * jnp.sum(batch.mask)).astype(jnp.float32), {}

    def finish(params: Params, losses: Array, seen: Seen) -> Report:
        return Report((), jnp.float32(0), own=jnp.argmin(losses).astype(jnp.int32))

    return Client(lambda params, own, key: jnp.zeros(models), step, finish)
