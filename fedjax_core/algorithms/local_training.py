"""Shared parts of most algorithms: a client's local steps, and the server's step along the clients' mean
change.

    y <- y - optimizer(correct(g(y)))       each local step, from y = start(message, own)
    x <- x - optimizer(-change)             the server's step

An algorithm that differs from FedAvg by a term is little more than that term. SCAFFOLD is a `correct`, a loss
with another summand an `objective`, and a gradient taken elsewhere or with noise a `gradient`:

>>> import optax
>>> from fedjax_core import models
>>> def sharpness_aware(task, params, batch, key):  # FedSAM: the gradient where the loss is larger, a little uphill
...     grads, _ = gradient(task, params, batch, key)
...     return gradient(task, tree.add(params, tree.scale(0.05 / tree.norm(grads), grads)), batch, key)
>>> begin, step = local_training(models.linear(features=3), optax.sgd(0.1), gradient=sharpness_aware)
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from fedjax_core import keys, tree
from fedjax_core.algorithms.base import Client, Report, Seen, by_examples, gradient
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Message, Own, Params, Update, known

log = logging.getLogger("fedjax_core")

Loss: TypeAlias = Callable[[Params, Batch, Key], Array]
"""(params, batch, key) -> [B], as `Task.loss`."""
Gradient: TypeAlias = Callable[[Task, Params, Batch, Key], tuple[Params, dict[str, Mean]]]
"""(task, params, batch, key) -> (gradient, metrics), as `fedjax_core.algorithms.gradient`."""


class Local(NamedTuple):
    """A client's carry from one local step to the next."""

    params: Params
    opt: optax.OptState
    own: Own  # what it kept when it began


class At(NamedTuple):
    """The point of a local step: all that the step may depend on."""

    params: Params
    message: Message
    own: Own
    batch: Batch
    key: Key


Begin: TypeAlias = Callable[[Message, Own, Key], Local]
LocalStep: TypeAlias = Callable[[Message, Local, Batch, Key], tuple[Local, dict[str, Mean]]]


def local_training(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    start: Callable[[Message, Own], Params] = lambda message, own: message,
    correct: Callable[[Params, At], Params] | None = None,
    objective: Callable[[Message, Own], Loss] | None = None,
    gradient: Gradient = gradient,
) -> tuple[Begin, LocalStep]:
    """A client's (`begin`, `step`): gradient steps by `optimizer`, which begins anew in every round.

    start: (message, own) -> the model that a client begins with; without it the message is the model.
    correct: (gradient, where the client is) -> what the optimiser is given instead.
    objective: (message, own) -> the loss that this client trains on, [B]; without it the task's.
    gradient: (task, params, batch, key) -> (gradient, metrics), in the place of that of the mean loss.

    Raises where `optimizer` is not an optimiser. Warns where it has a schedule, which would begin anew in
    every round.
    """
    optimizer = check_local(optimizer, task)

    def begin(message: Message, own: Own, key: Key) -> Local:
        params = start(message, own)
        return Local(params, optimizer.init(params), own)

    def step(message: Message, carry: Local, batch: Batch, key: Key) -> tuple[Local, dict[str, Mean]]:
        params, opt, own = carry
        trained = task if objective is None else task._replace(loss=objective(message, own))
        grads, metrics = gradient(trained, params, batch, key)
        if correct is not None:
            grads = correct(grads, At(params, message, own, batch, key))
        change, opt = optimizer.update(grads, opt, params)
        after = optax.apply_updates(params, change)
        if task.statistics.names:
            after = tree.combine(task.statistics.update(params, batch, key), after)
        return Local(after, opt, own), metrics

    return begin, step


class Measured(NamedTuple):
    """A client's carry of `look`: the sum so far, its number of examples, and the client's state when it
    began."""

    total: Any
    examples: Array
    own: Own


