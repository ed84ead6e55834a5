"""A round as one compiled program: every lane takes one local step a slot, begins clients where their turn comes, reports where it ends.

    for slot in range(slots):                       the number is data, so a new cohort runs the same program
        lanes beginning a client: carry = begin(message, own)
        carry = step(message, carry, batch)         vmapped over lanes
        lanes ending a client: report, add it to the accumulator, keep what the client keeps

On several devices each runs its share of the lanes in its own loop, and one sum merges the accumulators. An idle lane works on masked
copies of an example and reports nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_core import keys, tree
from fedjax_core.algorithms.base import Seen
from fedjax_core.lanes.convolutions import rewrite
from fedjax_core.lanes.pack import Schedule
from fedjax_core.metrics import Sum
from fedjax_core.round import Kept, Round, State
from fedjax_core.types import Array, Batch, Columns


class Places(NamedTuple):
    """A cohort as arrays: K places, of which the last may be empty (position N, drawn 0 times)."""

    position: Any  # [K] int32
    address: Any  # [K, 2] uint32
    examples: Any  # [K] float32
    times: Any  # [K] float32: how often the client was drawn; its report counts that often


class Collected(NamedTuple):
    """What the lanes of a device bring together in one exchange."""

    acc: Any  # the aggregator's accumulator
    kept: Kept  # [K, ...]: what each client keeps now
    touched: Array  # [K] bool: the client reported here
    weight: Array
    clients: Array
    refused: Array
    metrics: dict[str, Any]


class Lanes(NamedTuple):
    """What each lane is at work on; leaves [L, ...]."""

    carry: Any
    metrics: dict[str, Any]  # of the client so far: they count only if its report does


def run_round(
    composed: Round, data: Columns, state: State, places: Places, schedules: dict[str, Schedule], axis: str | None
) -> tuple[State, dict[str, Any]]:
    """One round: (state, metrics). `schedules` has an entry for each kind of work; `axis` names the mesh axis that lanes lie on."""
    metrics: dict[str, Any] = {"refused": Sum(jnp.float32(0))}
    for e, exchange in enumerate(composed.algorithm.exchanges):
        kept = tree.take(state.clients, places.position)
        collected = _collect(composed, e, data, state, kept, places, schedules[exchange.work])
        if axis is not None:
            collected = _merge(composed, collected, axis)
        kept = tree.where(collected.touched, collected.kept, kept)
        state = composed.conclude(e, state, collected.acc, collected.weight, collected.clients)
        state = state._replace(clients=tree.put(state.clients, places.position, kept))
        found = {**collected.metrics, "refused": Sum(collected.refused)}
        metrics = {**metrics, **{name: metrics[name] + m if name in metrics else m for name, m in found.items()}}
    here = places.times > 0
    metrics["clients"] = Sum(jnp.sum(here & (places.examples > 0), dtype=jnp.float32))
    metrics["examples"] = Sum(jnp.sum(jnp.where(here, places.examples, 0)))
    return state._replace(round=state.round + 1), metrics


def _collect(composed: Round, e: int, data: Columns, state: State, kept: Kept, places: Places, schedule: Schedule) -> Collected:
    """All the clients of the schedule, worked through by this device's lanes."""
    exchange = composed.algorithm.exchanges[e]
    client, message, uplink = exchange.client, exchange.broadcast(state.server), state.uplink[e]
    K = places.position.shape[0]
    client_step = rewrite(client.step, lanes=schedule.client.shape[1])
    client_keys = jax.vmap(lambda id: keys.client(state.key, state.round, id))(places.address)
    steps = jnp.zeros(K, jnp.int32).at[schedule.client].max(schedule.step + 1, mode="drop")

    def begin(k: Array, kept: Kept) -> Any:
        return client.begin(message, kept.own, keys.begin(client_keys[k], e))

    def step(carry: Any, rows: Array, k: Array, t: Array) -> tuple[Any, dict[str, Any]]:
        examples = jax.tree.map(lambda x: x.at[jnp.where(rows < 0, ~rows, rows)].get(mode="clip"), data)
        batch = Batch(examples, (rows >= 0).astype(jnp.float32))
        return client_step(message, carry, batch, keys.step(client_keys[k], e, t))

    def report(k: Array, carry: Any, kept: Kept) -> tuple[Any, Array, Kept, Array]:
        seen = Seen(places.examples[k], steps[k].astype(jnp.float32))
        sent, weight, kept = composed.report(e, message, uplink, kept, carry, seen, client_keys[k])
        update, usable = composed.receive(e, uplink, sent, weight)
        return update, weight, kept, usable & tree.finite(kept)

    def at_slot(s: Array, loop: tuple[Lanes, Collected]) -> tuple[Lanes, Collected]:
        lanes, collected = loop
        k, t = schedule.client[s], schedule.step[s]
        at = jnp.minimum(k, K - 1)
        lanes = _begin(lanes, (k < K) & (t == 0), lambda: jax.vmap(begin)(at, tree.take(kept, at)))
        carry, seen = jax.vmap(step)(lanes.carry, schedule.rows[s], at, t)
        lanes = Lanes(carry, tree.add(lanes.metrics, seen))
        ends = (k < K) & (t + 1 == steps[at])
        return lanes, lax.cond(jnp.any(ends), lambda: gather(lanes, ends, k, at, collected), lambda: collected)

    def gather(lanes: Lanes, ends: Array, k: Array, at: Array, so_far: Collected) -> Collected:
        updates, weights, now, usable = jax.vmap(report)(at, lanes.carry, tree.take(so_far.kept, at))
        good = ends & usable
        count = jnp.where(good, places.times[at], 0)
        weights = jnp.where(good, weights, 0) * count
        place = jnp.where(good, k, K)
        acc = so_far.acc
        if exchange.update is not None:
            acc = composed.aggregator.add(acc, tree.where(good, updates, tree.zeros_like(updates)), weights, place)
        reported = tree.where(good, lanes.metrics, tree.zeros_like(lanes.metrics))
        return Collected(
            acc=acc,
            kept=tree.put(so_far.kept, place, now),
            touched=so_far.touched.at[place].set(True, mode="drop"),
            weight=so_far.weight + jnp.sum(weights),
            clients=so_far.clients + jnp.sum(count),
            refused=so_far.refused + jnp.sum(ends & ~usable, dtype=jnp.float32),
            metrics=tree.add(so_far.metrics, jax.tree.map(lambda x: jnp.sum(x, axis=0), reported)),
        )

    at = jnp.minimum(schedule.client[0], K - 1)
    carry = jax.vmap(begin)(at, tree.take(kept, at))
    shapes = jax.eval_shape(jax.vmap(step), carry, schedule.rows[0], at, at)[1]
    lanes = Lanes(carry, tree.zeros_like(shapes))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)
    collected = Collected(
        acc=_zero(composed, e, jax.eval_shape(jax.vmap(report), at, carry, tree.take(kept, at))[0], K),
        kept=kept,
        touched=jnp.zeros(K, bool),
        weight=jnp.float32(0),
        clients=jnp.float32(0),
        refused=jnp.float32(0),
        metrics=tree.zeros_like(one),
    )
    return lax.fori_loop(0, schedule.slots[0], at_slot, (lanes, collected))[1]


