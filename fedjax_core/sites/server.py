"""The server's half of a round over real sites, compiled once: broadcast, what comes of one report, how they add, what they conclude to."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.algorithms.base import Seen
from fedjax_core.round import Round
from fedjax_core.types import Array, Key


class Server(NamedTuple):
    """The server's part of a round, compiled; all but the last three by exchange."""

    sent: list[Any]  # the shapes of what a site sends
    broadcast: list[Any]
    receive: list[Any]
    conclude: list[Any]
    zero: Any
    add: Any
    size: Any  # of all reports together


@lru_cache(maxsize=16)
def server_half(composed: Round) -> Server:
    """The server's part of `composed`; of the same `Round` the same, so that it is compiled once."""
    exchanges = range(len(composed.algorithm.exchanges))
    state = jax.eval_shape(lambda: composed.init(jax.random.key(0), 1))
    kept = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.clients)

    def sent(e: int, server: Any, uplink: Any, kept: Any, key: Key) -> Any:
        exchange = composed.algorithm.exchanges[e]
        message = exchange.broadcast(server)
        carry = exchange.client.begin(message, kept.own, key)
        return composed.report(e, message, uplink, kept, carry, Seen(jnp.float32(1), jnp.float32(1)), key)[0]

    def add(acc: Any, update: Any, weight: Array, place: Array) -> Any:
        return composed.aggregator.add(acc, jax.tree.map(lambda x: x[None], update), weight[None], place[None])

    key = jax.eval_shape(lambda: jax.random.key(0))
    return Server(
        sent=[jax.eval_shape(partial(sent, e), state.server, state.uplink[e], kept, key) for e in exchanges],
        broadcast=[jax.jit(exchange.broadcast) for exchange in composed.algorithm.exchanges],
        receive=[jax.jit(partial(composed.receive, e)) for e in exchanges],
        conclude=[jax.jit(partial(composed.conclude, e)) for e in exchanges],
        zero=jax.jit(composed.aggregator.zero, static_argnums=1),
        add=jax.jit(add),
        size=jax.jit(lambda acc: tree.norm(composed.aggregator.value(acc))),
    )