def look(
    empty: Callable[[Message, Own], Any],
    measure: Callable[[Message, Own, Batch, Key], Any],
    report: Callable[[Message, Own, Any, Seen], Report],
) -> Client:
    """A client that does not train but measures something on its data, for exchanges with `work=ONCE`.

    empty: (message, own) -> zeros of the shape of what is measured.
    measure: (message, own, batch, key) -> the mean over the batch's examples, padding left out.
    report: (message, own, the mean over all of the client's examples, seen) -> what it reports, and keeps.
    """

    def begin(message: Message, own: Own, key: Key) -> Measured:
        return Measured(empty(message, own), jnp.float32(0), own)

    def step(message: Message, carry: Measured, batch: Batch, key: Key) -> tuple[Measured, dict[str, Mean]]:
        examples = jnp.sum(batch.mask)
        measured = tree.scale(examples, tree.wide(measure(message, carry.own, batch, key)))
        return Measured(tree.add(carry.total, measured), carry.examples + examples, carry.own), {}

    def finish(message: Message, carry: Measured, seen: Seen) -> Report:
        return report(message, carry.own, tree.scale(1 / jnp.maximum(carry.examples, 1), carry.total), seen)

    return Client(begin, step, finish)


def whole_gradient(
    task: Task,
    report: Callable[[Message, Own, Params, Seen], Report] = lambda message, own, grads, seen: Report(
        grads, by_examples(seen), own=own
    ),
    at: Callable[[Message], Params] = lambda message: message,
) -> Client:
    """A client that computes the gradient of its mean loss over all its examples, at the model `at(message)`,
    and reports it (`look`)."""
    return look(
        lambda message, own: tree.zeros_like(tree.wide(at(message))),
        lambda message, own, batch, key: gradient(task, at(message), batch, key)[0],
        report,
    )


def whole_loss(
    task: Task,
    report: Callable[[Message, Own, Array, Seen], Report],
    at: Callable[[Message], Params] = lambda message: message,
) -> Client:
    """A client that computes its mean loss over all its examples with the model `at(message)`, and reports by
    `report`."""
    return look(
        lambda message, own: jnp.float32(0),
        lambda message, own, batch, key: task.mean_loss(at(message), batch, key).astype(jnp.float32),
        report,
    )


def keep(own: Own) -> Report:
    """The report of a silent exchange: only the client's new state."""
    return Report((), jnp.float32(0), own=own)


def server_step(
    optimizer: optax.GradientTransformation, averaged: Sequence[str] = ()
) -> Callable[[Params, optax.OptState, Update], tuple[Params, optax.OptState]]:
    """A function (params, optimiser's state, mean change) -> the first two after a step of `optimizer`.

    The optimiser gets the negated change as a gradient. Leaves under the names `averaged` move by the mean
    change itself: running statistics can only be averaged.
    """
    check_optimizer(optimizer, "server")

    def step(params: Params, opt: optax.OptState, change: Update) -> tuple[Params, optax.OptState]:
        move, opt = optimizer.update(jax.tree.map(lambda x: -x, change), opt, params)
        if averaged:
            move = tree.combine(tree.partition(change, averaged)[0], move)
        return optax.apply_updates(params, move), opt

    return step


def check_optimizer(optimizer: optax.GradientTransformation, name: str) -> optax.GradientTransformation:
    """`optimizer`, checked: raises where it is not an optax optimiser."""
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(
            f"{name}= must be an optax optimiser (an optax.GradientTransformation), got {type(optimizer).__name__} {optimizer!r}. "
            f"For a learning rate of 0.1 write {name}=optax.sgd(0.1)."
        )
    return optimizer


def check_local(optimizer: Any, task: Task, name: str = "local") -> optax.GradientTransformation:
    """A client's optimiser for the task's parameters, checked: raises where it is not one, and warns where it
    has a schedule in it."""
    checked = check_optimizer(optimizer, name)
    state = jax.eval_shape(lambda key: checked.init(task.init(key)), keys.shape())
    scheduled = any(_is_schedule(part) for part in jax.tree.leaves(state, is_leaf=_is_schedule))
    if scheduled and known(jnp.zeros(())):  # not while a program is traced: the warning came before
        log.warning(
            "the schedule in %s= begins anew at every client and in every round, as it counts a client's own steps; for one that goes by "
            "rounds write %s=lambda round: optax.sgd(schedule(round)), or fc.algorithms.by_round",
            name,
            name,
        )
    return checked


def _is_schedule(state: Any) -> bool:
    return isinstance(state, (optax.ScaleByScheduleState, optax.InjectStatefulHyperparamsState))
