"""FedProto: clients keep their models, and share the prototype of each class: the mean of its examples'
features.

    exchange 1 (silent)    y_i <- local steps on f_i(y) + lam mean |z - p_c|^2,  z an example's features, c its class
    exchange 2             sums and counts of z by class, in one pass with y_i
    server                 p_c <- sums / counts: as if the examples of class c were pooled

A class without examples so far has no p_c, and no pull.

Tan et al., "FedProto: Federated Prototype Learning across Heterogeneous Clients", AAAI 2022, algorithm 1.
`state.params` is the model that all began with.

>>> import jax.numpy as jnp, optax
>>> from fedjax_core import models
>>> task = models.logistic(features=3, classes=2)._replace(features=lambda params, batch, key: batch["x"] @ params["w"])
>>> algorithm = fedproto(task, lam=1.0, local=optax.sgd(0.1), width=2)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, Loss, keep, local_training, look
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Own, Params
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The model that all began with, and the prototypes."""

    params: Params
    prototypes: Array  # [C, d]
    known: Array  # [C]: 1 where a class has one, else 0


class Classes(NamedTuple):
    """Sums of the features by class, and the numbers of their examples."""

    sums: Array  # [C, d]
    counts: Array  # [C]


@scheduled("task", "lam", "local")
def fedproto(task: Task, lam: float, local: optax.GradientTransformation, width: int) -> Algorithm:
    """FedProto with pull `lam` towards the prototypes, for a task with `features` of `width` numbers and
    labels in the column `y`."""
    features, classes = task.features, task.classes
    if features is None or classes is None:
        raise ValueError(
            "fedproto() needs a task with features and a number of classes: give from_flax(..., features=), Task(classes=)"
        )

    def objective(message: Global, own: Own) -> Loss:
        def loss(params: Params, batch: Batch, key: Key) -> Array:
            label = batch["y"].astype(jnp.int32)
            away = jnp.square(tree.wide(features(params, batch, key)) - message.prototypes[label])
            return tree.wide(task.loss(params, batch, key)) + lam * message.known[label] * jnp.mean(
                away, axis=1
            )

        return loss

    begin, step = local_training(task, local, start=lambda message, own: own, objective=objective)

    def measure(message: Global, own: Own, batch: Batch, key: Key) -> Classes:
        share = batch.mask / jnp.maximum(jnp.sum(batch.mask), 1)
        by_class = jax.nn.one_hot(batch["y"], classes) * share[:, None]
        return Classes(by_class.T @ tree.wide(features(own, batch, key)), jnp.sum(by_class, axis=0))

    def report(message: Global, own: Own, prototypes: Classes, seen: Seen) -> Report:
        return Report(tree.scale(seen.examples, prototypes), uniform(seen), own)

    def update(server: Global, reports: Aggregate) -> Global:
        sums, counts = reports.value
        here = counts > 0
        new = sums / jnp.where(here, counts, 1)[:, None]
        return server._replace(
            prototypes=jnp.where(here[:, None], new, server.prototypes),
            known=jnp.where(here, 1, server.known),
        )

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        return keep(carry.params)

    train = Exchange(lambda server: server, Client(begin, step, finish), None)
    none = Classes(jnp.zeros((classes, width)), jnp.zeros(classes))
    gather = Exchange(
        lambda server: server,
        look(lambda message, own: none, measure, report),
        update,
        work=ONCE,
        reports="mean",
    )
    return Algorithm(
        task,
        task.init,
        lambda params: Global(params, *none),
        lambda params: params,
        (train, gather),
        lambda server, own: own,
    )
