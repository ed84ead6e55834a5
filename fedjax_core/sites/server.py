"""The server's half of a round over real sites, compiled once: broadcast, what comes of one report, how they add, what they conclude to."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.algorithms.base import Seen
from fedjax_core.round import Round, State
from fedjax_core.types import Array, Key


class Server(NamedTuple):
    """The server's part of a round, compiled; all but the last by exchange."""

    sent: list[Any]  # the shapes of what a site sends
    broadcast: list[Any]
    fine: list[Any]  # whether what a report expands to may be used; None where that is what was sent, as the gate has seen
    zero: list[Any]
    add: list[Any]  # what a report expands to, times a factor or as it is, in place
    conclude: list[Any]  # (the state, the size of all reports together)


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

    def fine(e: int, uplink: Any, sent: Any, weight: Array) -> Array:
        return composed.receive(e, uplink, sent, weight)[1]

    def as_sent(e: int) -> bool:
        """Whether a report expands to the very numbers that were sent."""
        found = jax.make_jaxpr(lambda uplink, sent: composed.receive(e, uplink, sent, jnp.float32(0))[0])(state.uplink[e], shapes[e]).jaxpr
        return found.outvars == found.invars[len(jax.tree.leaves(state.uplink[e])) :]

    def zero(e: int, cohort: int) -> Any:
        return composed.aggregator.zero(jax.eval_shape(partial(composed.receive, e), state.uplink[e], shapes[e], jnp.float32(0))[0], cohort)

    def add(e: int, acc: Any, uplink: Any, sent: Any, weight: Array, place: Array, factor: Array | None) -> Any:
        update = composed.receive(e, uplink, sent, weight)[0]
        update = update if factor is None else jax.tree.map(lambda x: x * factor.astype(x.dtype), update)
        return composed.aggregator.add(acc, jax.tree.map(lambda x: x[None], update), weight[None], place[None])

    def conclude(e: int, state: State, acc: Any, weight: Array, clients: Array) -> tuple[State, Array | None]:
        size = None if acc is None else tree.norm(composed.aggregator.value(acc))
        return composed.conclude(e, state, acc, weight, clients), size

    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = [jax.eval_shape(partial(sent, e), state.server, state.uplink[e], kept, key) for e in exchanges]
    return Server(
        sent=shapes,
        broadcast=[jax.jit(exchange.broadcast) for exchange in composed.algorithm.exchanges],
        fine=[None if as_sent(e) else jax.jit(partial(fine, e)) for e in exchanges],
        zero=[jax.jit(partial(zero, e), static_argnums=0) for e in exchanges],
        add=[jax.jit(partial(add, e), donate_argnums=0) for e in exchanges],
        conclude=[jax.jit(partial(conclude, e)) for e in exchanges],
    )
