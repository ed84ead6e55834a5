"""Mime and MimeLite: local steps that mimic the central optimiser, with its state held still.

    exchange 1    c = mean_i grad f_i(x)                                 each client passes once over its data
    exchange 2    y <- y - base(g(y) - g(x) + c; s), s fixed             local steps from y = x, the two g on the same batch
                  y <- y - base(g(y); s), s fixed                        in MimeLite
    server        x <- x + server_lr mean(y_i - x),   s <- state of base after c

Karimireddy et al., "Breaking the centralized barrier for cross-device federated learning", NeurIPS 2021,
algorithm 1. Two exchanges cross the wire in a round.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = mime(models.linear(features=3), base=optax.sgd(0.1, momentum=0.9))
>>> len(algorithm.exchanges)
2
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
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
from fedjax_core.algorithms.local_training import At, Local, check_optimizer, local_training, whole_gradient
from fedjax_core.task import Task
from fedjax_core.types import Params
from fedjax_core.work import ONCE


class Global(NamedTuple):
    """The model x, the base optimiser's state s, and this round's mean gradient c at x."""

    params: Params
    opt: optax.OptState
    control: Params


@scheduled("task", "base", "server_lr")
def mime(task: Task, base: optax.GradientTransformation, server_lr: float = 1.0) -> Algorithm:
    """Mime with any optax optimiser as `base`; clients count by their examples."""

    def without_noise(here: Params, point: At) -> Params:
        start, _ = gradient(task, point.message.params, point.batch, point.key)
        return jax.tree.map(lambda g, g_x, c: g - g_x + c, here, start, point.message.control)

    return _mime(task, base, server_lr, without_noise)


@scheduled("task", "base", "server_lr")
def mimelite(task: Task, base: optax.GradientTransformation, server_lr: float = 1.0) -> Algorithm:
    """Mime with plain gradients in the local steps, which is half of the work; clients count by their
    examples."""
    return _mime(task, base, server_lr, lambda here, point: here)


def _mime(
    task: Task, base: optax.GradientTransformation, server_lr: float, correct: Callable[[Params, At], Params]
) -> Algorithm:
    base = check_optimizer(base, "base")
    look = Exchange(lambda server: server.params, whole_gradient(task), _keep_control, work=ONCE)
    begin, step = local_training(
        task,
        # the correction is the whole step: the state s is the message's, and does not change
        optax.identity(),
        start=lambda message, own: message.params,
        correct=lambda here, point: base.update(correct(here, point), point.message.opt, point.params)[0],
    )

    def finish(message: Global, carry: Local, seen: Seen) -> Report:
        return Report(tree.sub(carry.params, message.params), by_examples(seen), own=())

    def update(server: Global, reports: Aggregate) -> Global:
        _, opt = base.update(server.control, server.opt, server.params)
        return Global(tree.add(server.params, tree.scale(server_lr, reports.value)), opt, server.control)

    train = Exchange(lambda server: server, Client(begin, step, finish), update)
    return Algorithm(
        task,
        task.init,
        lambda params: Global(params, base.init(params), tree.zeros_like(params)),
        nothing,
        (look, train),
    )


def _keep_control(server: Global, reports: Aggregate) -> Global:
    return server._replace(control=reports.value)
