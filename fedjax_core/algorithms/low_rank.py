"""Shared part of the rules for low-rank factors: clients train theirs, and the server merges every client's
into one model.

    a_i, b_i <- local steps from a, b; the weights W stay still
    (W, a, b) <- merge(W, mean of a_i, mean of b_i, mean of a_i b_i)
    leaves that are trained themselves are averaged

The task is one of `fedjax_core.lora`. A client sends only its factors, and is sent W, which may have
changed."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

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
from fedjax_core.algorithms.local_training import Local, Loss, local_training
from fedjax_core.lora import LowRank
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Own, Params


class Global(NamedTuple):
    """The adapted model."""

    params: LowRank


class Factors(NamedTuple):
    """The two thin matrices of each weight, and the leaves that are trained themselves."""

    a: Any
    b: Any
    full: Any


Merge: TypeAlias = Callable[[LowRank, Factors, Params, Key], LowRank]
"""(the model before, mean factors, mean of the clients' products a_i b_i [in, out], key) -> the model
after."""


def low_rank(
    task: Task,
    local: optax.GradientTransformation,
    merge: Merge,
    *,
    weighting: Callable[[Seen], Array] = by_examples,
) -> Algorithm:
    """Training of the factors of a task made by `fedjax_core.lora.lora`, which `merge` combines; means are
    weighted by `weighting`."""

    def factors(model: LowRank) -> Factors:
        return Factors(model.a, model.b, model.full)

    def objective(model: LowRank, own: Own) -> Loss:
        def loss(params: Factors, batch: Batch, key: Key) -> Array:
            return task.loss(model._replace(**params._asdict()), batch, key)

        return loss

    begin, step = local_training(task, local, start=lambda model, own: factors(model), objective=objective)

    def finish(model: LowRank, carry: Local, seen: Seen) -> Report:
        return Report(tree.sub(carry.params, factors(model)), weighting(seen), own=())

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        shares = reports.each.weight / jnp.maximum(reports.weight, 1e-30)
        each = jax.tree.map(lambda x, change: x[None] + change, factors(server.params), reports.value)
        mean = jax.tree.map(lambda x: jnp.tensordot(shares, x, 1), each)
        products = jax.tree.map(lambda a, b: jnp.einsum("k,kir,kro->io", shares, a, b), each.a, each.b)
        merged = merge(server.params, mean, products, reports.key)
        return Global(merged._replace(full=mean.full))

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update, reports="all")
    return Algorithm(task, task.init, Global, nothing, (exchange,))


def missed(mean: Factors, products: Params) -> Params:
    """The mean product minus the product of the mean factors."""
    return jax.tree.map(lambda p, a, b: p - a @ b, products, mean.a, mean.b)


def added(base: Params, scale: Array, products: Params) -> Params:
    """The weights with these products added, by scale."""
    return jax.tree.map(lambda w, p: w + scale.astype(w.dtype) * p.reshape(w.shape), base, products)
