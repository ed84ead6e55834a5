"""The server's half of a round over real sites, compiled once: broadcast, expand and add reports, conclude.

A call of a compiled program takes about 0.1 ms, whatever it does. So small reports wait until there are
`TOGETHER` of them, or no more come; then one program adds them one after another, and concludes the exchange
after the last. Large ones are added as they come.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_core import keys, tallies, tree
from fedjax_core.aggregators.slotted import plain
from fedjax_core.algorithms.base import Each, Seen
from fedjax_core.constants import remembered
from fedjax_core.round import Kept, Round, State, state_shapes, wire_of
from fedjax_core.sites.coordinator.weighing import Weigher, counters, weigher
from fedjax_core.sites.protocol.report import beside, stats_of
from fedjax_core.sites.wire.trees import TreeSpec
from fedjax_core.types import Array, Key
from fedjax_core.uplink.base import alone

TOGETHER, SMALL_BYTES = 16, 64 << 10
"""How many small reports one program adds, and the most bytes of a small report."""


class Server(NamedTuple):
    """The server's half of a round, compiled, by exchange."""

    like: list[Any]  # shapes of a report, before masking
    form: list[TreeSpec]  # spec of a report
    stats: list[dict[str, Any]]  # shapes of its stats, which the server reads client by client
    beside: list[frozenset[str]]  # names of its tensors that are not part of the update
    small: list[bool]  # whether a report has at most SMALL_BYTES
    broadcast: list[Any]
    """(server, downlink, round, key, the sites' positions) -> (what is sent, the downlink's new state)."""
    # (whether the expanded report may be used, its norm); None where it equals what was sent and validated
    fine: list[Any]
    weigh: list[Weigher | None]  # the weight of a report
    # tensor name -> a stat of the report, where examples and steps alone determine it
    counters: list[dict[str, Weigher]]
    zero: list[Any]
    add: list[Any]  # adds an expanded report, times a factor or None, in place
    add_all: list[Any]  # adds several reports, `Small`, to an accumulator or None
    conclude: list[Any]
    """Gives (state, norm of the sum, whose reports are in it or None), from an accumulator or None, reports
    or None, who reported, and words for noise."""


class Small(NamedTuple):
    """Reports that are added together: [TOGETHER, ...], of which the first `filled` are real."""

    sent: Any
    weights: np.ndarray
    places: np.ndarray
    factors: np.ndarray | None
    """The factors of their updates; None: all 1."""
    filled: np.int32


@remembered(maxsize=32)
def merged(composed: Round) -> Round:
    """The coordinator's half of a round of departments: sites send means of expanded updates, so only the
    uplink's `finish` is left."""
    plain: Any = {
        "encode": lambda state, own, update, sender: (tree.wide(update), own),
        "expand": lambda state, update, shapes: update,
    }
    return composed._replace(uplink=composed.uplink._replace(**plain))


def broadcast(composed: Round, e: int, state: State, sites: int) -> tuple[Any, State]:
    """(the message to each of the `sites` in exchange `e`, the state with the downlink's new state)."""
    positions = np.arange(sites, dtype=np.int32)
    sent, downlink = server_half(composed).broadcast[e](
        state.server, state.downlink, state.round, state.key, positions
    )
    return sent, state._replace(downlink=downlink)


