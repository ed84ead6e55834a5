"""FedMuon, aligned: clients begin with the mean of their momenta, and each local step goes in part along the
last step of all.

    y <- y + (1 - gamma) u(g(y), m) + gamma d           T_i local steps from y = x; u is Muon's, with momentum m from mbar
    x <- x + mean(y_i - x),    d <- mean(y_i - x) / mean T_i,    mbar <- mean of m_i

What else the local optimiser keeps is averaged as its momentum is; whole numbers, such as its count of steps,
to the nearest. The directions of clients who disagree may still cancel, unlike those of `fedmuon`.

Liu et al., "FedMuon: Accelerating Federated Learning with Matrix Orthogonalization", 2025.

>>> import optax.contrib
>>> from fedjax_core import models
>>> algorithm = fedmuon_aligned(models.mlp(3, (4,), classes=2), local=optax.contrib.muon(0.02), gamma=0.5)
"""

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
    gradient,
    nothing,
    uniform,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, check_optimizer
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Batch, Key, Own, Params, known


class Global(NamedTuple):
    """The model x, the last mean step d, and the mean of what the local optimisers keep."""

    params: Params
    direction: Params
    opt: Any


class Change(NamedTuple):
    """A client's update: the change of its model, and the floating state of its optimiser."""

    params: Any
    opt: Any


@scheduled("task", "local", "gamma")
def fedmuon_aligned(task: Task, local: optax.GradientTransformation, gamma: float = 0.5) -> Algorithm:
    """Aligned FedMuon of clients who count alike; `local` is `optax.contrib.muon(...)`, or any other optimiser.

    `gamma`, from 0 to 1, is the weight of the last step of all; with 0 only the momenta are shared.
    """
    if known(gamma) and not 0 <= gamma <= 1:
        raise ValueError(f"fedmuon_aligned needs 0 <= gamma <= 1, got {gamma}")
    check_optimizer(local, "local")

    def begin(message: Global, own: Own, key: Key) -> Local:
        return Local(message.params, message.opt, own)

    def step(message: Global, carry: Local, batch: Batch, key: Key) -> tuple[Local, dict[str, Mean]]:
        grads, metrics = gradient(task, carry.params, batch, key)
        steps, opt = local.update(grads, carry.opt, carry.params)
        moved = jax.tree.map(
            lambda y, u, d: y + ((1 - gamma) * u + gamma * d).astype(y.dtype),
            carry.params,
            steps,
            message.direction,
        )
        return Local(moved, opt, carry.own), metrics

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        kept = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), carry.opt)
        change = Change(tree.sub(carry.params, message.params), kept)
        return Report(change, uniform(seen), own=(), stats={"steps": seen.steps})

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        total = jnp.sum(reports.each.weight * reports.each.stats["steps"])
        mean_steps = jnp.maximum(total / jnp.maximum(reports.weight, 1e-30), 1)
        moved, kept = reports.value
        return Global(
            tree.add(server.params, moved), tree.scale(1 / mean_steps, moved), _like(kept, server.opt)
        )

    def init(params: Params) -> Global:
        return Global(params, tree.zeros_like(params), local.init(params))

    exchange = Exchange(lambda server: server, Client(begin, step, finish), update)
    return Algorithm(task, task.init, init, nothing, (exchange,))


def _like(kept: Any, opt: Any) -> Any:
    """The means in the dtypes of what an optimiser keeps."""

    def one(mean: Any, x: Any) -> Any:
        return (
            mean.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.round(mean).astype(x.dtype)
        )

    return jax.tree.map(one, kept, opt)
