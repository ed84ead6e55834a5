"""Canary clients: they do not train, and send a direction of their own, as long as clipping allows. How far
the model moves along these directions shows how much of a single client is in it.

    algorithm = planted(algorithm)          the same, except for clients marked as canaries
    state = marked(sim.init(key), clients)  those at these positions are: a run of its own, or beside the others
    one_shot(directions(k, params), way, delta)

A canary needs an example, as clients without examples take no part.

>>> directions(3, {"w": np.zeros((2, 5))}).shape
(3, 10)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, Client, Exchange, Report, Seen
from fedjax_core.types import Array, Batch, Carry, Key, Message, Own, Params

_LONG = 1e6  # a norm that every clip shortens


class Planted(NamedTuple):
    """A client's state: that of the algorithm, and its number as a canary."""

    own: Own
    canary: Array  # int32; -1 for a client that is not one


def planted(algorithm: Algorithm, size: float = _LONG) -> Algorithm:
    """The algorithm with clients that may be `marked` as canaries, which report a direction of norm `size`
    instead of an update."""

    def exchange_of(exchange: Exchange) -> Exchange:
        client = exchange.client

        def begin(message: Message, own: Planted, key: Key) -> Carry:
            return client.begin(message, own.own, key), own.canary

        def step(message: Message, carry: Carry, batch: Batch, key: Key) -> tuple[Carry, dict[str, Any]]:
            inner, seen = client.step(message, carry[0], batch, key)
            return (inner, carry[1]), seen

        def finish(message: Message, carry: Carry, seen: Seen) -> Report:
            report, canary = client.finish(message, carry[0], seen), carry[1]
            sent = tree.like(
                tree.scale(size, _direction(jnp.maximum(canary, 0), tree.wide(report.update))), report.update
            )
            return report._replace(
                update=tree.where(canary >= 0, sent, report.update), own=Planted(report.own, canary)
            )

        return exchange._replace(client=Client(begin, step, finish))

    personal = algorithm.personal
    return algorithm._replace(
        init_client=lambda params: Planted(algorithm.init_client(params), jnp.int32(-1)),
        exchanges=tuple(map(exchange_of, algorithm.exchanges)),
        personal=None if personal is None else lambda server, own: personal(server, own.own),
        name=f"planted {algorithm.name}",
    )


def marked(state: Any, positions: Any) -> Any:
    """The state in which the clients at these positions are canaries 0, 1, ..."""
    positions = jnp.asarray(np.asarray(positions), jnp.int32)
    own = state.clients.own
    if not isinstance(own, Planted):
        raise TypeError(
            "canaries are marked in the state of an algorithm that knows them: compose planted(algorithm)"
        )
    canary = own.canary.at[positions].set(jnp.arange(len(positions), dtype=jnp.int32))
    return state._replace(clients=state.clients._replace(own=own._replace(canary=canary)))


def directions(number: int, params: Params) -> np.ndarray:
    """[number, P]: the directions of the first canaries, each of norm 1, for updates shaped like `params`."""
    shapes = tree.shapes(jax.tree.map(jnp.asarray, params))
    return np.asarray(
        jax.lax.map(lambda i: ravel_pytree(_direction(i, shapes))[0], jnp.arange(number, dtype=jnp.int32))
    )


def _direction(canary: Array, shapes: Any) -> Any:
    structure: Any
    leaves, structure = jax.tree.flatten(shapes)
    key = jax.random.fold_in(jax.random.key(20), canary)
    drawn = [
        jax.random.normal(jax.random.fold_in(key, i), x.shape, jnp.float32) for i, x in enumerate(leaves)
    ]
    return structure.unflatten(tree.scale(1 / tree.norm(drawn), drawn))
