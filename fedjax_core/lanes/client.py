"""One client's work in one exchange, as functions of its place in the cohort, which lanes vmap.

begin(k, kept) -> carry        step(carry, rows, k, t) -> (carry, metrics)        report(k, carry, kept) -> Read
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import keys, tree
from fedjax_core.algorithms.base import Seen, told
from fedjax_core.lanes.pack import Places
from fedjax_core.round import Among, Kept, Round, State
from fedjax_core.types import Array, Batch, Columns
from fedjax_core.xla.rewrite import rewrite


class Read(NamedTuple):
    """A client's report as the server reads it."""

    update: Any
    weight: Array
    kept: Kept
    usable: Array
    stats: dict[str, Any]
    metrics: dict[str, Any]


class ClientProgram(NamedTuple):
    """The work of any client of the cohort in one exchange, by its place k: pure functions, for `vmap`."""

    begin: Any  # (k, what it keeps) -> carry
    step: Any  # (carry, rows [B], k, which step) -> (carry, metrics)
    report: Any  # (k, carry, what it kept) -> Read


def client_program(
    composed: Round,
    e: int,
    data: Columns,
    sent: Any,
    state: State,
    places: Places,
    steps: Array,
    lanes: int,
    among: Among,
    place: Array,
) -> ClientProgram:
    """The program of clients that take `steps` [K] steps each, in `lanes` lanes, at `place` [K] of the whole
    cohort."""
    exchange, K = composed.algorithm.exchanges[e], places.position.shape[0]
    client, message, uplink = exchange.client, composed.listen(e, sent), state.uplink[e]
    idle = exchange.work.idle  # then a client's only slot is for its beginning and its end
    client_step: Any = (
        (lambda message, carry, batch, key: (carry, {})) if idle else rewrite(client.step, lanes=lanes)
    )
    client_keys = jax.vmap(lambda id: keys.client(state.key, state.round, id))(places.address)

    def begin(k: Array, kept: Kept) -> Any:
        return client.begin(told(message, place[k]), kept.own, keys.begin(client_keys[k], e))

    @partial(jax.jit, inline=True)  # traced once, for its shapes and for the loop
    def step(carry: Any, rows: Array, k: Array, t: Array) -> tuple[Any, dict[str, Any]]:
        k = jnp.minimum(k, K - 1)
        examples = jax.tree.map(lambda x: x.at[jnp.where(rows < 0, ~rows, rows)].get(mode="clip"), data)
        batch = Batch(examples, (rows >= 0).astype(jnp.float32))
        return client_step(told(message, place[k]), carry, batch, keys.step(client_keys[k], e, t))

    @partial(jax.jit, inline=True)
    def report(k: Array, carry: Any, kept: Kept) -> Read:
        seen = Seen(places.examples[k], jnp.float32(0) if idle else steps[k].astype(jnp.float32))
        sender = composed.sender(e, state.key, state.round, among, place[k])
        encoded = composed.report(e, told(message, place[k]), uplink, kept, carry, seen, sender)
        update, usable = composed.receive(e, uplink, encoded.wire, encoded.weight)
        usable &= tree.finite((encoded.kept, encoded.stats))
        return Read(update, encoded.weight, encoded.kept, usable, dict(encoded.stats), dict(encoded.metrics))

    return ClientProgram(begin, step, report)
