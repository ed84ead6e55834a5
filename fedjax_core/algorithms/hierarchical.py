"""HierFAVG: clients average in their region, and regions average with one another every few rounds.

    y_i <- local steps from x_g,   g the region of client i         each round
    x_g <- x_g + mean over the region's clients of (y_i - x_g)      each round
    x, x_g <- sum_g n_g x_g / sum_g n_g                             every `every` rounds

n_g is the weight of all reports in region g since the last mean of all. With one region, or with a mean of
all in every round, it is FedAvg. Between the means of all, messages stay within the region.

Liu, Zhang, Song and Letaief, "Client-Edge-Cloud Hierarchical Federated Learning", ICC 2020, algorithm 1.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = hierarchical(models.linear(features=3), optax.sgd(0.1), regions=[0, 0, 1, 1], every=5)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import (
    Aggregate,
    Algorithm,
    Client,
    Exchange,
    Report,
    Seen,
    Told,
    by_examples,
    nothing,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.checks import at_least
from fedjax_core.task import Task
from fedjax_core.types import Array, Params


class Global(NamedTuple):
    """The model of the last mean of all, and the regions' models since."""

    params: Params
    regions: Params  # leaves [G, ...]
    weight: Array  # [G] float32: of the reports since the last mean of all
    round: Array  # int32: rounds since then


@scheduled("task", "local")
def hierarchical(
    task: Task,
    local: optax.GradientTransformation,
    regions: Sequence[int],
    every: int = 1,
    *,
    weighting: Callable[[Seen], Array] = by_examples,
) -> Algorithm:
    """FedAvg in two stages: `regions` [N] has the number of each client's region, from 0; regions average
    every `every` rounds."""
    at_least(1, every=every)
    of = np.asarray(regions)
    if (
        of.ndim != 1
        or not of.size
        or of.dtype.kind not in "iu"
        or (np.bincount(of) == 0).any()
        or of.min() < 0
    ):
        raise ValueError(
            f"regions must be a number from 0 for each client, none of them left out, got {regions!r}"
        )
    count = int(of.max()) + 1

    def mine(received: Told) -> Params:
        return tree.take(received.message, received.mine)

    begin, step = local_training(task, local, start=lambda received, own: mine(received))

    def finish(received: Told, carry: Local, seen: Seen) -> Report:
        moved = tree.sub(carry.params, mine(received))
        return Report(moved, weighting(seen), own=(), stats={"region": received.mine}, slot=received.mine)

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        weight = server.weight.at[reports.each.stats["region"]].add(reports.each.weight)
        moved = jax.tree.map(lambda x, change: x + change.reshape(x.shape), server.regions, reports.value)
        shares = weight / jnp.maximum(jnp.sum(weight), 1e-30)
        mean = jax.tree.map(lambda x: jnp.tensordot(shares.astype(x.dtype), x, 1), moved)
        met = Global(mean, _alike(mean, count), jnp.zeros(count), jnp.int32(0))
        apart = Global(server.params, moved, weight, server.round + 1)
        return jax.tree.map(lambda x, y: jnp.where(server.round + 1 >= every, x, y), met, apart)

    exchange = Exchange(
        lambda server: server.regions,
        Client(begin, step, finish),
        update,
        slots=count,
        address=lambda server, positions: jnp.asarray(of, jnp.int32).at[positions].get(mode="clip"),
    )
    begun = Algorithm(
        task,
        task.init,
        lambda params: Global(params, _alike(params, count), jnp.zeros(count), jnp.int32(0)),
        nothing,
        (exchange,),
    )
    return begun._replace(population=len(of))


def _alike(params: Params, count: int) -> Params:
    """The model copied, leaves [count, ...]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), params)