def _begin(lanes: Lanes, begins: Array, begin: Any) -> Lanes:
    """The lanes, with those where a client begins set to its beginning."""

    def renew() -> Lanes:
        return Lanes(tree.where(begins, begin(), lanes.carry), tree.where(begins, tree.zeros_like(lanes.metrics), lanes.metrics))

    return lax.cond(jnp.any(begins), renew, lambda: lanes)


def _zero(composed: Round, e: int, updates: Any, cohort: int) -> Any:
    if composed.algorithm.exchanges[e].update is None:
        return ()
    return composed.aggregator.zero(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates), cohort)


def _merge(composed: Round, mine: Collected, axis: str) -> Collected:
    """What all devices collected, the same on each."""
    if composed.aggregator.merge is tree.add:
        acc = lax.psum(mine.acc, axis)
    else:
        parts = lax.all_gather(mine.acc, axis)
        acc = jax.tree.map(lambda x: x[0], parts)
        for d in range(1, lax.axis_size(axis)):
            acc = composed.aggregator.merge(acc, jax.tree.map(lambda x, d=d: x[d], parts))
    # Each client is on one device: the sum over devices of its row there and zeros elsewhere is that row.
    rows = tree.where(mine.touched, mine.kept, tree.zeros_like(mine.kept))
    rest = lax.psum((mine.touched.astype(jnp.int32), mine.weight, mine.clients, mine.refused, mine.metrics), axis)
    kept = jax.tree.map(lambda x: _sum_bits(x, axis), rows)
    return Collected(acc, kept, rest[0] > 0, *rest[1:])


def _sum_bits(rows: Array, axis: str) -> Array:
    """The sum over devices of rows of which all but one are zero; booleans too."""
    return lax.psum(rows.astype(jnp.int32), axis).astype(bool) if rows.dtype == bool else lax.psum(rows, axis)
