"""Runs rounds as one compiled program: for each exchange the lanes of every device collect reports, and the
round concludes.

    round ─► exchange: broadcast ─► collect (lanes, on each device) ─► merge over devices ─► conclude

The numbers of slots and rounds are data, so a new cohort runs the same program. On several devices each runs
its share of the lanes in its own loop, and one sum merges the accumulators.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_core import metrics, tallies, tree
from fedjax_core.lanes.exchange import Collected, collect
from fedjax_core.lanes.pack import Packed, Places, Schedule
from fedjax_core.lanes.runs import Runs
from fedjax_core.metrics import Sum
from fedjax_core.round import Among, Kept, Round, State
from fedjax_core.types import Array, Columns
from fedjax_core.work import Work


def run_rounds(
    runs: Runs,
    data: Columns,
    count: Array,
    state: State,
    packed: Packed,
    axis: str | None,
    show: tuple[str, ...] = (),
) -> tuple[State, Any]:
    """Runs the first `count` rounds of those packed, one after another: (state, what `run_round` gave
    besides, with leaves [R])."""

    @partial(jax.jit, inline=True)  # traced once, for its shapes and for the loop
    def one(r: Array, state: State) -> tuple[State, Any]:
        places, schedules = tree.take((packed.places, packed.schedules), r)
        here = {
            kind: jax.tree.map(lambda x: x[r, 0], packed.streamed[kind]) if packed.streamed else data
            for kind in schedules
        }
        return runs.each(
            lambda composed, state: run_round(composed, here, state, places, schedules, axis, show), state
        )

    def next_round(r: Array, loop: tuple[State, Any]) -> tuple[State, Any]:
        state, outputs = one(r, loop[0])
        return state, tree.put(loop[1], r, outputs)

    shapes = jax.eval_shape(one, jnp.int32(0), state)[1]
    none = jax.tree.map(lambda x: jnp.zeros((packed.places.position.shape[0], *x.shape), x.dtype), shapes)
    # `count` is traced on purpose: XLA unrolls a loop that it knows to run once, and the unrolled round differs in
    # its last bits.
    return lax.fori_loop(0, count, next_round, (state, none))


def run_round(
    composed: Round,
    data: dict[Work, Columns],
    state: State,
    places: Places,
    schedules: dict[Work, Schedule],
    axis: str | None,
    show: tuple[str, ...] = (),
) -> tuple[State, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """One round: (state, (metrics, for each exchange the pieces of reports that `show` names)).

    `data` and `schedules` have an entry a kind of work; `axis` names the mesh axis that lanes lie on.
    """
    totals: dict[str, Any] = {"refused": Sum(jnp.float32(0))}
    visits: list[dict[str, Any]] = []
    here: Array | None = None  # clients not refused in this round so far
    for e, exchange in enumerate(composed.algorithm.exchanges):
        sent, state = composed.broadcast(e, state, places.client)
        kept = tree.take(state.clients, places.position)
        among = among_of(places, here)
        inputs = data[exchange.work], sent, state, kept, places, schedules[exchange.work]
        collected = collect(composed, e, *inputs, here, among, show=show)
        if axis is not None:
            collected = _merge(composed, collected, axis)
        here = collected.touched
        kept = tree.where(collected.touched, collected.kept, kept)
        tallied = tallies.of_exchange(composed, e, state, collected.acc, among.here, collected.touched)
        state = conclude(composed, e, state, collected, kept, among)
        state = state._replace(clients=tree.put(state.clients, places.position, kept))
        identity = {"client": places.client, "here": here, "times": places.times} if show else {}
        visits.append({**identity, **collected.shown})
        totals = metrics.add(totals, {**collected.metrics, **tallied, "refused": Sum(collected.refused)})
    assert here is not None  # an algorithm has an exchange
    totals["clients"] = Sum(jnp.sum(here, dtype=jnp.float32))
    totals["examples"] = Sum(jnp.sum(jnp.where(here, places.examples, 0)))
    return state._replace(round=state.round + 1), (totals, visits)


def among_of(places: Places, here: Array | None) -> Among:
    """The cohort as its clients know it: those with examples who were not refused in an earlier exchange of
    the round."""
    takes_part = (places.times > 0) & (places.examples > 0)
    return Among(places.address, takes_part if here is None else takes_part & here)


def conclude(composed: Round, e: int, state: State, collected: Collected, kept: Kept, among: Among) -> State:
    """The state after an exchange, from what was collected in it; `kept` [K, ...] is what clients keep
    now."""
    recovered = composed.recover(e, state, kept, among, collected.touched)
    came = collected.weight, collected.clients, among.here, collected.touched, recovered, collected.each
    return composed.conclude(e, state, collected.acc, *came)


def _merge(composed: Round, collected: Collected, axis: str) -> Collected:
    """Merges what all devices collected; the result is the same on each."""
    if composed.aggregator.merge is tree.add:
        acc = lax.psum(collected.acc, axis)
    else:
        parts = lax.all_gather(collected.acc, axis)
        acc = jax.tree.map(lambda x: x[0], parts)
        for d in range(1, lax.axis_size(axis)):
            acc = composed.aggregator.merge(acc, jax.tree.map(lambda x, d=d: x[d], parts))
    # Each client is on one device: the sum over devices of its row there and zeros elsewhere is that row.
    numbers = None if collected.each is None else collected.each[:2]
    rows = tree.where(
        collected.touched, (collected.kept, numbers), tree.zeros_like((collected.kept, numbers))
    )
    rest = lax.psum(
        (
            collected.touched.astype(jnp.int32),
            collected.weight,
            collected.clients,
            collected.refused,
            collected.metrics,
        ),
        axis,
    )
    (kept, numbers), shown = jax.tree.map(lambda x: _sum_bits(x, axis), (rows, dict(collected.shown)))
    each = None if collected.each is None else collected.each._replace(stats=numbers[0], weight=numbers[1])
    touched, weight, clients, refused, added = rest
    return Collected(acc, kept, touched > 0, weight, clients, refused, added, each, shown)


def _sum_bits(rows: Array, axis: str) -> Array:
    """The sum over devices of rows that are zero on all devices but one; booleans too."""
    return lax.psum(rows.astype(jnp.int32), axis).astype(bool) if rows.dtype == bool else lax.psum(rows, axis)