@remembered(maxsize=16)
def server_half(composed: Round) -> Server:
    """The server's half of `composed`; cached by `Round`, so that it is compiled once."""
    exchanges = range(len(composed.algorithm.exchanges))
    state = state_shapes(composed)
    kept = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.clients)

    def broadcast(
        e: int, server: Any, downlink: Any, round: Array, key: Key, positions: Array
    ) -> tuple[Any, Any]:
        state = State(
            server=server,
            uplink=(),
            downlink=downlink,
            aggregator=(),
            clients=Kept((), ()),
            round=round,
            key=key,
        )
        sent, after = composed.broadcast(e, state, positions)
        return sent, after.downlink

    def sent(e: int, state: State, kept: Any, key: Key) -> Any:
        message = composed.told(e, state)
        carry = composed.algorithm.exchanges[e].client.begin(message, kept.own, key)
        return composed.report(
            e, message, state.uplink[e], kept, carry, Seen(jnp.float32(1), jnp.float32(1)), alone(key)
        ).wire

    def fine(e: int, uplink: Any, sent: Any, weight: Array) -> tuple[Array, Array]:
        update, good = composed.receive(e, uplink, sent, weight)
        return good, tree.norm(plain(update))

    def as_sent(e: int) -> bool:
        """Whether a report expands to exactly the numbers that were sent."""
        if composed.slots > 1:  # the slot's number must be checked
            return False
        update = wire_of(shapes[e]).update
        jaxpr = jax.make_jaxpr(lambda uplink, sent: composed.receive(e, uplink, sent, jnp.float32(0))[0])(
            state.uplink[e], update
        ).jaxpr
        return jaxpr.outvars == jaxpr.invars[len(jax.tree.leaves(state.uplink[e])) :]

    def zero(e: int, cohort: int) -> Any:
        read = jax.eval_shape(partial(composed.receive, e), state.uplink[e], shapes[e], jnp.float32(0))[0]
        return composed.aggregator.zero(read, cohort)

    def add(
        e: int, acc: Any, uplink: Any, sent: Any, weight: Array, place: Array, factor: Array | None
    ) -> Any:
        update = composed.receive(e, uplink, sent, weight)[0]
        update = update if factor is None else jax.tree.map(lambda x: x * factor.astype(x.dtype), update)
        return composed.aggregator.add(
            acc, jax.tree.map(lambda x: x[None], update), weight[None], place[None]
        )

    def add_all(e: int, cohort: int, acc: Any, uplink: Any, small: Small) -> Any:
        def one(i: Array, acc: Any) -> Any:
            sent, weight, place, factor = jax.tree.map(lambda x: x[i], small[:-1])
            return add(e, acc, uplink, sent, weight, place, factor)

        return lax.fori_loop(0, small.filled, one, zero(e, cohort) if acc is None else acc)

    def conclude(
        e: int, cohort: int, state: State, acc: Any, small: Small | None, weight: Array, clients: Array, reported: Array,
        each: Each | None, secret: Array,
    ) -> tuple[State, Array | None, Array | None]:  # fmt: skip
        acc = acc if small is None else add_all(e, cohort, acc, state.uplink[e], small)
        if acc is None and composed.algorithm.exchanges[e].update is not None:  # nobody was asked
            acc = zero(e, max(1, cohort))
        size = None if acc is None else tree.norm(composed.value(e, state, acc)[0])
        noise = jax.random.wrap_key_data(secret, impl=jax.random.key_impl(state.key))
        used = None if acc is None else tallies.kept_of(composed, e, state, acc)
        after = composed.conclude(e, state, acc, weight, clients, reported, reported, each=each, secret=noise)
        return after, size, used

    key, one_site = keys.shape(), jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = [jax.eval_shape(partial(sent, e), state, kept, key) for e in exchanges]
    return Server(
        like=shapes,
        form=[TreeSpec.of(one) for one in shapes],
        stats=[wire_of(one).stats for one in shapes],
        beside=[beside(one) for one in shapes],
        small=[tree.nbytes(one) <= SMALL_BYTES for one in shapes],
        broadcast=[
            _compiled(partial(broadcast, e), state.server, state.downlink, state.round, state.key, one_site)
            for e in exchanges
        ],
        fine=[None if as_sent(e) else jax.jit(partial(fine, e)) for e in exchanges],
        weigh=[weigher(composed, e) for e in exchanges],
        counters=[
            _named(counters(composed, e, wire_of(shapes[e]).stats), stats_of(shapes[e])) for e in exchanges
        ],
        zero=[jax.jit(partial(zero, e), static_argnums=0) for e in exchanges],
        add=[jax.jit(partial(add, e), donate_argnums=0) for e in exchanges],
        add_all=[jax.jit(partial(add_all, e), static_argnums=0, donate_argnums=1) for e in exchanges],
        conclude=[jax.jit(partial(conclude, e), static_argnums=0) for e in exchanges],
    )


def _named(weighers: Mapping[str, Weigher], tensors: Mapping[str, str]) -> dict[str, Weigher]:
    return {tensors[name]: one for name, one in weighers.items()}


def _compiled(broadcast: Callable[..., Any], *shapes: Any) -> Callable[..., Any]:
    """Compiles the function for arguments of these shapes; one that only selects leaves, as most broadcasts
    do, needs no program."""
    traced, message = jax.make_jaxpr(broadcast, return_shape=True)(*shapes)
    place = {id(leaf): i for i, leaf in enumerate(traced.jaxpr.invars)}
    selected, structure = [place.get(id(leaf)) for leaf in traced.jaxpr.outvars], jax.tree.structure(message)
    if None in selected:
        return jax.jit(broadcast)

    def select(*arguments: Any) -> Any:
        leaves = jax.tree.leaves(arguments)
        return jax.tree.unflatten(structure, [leaves[i] for i in selected if i is not None])

    return select
