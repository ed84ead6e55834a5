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
    gradient,
    nothing,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import At, Local, check_optimizer, local_training
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Own, Params
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The model x, the base optimiser's state s, and this round's mean gradient c at x."""

    params: Params
    opt: optax.OptState
    control: Params


class Gradient(NamedTuple):
    """The sum of a client's gradients at x, and over how many examples."""

    total: Params
    examples: Array


@scheduled("task", "base", "server_lr")
def mime(task: Task, base: optax.GradientTransformation, server_lr: float = 1.0) -> Algorithm:
    """Mime with any optax optimiser as `base`; clients count by their examples."""
    base = check_optimizer(base, "base")
    look = Exchange(lambda server: server.params, _whole_gradient(task), _keep_control, work=ONCE)

    def mimicked(here: Params, at: At) -> Params:
        start, _ = gradient(task, at.message.params, at.batch, at.key)
        corrected = jax.tree.map(lambda g, g_x, c: g - g_x + c, here, start, at.message.control)
        return base.update(corrected, at.message.opt, at.params)[0]

    begin, step = local_training(
        task,
        optax.identity(),  # the correction is the whole step: the state s is the message's, and does not change
        start=lambda message, own: message.params,
        correct=mimicked,
    )

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        return Report(tree.sub(carry.params, message.params), by_examples(seen), own=())

    def update(server: Global, reports: Aggregate) -> Global:
        _, opt = base.update(server.control, server.opt, server.params)
        return Global(tree.add(server.params, tree.scale(server_lr, reports.value)), opt, server.control)

    train = Exchange(lambda server: server, Client(begin, step, finish), update)

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
