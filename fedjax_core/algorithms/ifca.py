"""IFCA / HypCluster: the server keeps k models; each client trains the one that fits its data best.

    exchange 1 (silent)    j_i = argmin_j f_i(x_j)            one pass; the choice stays with the client
    exchange 2             y <- local steps from x_{j_i};     x_j <- x_j + mean of (y_i - x_j) over clients with j_i = j

A client sends one of the k models, with its number as the slot of the report.

Ghosh et al., "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020; Mansour et al., "Three
Approaches for Personalization with Applications to Federated Learning", 2020 (HypCluster). The global model
`state.params` is the k models stacked.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = ifca(models.linear(features=3), models=2, local=optax.sgd(0.1))
>>> [exchange.update is None for exchange in algorithm.exchanges]
[True, False]
"""

from typing import NamedTuple

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
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The k models, each leaf [k, ...]."""

    params: Params


@scheduled("task", "local")
def ifca(task: Task, models: int, local: optax.GradientTransformation) -> Algorithm:
    """Clustered training of `models` models, each begun from its own key; clients count by their examples."""
    if models < 1:
        raise ValueError(f"ifca needs models >= 1, got {models}")

    def chosen(params: Params, choice: Array) -> Params:
        return jax.tree.map(lambda x: x[choice], params)

    begin, step = local_training(task, local, start=chosen)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        change = tree.sub(carry.params, chosen(params, carry.own))
        return Report(change, by_examples(seen), own=carry.own, slot=carry.own)

    def update(server: Global, reports: Aggregate) -> Global:
        changes = jax.tree.map(lambda x, change: change.reshape(x.shape), server.params, reports.value)
        return Global(tree.add(server.params, changes))

    def several(key: Key) -> Params:
        return jax.vmap(task.init)(jax.random.split(key, models))

    choose = Exchange(lambda server: server.params, _chooser(task, models), None, work=ONCE)
    train = Exchange(lambda server: server.params, Client(begin, step, finish), update, slots=models)

    return Algorithm(
        task,
        several,
        Global,
        init_client=lambda params: jnp.int32(0),
        exchanges=(choose, train),
        personal=lambda server, choice: chosen(server.params, choice),
    )


def _chooser(task: Task, models: int) -> Client:
    """The client of a silent exchange: it finds and keeps the number of the model with the smallest loss on
    its data."""

    def step(params: Params, losses: Array, batch: Batch, key: Key) -> tuple[Array, dict[str, Mean]]:
        batch_losses = jax.vmap(lambda one: task.mean_loss(one, batch, key))(params)
        return losses + (batch_losses * jnp.sum(batch.mask)).astype(jnp.float32), {}

    def finish(params: Params, losses: Array, seen: Seen) -> Report:
        return Report((), jnp.float32(0), own=jnp.argmin(losses).astype(jnp.int32))

    return Client(lambda params, own, key: jnp.zeros(models), step, finish)
