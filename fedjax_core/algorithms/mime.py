"""Mime: local steps that mimic the central optimiser, with its state held still and the local gradient's noise taken out.

    exchange 1    c = mean_i grad f_i(x)                                 each client passes once over its data
    exchange 2    y <- y - base(g(y) - g(x) + c; s), s fixed             local steps from y = x, the two g on the same batch
    server        x <- x + server_lr mean(y_i - x),   s <- state of base after c

Karimireddy et al., "Breaking the centralized barrier for cross-device federated learning", NeurIPS 2021, algorithm 1.
Two exchanges cross the wire in a round.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = mime(models.linear(features=3), base=optax.sgd(0.1, momentum=0.9))
>>> len(algorithm.exchanges)
2
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
    check_optimizer,
    gradient,
    nothing,
)
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Own, Params


class Global(NamedTuple):
    """The model x, the base optimiser's state s, and this round's mean gradient c at x."""

    params: Params
    opt: optax.OptState
    control: Params


class Gradient(NamedTuple):
    """The sum of a client's gradients at x, and over how many examples."""

    total: Params
    examples: Array


def mime(task: Task, base: optax.GradientTransformation, server_lr: float = 1.0) -> Algorithm:
    """Mime with any optax optimiser as `base`; clients count by their examples."""
    base = check_optimizer(base, "base")
    look = Exchange(lambda server: server.params, _whole_gradient(task), _keep_control, work="once")

    def step(message: Global, params: Params, batch: Batch, key: Key) -> tuple[Params, dict[str, Mean]]:
        here, seen = gradient(task, params, batch, key)
        start, _ = gradient(task, message.params, batch, key)
        corrected = jax.tree.map(lambda g, g_x, c: g - g_x + c, here, start, message.control)
        change, _ = base.update(corrected, message.opt, params)
        return optax.apply_updates(params, change), seen

    def finish(message: Global, params: Params, seen: Seen) -> Report:
        return Report(tree.sub(params, message.params), by_examples(seen), own=())

    def update(server: Global, reports: Aggregate) -> Global:
        _, opt = base.update(server.control, server.opt, server.params)
        return Global(tree.add(server.params, tree.scale(server_lr, reports.value)), opt, server.control)

    train = Exchange(lambda server: server, Client(lambda message, own, key: message.params, step, finish), update)

    def init(params: Params) -> Global:
        return Global(params, base.init(params), jax.tree.map(jnp.zeros_like, params))

    return Algorithm(task, task.init, init, nothing, (look, train))


def _keep_control(server: Global, reports: Aggregate) -> Global:
    return server._replace(control=reports.value)


def _whole_gradient(task: Task) -> Client:
    """A client that reports the gradient of its whole data at the broadcast model."""

    def begin(params: Params, own: Own, key: Key) -> Gradient:
        return Gradient(tree.zeros_like(tree.wide(params)), jnp.float32(0))

    def step(params: Params, carry: Gradient, batch: Batch, key: Key) -> tuple[Gradient, dict[str, Mean]]:
        examples = jnp.sum(batch.mask)
        grads, _ = gradient(task, params, batch, key)
        return Gradient(tree.add(carry.total, tree.scale(examples, tree.wide(grads))), carry.examples + examples), {}

    def finish(params: Params, carry: Gradient, seen: Seen) -> Report:
        return Report(tree.scale(1 / jnp.maximum(carry.examples, 1), carry.total), by_examples(seen), own=())

    return Client(begin, step, finish)
