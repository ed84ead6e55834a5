"""FedDF: the server averages the clients' models, then distils their ensemble into the mean on examples
without labels.

    y_i <- local steps from x;   x <- mean of y_i
    x   <- x - distill(grad KL(softmax(mean_i z(y_i)) | softmax(z(x))))        some steps, on all the server's examples

with z the logits of the server's examples. The server needs every client's model; clients never see the
examples.

Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS
2020, algorithm 1.

>>> import jax.numpy as jnp, optax
>>> from fedjax_core import models
>>> task, unlabelled = models.logistic(features=3, classes=2), {"x": jnp.ones((8, 3))}
>>> algorithm = feddf(task, optax.sgd(0.1), unlabelled, distill=optax.adam(1e-3), steps=10)
"""

from collections.abc import Callable
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
    nothing,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, check_optimizer, local_training
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Columns, Params


class Global(NamedTuple):
    """The model x."""

    params: Params


@scheduled("task", "local")
def feddf(
    task: Task,
    local: optax.GradientTransformation,
    unlabelled: Columns,
    distill: optax.GradientTransformation,
    steps: int,
    *,
    weighting: Callable[[Seen], Array] = by_examples,
) -> Algorithm:
    """FedDF with `steps` of the optimiser `distill` a round on `unlabelled`, columns that the task's
    `predict` reads.

    Models are averaged by `weighting`; in the ensemble they count alike. The last model of the distillation
    is kept."""
    predict = task.predict
    if predict is None:
        raise ValueError("feddf() compares a classifier's logits, and the task has none: give Task(predict=)")
    check_optimizer(distill, "distill")
    begin, step = local_training(task, local)
    batch = Batch(unlabelled, jnp.ones(len(jax.tree.leaves(unlabelled)[0])))

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return Report(tree.sub(carry.params, params), weighting(seen), own=())

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        here = reports.each.weight
        models = jax.tree.map(lambda x, change: x[None] + change, server.params, reports.value)
        alike = (here > 0).astype(jnp.float32) / jnp.maximum(reports.clients, 1)
        taught = jax.nn.softmax(
            jnp.tensordot(alike, jax.vmap(lambda params: tree.wide(predict(params, batch)))(models), 1)
        )

        def loss(params: Params) -> Array:
            return jnp.mean(
                optax.losses.kl_divergence(jax.nn.log_softmax(tree.wide(predict(params, batch))), taught)
            )

        def learn(_: int, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
            move, opt = distill.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
            return optax.apply_updates(carry[0], move), opt

        shares = here / jnp.maximum(reports.weight, 1e-30)
        mean = jax.tree.map(
            lambda x, change: x + jnp.tensordot(shares, change, 1), server.params, reports.value
        )
        return Global(jax.lax.fori_loop(0, steps, learn, (mean, distill.init(mean)))[0])

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update, reports="all")
    return Algorithm(task, task.init, Global, nothing, (exchange,))
