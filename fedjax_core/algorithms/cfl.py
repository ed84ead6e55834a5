"""Clustered federated learning: a cluster whose mean stands still while its clients pull apart is split in
two by their directions.

    y_i <- local steps from x_c,  c the cluster of client i,   d_i = y_i - x_c,   x_c <- x_c + mean of d_i in c
    split c where  |mean of d_i| < still  and  max |d_i| > apart:  in the two parts whose largest cosine across is least

That bipartition is single linkage: the tree of largest cosines, without its weakest edge. Unlike in IFCA the
number of clusters need not be known; as there, clients are sent all models. The server sees every update, and
all clients of a cluster should be present when it splits.

Sattler, Müller and Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization
Under Privacy Constraints", IEEE TNNLS 2021, algorithms 1 and 3.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = cfl(models.linear(features=3), optax.sgd(0.1), population=8, clusters=4, still=0.05, apart=0.5)
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
    Told,
    by_examples,
)
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.checks import at_least
from fedjax_core.task import Task
from fedjax_core.types import Array, Params


class Global(NamedTuple):
    """The mean over clients of their clusters' models, the models, and each client's cluster."""

    params: Params
    models: Params  # leaves [clusters, ...]
    cluster: Array  # [N] int32: of each client
    made: Array  # int32: clusters so far


@scheduled("task", "local")
def cfl(
    task: Task,
    local: optax.GradientTransformation,
    population: int,
    clusters: int,
    still: float,
    apart: float,
) -> Algorithm:
    """CFL of `population` clients in at most `clusters` clusters, which split by the norms `still` and
    `apart` of changes in a round."""
    at_least(1, population=population, clusters=clusters)
    if not 0 < still < apart:
        raise ValueError(
            f"still and apart are norms of a mean change and of a client's, 0 < still < apart, got {still} and {apart}"
        )

    def mine(received: Told) -> Params:
        return tree.take(received.message, received.mine)

    begin, step = local_training(task, local, start=lambda received, own: mine(received))

    def finish(received: Told, carry: Local, seen: Seen) -> Report:
        return Report(tree.sub(carry.params, mine(received)), by_examples(seen), own=received.mine)

    def update(server: Global, reports: Aggregate) -> Global:
        assert reports.each is not None
        weight, position = reports.each.weight, reports.each.position
        rows = jnp.concatenate(
            [x.reshape(len(weight), -1).astype(jnp.float32) for x in jax.tree.leaves(reports.value)], axis=1
        )
        norms = jnp.linalg.norm(rows, axis=1)
        alike = rows @ rows.T / jnp.maximum(norms[:, None] * norms[None], 1e-30)
        models, cluster, count = server.models, server.cluster, server.made
        for c in range(clusters):
            here = (weight > 0) & (server.cluster.at[position].get(mode="clip") == c)
            shares = jnp.where(here, weight, 0) / jnp.maximum(jnp.sum(jnp.where(here, weight, 0)), 1e-30)
            moved = jax.tree.map(
                lambda x, d, s=shares, c=c: x.at[c].add(jnp.tensordot(s.astype(d.dtype), d, 1)),
                models,
                reports.value,
            )
            stands = (jnp.linalg.norm(shares @ rows) < still) & (jnp.max(jnp.where(here, norms, 0)) > apart)
            splits = stands & (count < clusters) & (jnp.sum(here) > 1)
            to = jnp.where(splits & here & bipartition(alike, here), position, population)
            cluster = cluster.at[to].set(count, mode="drop")
            models = jax.tree.map(
                lambda x, c=c, n=count, s=splits: jnp.where(s, x.at[n].set(x[c], mode="drop"), x), moved
            )
            count = count + splits.astype(jnp.int32)
        return Global(_mean(models, cluster), models, cluster, count)

    exchange = Exchange(
        lambda server: server.models,
        Client(begin, step, finish),
        update,
        reports="all",
        address=lambda server, positions: server.cluster.at[positions].get(mode="clip"),
    )

    def init(params: Params) -> Global:
        models = jax.tree.map(lambda x: jnp.broadcast_to(x, (clusters, *jnp.shape(x))), params)
        return Global(params, models, jnp.zeros(population, jnp.int32), jnp.int32(1))

    return Algorithm(
        task,
        task.init,
        init,
        lambda params: jnp.int32(0),
        (exchange,),
        personal=lambda server, own: jax.tree.map(lambda x: x[own], server.models),
        population=population,
    )


def bipartition(alike: Array, here: Array) -> Array:
    """[K] bool: one of the two parts of the clients `here` for which the largest of `alike` [K, K] across
    them is least."""
    both = here[:, None] & here[None]

    def through(k: int, linked: Array) -> Array:
        return jnp.maximum(linked, jnp.minimum(linked[:, k, None], linked[None, k]))

    # the weakest of the best way between two
    linked = jax.lax.fori_loop(0, len(here), through, jnp.where(both, alike, -jnp.inf))
    weakest = jnp.where(both & ~jnp.eye(len(here), dtype=bool), linked, jnp.inf)
    one = jnp.argmin(jnp.min(weakest, axis=1))
    return here & (linked[one] <= jnp.min(weakest)) & (jnp.arange(len(here)) != one)


def _mean(models: Params, cluster: Array) -> Params:
    return jax.tree.map(lambda x: jnp.mean(x[cluster], axis=0), models)
