"""Counts, for each exchange of a round, the bits on the wire and the reports that a rule left out.

    bits_up      of the reports that count, as the uplink's stages send them; if it has stages
    bits_down    of the message to each client who takes part, as the downlink's stage sends it; if there is one. With what the
                 server tells that client alone (`Exchange.address`), which no stage treats
    left_out     reports that count but that the aggregator leaves out; if it says which

Bits are those of the messages' arrays, packed as they travel, without weights, stats, headers and signatures.
They count what one client reads: a real site's request holds the rows of all sites, as one signed request
serves all of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import keys, tree
from fedjax_core.constants import remembered
from fedjax_core.metrics import Sum
from fedjax_core.round import Round, State, reports_of
from fedjax_core.types import Array
from fedjax_core.uplink.base import bits, chain

_PLAIN = chain().name


def of_exchange(
    composed: Round, e: int, state: State, acc: Any, here: Array, reported: Array
) -> dict[str, Sum]:
    """The tallies of exchange `e`, begun in this state, with the clients `here` [K] and the reports that
    count, `reported` [K]."""
    zeros = {name: Sum(jnp.float32(0)) for name in names(composed)}
    up, down = bits_of(composed, e)
    count, present = (jnp.sum(some, dtype=jnp.float32) for some in (reported, here))
    sums = {"bits_up": up * count, "bits_down": down * present}
    if (kept := kept_of(composed, e, state, acc)) is not None:
        sums["left_out"] = jnp.sum(reported & ~kept, dtype=jnp.float32)
    return {**zeros, **{name: Sum(value) for name, value in sums.items() if name in zeros}}


def on_the_wire(composed: Round, e: int, reports: float, messages: float) -> dict[str, Any]:
    """The tallies of this many reports and messages of exchange `e`, NumPy numbers: for a backend that counts
    them."""
    sums = zip(("bits_up", "bits_down"), bits_of(composed, e), (reports, messages), strict=True)
    there = names(composed)
    return {name: Sum(np.float32(each * count)) for name, each, count in sums if name in there}  # type: ignore[arg-type]


def names(composed: Round) -> tuple[str, ...]:
    """The names of the tallies that a round has."""
    applies = {
        "bits_up": composed.uplink.name != _PLAIN,
        "bits_down": composed.downlink.name != _PLAIN,
        "left_out": composed.aggregator.kept is not None,
    }
    return tuple(name for name, there in applies.items() if there)


@remembered(maxsize=64)
def bits_of(composed: Round, e: int) -> tuple[float, float]:
    """(bits of a report, bits of the message to a client) in exchange `e`."""
    exchange, algorithm = composed.algorithm.exchanges[e], composed.algorithm
    server = jax.eval_shape(lambda key: algorithm.init(algorithm.init_params(key)), keys.shape())
    message = jax.eval_shape(exchange.broadcast, server)
    up = 0 if exchange.update is None else bits(composed.uplink, reports_of(composed)[e].update)
    down = bits(composed.downlink, tree.shapes(message))
    if exchange.address is not None:
        one: Any = jax.ShapeDtypeStruct((1,), jnp.int32)
        down += 8 * tree.nbytes(jax.eval_shape(exchange.address, server, one))
    return float(up), float(down)


def kept_of(composed: Round, e: int, state: State, acc: Any) -> Array | None:
    """[K]: the reports in `acc` that the aggregator uses; None if it does not say."""
    exchange, kept = composed.algorithm.exchanges[e], composed.aggregator.kept
    if exchange.update is None or kept is None:
        return None
    return kept(acc, state.aggregator[e], keys.aggregate(state.key, state.round, e))
