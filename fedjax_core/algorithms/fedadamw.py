"""FedAdamW: AdamW at the clients, which begins with the mean of their second moments and is pulled along the
mean step of all.

    m <- b1 m + (1 - b1) g(y),   v <- b2 v + (1 - b2) g(y)^2            from m = 0 and v = vbar
    y <- y - lr (m' / (sqrt(v') + eps) + alpha D + decay y)             local steps k = 1, 2, ... from y = x
    x <- mean of y_i,   D <- -mean(y_i - x) / (lr mean T_i),   vbar <- mean of v_i, block by block

with m' = m / (1 - b1^k) and v' = v / (1 - b2^t), where t counts the steps of all rounds. A block of v is a
leaf of the model, for which one number is sent.

Liu et al., "FedAdamW: A Communication-Efficient Optimizer with Convergence and Generalization Guarantees for
Federated Large Models", AAAI 2026, algorithm 2; blocks there are finer in attention.

>>> from fedjax_core import models
>>> algorithm = fedadamw(models.linear(features=3), lr=0.01)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Own, Params


class Global(NamedTuple):
    """The model x, the mean step D, the blocks of the mean second moment, and the steps of all rounds."""

    params: Params
    direction: Params
    second: Any
    steps: Array


class Local(NamedTuple):
    """The client's model, its moments, and the steps that it took."""

    params: Params
    m: Params
    v: Params
    taken: Array


class Change(NamedTuple):
    """A client's update."""

    params: Any
    second: Any


@scheduled("task", "lr", "alpha", "decay")
def fedadamw(
    task: Task,
    lr: float,
    alpha: float = 0.5,
    decay: float = 0.01,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    block: Callable[[Array], Array] = jnp.mean,
    weighting: Callable[[Seen], Array] = uniform,
) -> Algorithm:
    """FedAdamW with local step size `lr`. `block`: a leaf of v -> the array sent for it, which must broadcast
    to the leaf's shape.

    `jnp.mean` sends a number for each leaf, and `lambda v: v` all of it.
    """

    def begin(message: Global, own: Own, key: Key) -> Local:
        params = message.params
        second = jax.tree.map(lambda v, p: jnp.broadcast_to(v, p.shape), message.second, params)
        return Local(params, tree.zeros_like(params), second, jnp.float32(0))

    def step(message: Global, carry: Local, batch: Batch, key: Key) -> tuple[Local, dict[str, Mean]]:
        grads, metrics = gradient(task, carry.params, batch, key)
        k = carry.taken + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, carry.m, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, carry.v, grads)
        first, second = (
            tree.scale(1 / _unbiased(b1, k), m),
            tree.scale(1 / _unbiased(b2, message.steps + k), v),
        )
        moved = jax.tree.map(
            lambda y, m, v, d: y - lr * (m / (jnp.sqrt(v) + eps) + alpha * d + decay * y),
            carry.params,
            first,
            second,
            message.direction,
        )
        return Local(moved, m, v, k), metrics

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        change = Change(
            tree.sub(carry.params, message.params), tree.sub(jax.tree.map(block, carry.v), message.second)
        )
        return Report(change, weighting(seen), own=(), stats={"steps": seen.steps})

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        steps = jnp.sum(reports.each.weight * reports.each.stats["steps"]) / jnp.maximum(
            reports.weight, 1e-30
        )
        change = reports.value
        return Global(
            tree.add(server.params, change.params),
            tree.scale(-1 / (lr * jnp.maximum(steps, 1)), change.params),
            tree.add(server.second, change.second),
            server.steps + steps,
        )

    def init(params: Params) -> Global:
        zeros = tree.zeros_like(params)
        return Global(params, zeros, jax.tree.map(block, zeros), jnp.float32(0))

    exchange = Exchange(lambda server: server, Client(begin, step, finish), update)
    return Algorithm(task, task.init, init, nothing, (exchange,))


def _unbiased(decay: float, steps: Array) -> Array:
    """1 - decay^steps with all digits: the plain difference in float32 is off by 6e-5 for 0.999^1."""
    return -jnp.expm1(steps * jnp.log1p(decay - 1))
