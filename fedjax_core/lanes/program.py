"""Runs a round as one compiled program: each lane takes a local step a slot, and begins and reports clients on the way.

    from the slot where some lane begins a client to the next slot where some lane ends one, again and again:
        lanes beginning a client: carry = begin(message, own)
        carry = step(message, carry, batch)         slot after slot, vmapped over lanes, nothing else in that loop
        lanes ending a client: report, add it to the accumulator, keep what the client keeps

How many slots there are is data, so a new cohort runs the same program. On several devices each runs its share of the lanes in its own
loop, and one sum merges the accumulators. An idle lane works on masked copies of an example and reports nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_core import keys, metrics, tallies, tree
from fedjax_core.algorithms.base import Each, Seen, told
from fedjax_core.lanes.pack import Packed, Places, Schedule
from fedjax_core.lanes.runs import Runs
from fedjax_core.metrics import Sum
from fedjax_core.round import Among, Kept, Round, State, nobody
from fedjax_core.types import Array, Batch, Columns
from fedjax_core.work import Work
from fedjax_core.xla.rewrite import rewrite


class Collected(NamedTuple):
    """What the lanes of a device bring together in one exchange."""

    acc: Any  # the aggregator's accumulator
    kept: Kept  # [K, ...]: what each client keeps now
    touched: Array  # [K] bool: the client reported here
    weight: Array
    clients: Array
    refused: Array
    metrics: dict[str, Any]
    each: Each | None  # where reports have stats


class Lanes(NamedTuple):
    """What each lane is at work on; leaves [L, ...]."""

    carry: Any
    metrics: dict[str, Any]  # of the client so far: they count only if its report does


def run_rounds(runs: Runs, data: Columns, count: Array, state: State, packed: Packed, axis: str | None) -> tuple[State, dict[str, Any]]:
    """The first `count` rounds of those packed, one after another: (state, metrics with leaves [R])."""

    def one(r: Any, state: State) -> tuple[State, dict[str, Any]]:
        places, schedules = tree.take((packed.places, packed.schedules), r)
        here = {kind: jax.tree.map(lambda x: x[r, 0], packed.streamed[kind]) if packed.streamed else data for kind in schedules}
        return runs.each(lambda composed, state: run_round(composed, here, state, places, schedules, axis), state)

    def next_round(r: Array, loop: tuple[State, dict[str, Any]]) -> tuple[State, dict[str, Any]]:
        state, metrics = one(r, loop[0])
        return state, tree.put(loop[1], r, metrics)

    shapes = jax.eval_shape(one, 0, state)[1]
    none = jax.tree.map(lambda x: jnp.zeros((packed.places.position.shape[0], *x.shape), x.dtype), shapes)
    # `count` is traced on purpose: XLA unrolls a loop that it knows to run once, and the unrolled round differs in its last bits.
    return lax.fori_loop(0, count, next_round, (state, none))


def run_round(
    composed: Round, data: dict[Work, Columns], state: State, places: Places, schedules: dict[Work, Schedule], axis: str | None
) -> tuple[State, dict[str, Any]]:
    """One round: (state, metrics). `data` and `schedules` have an entry a kind of work; `axis` names the mesh axis that lanes lie on."""
    found: dict[str, Any] = {"refused": Sum(jnp.float32(0))}
    here: Array | None = None  # who has not been refused in this round so far
    for e, exchange in enumerate(composed.algorithm.exchanges):
        sent, state = composed.broadcast(e, state, places.client)
        kept = tree.take(state.clients, places.position)
        among = among_of(places, here)
        collected = collect(composed, e, data[exchange.work], sent, state, kept, places, schedules[exchange.work], here, among)
        if axis is not None:
            collected = _merge(composed, collected, axis)
        here = collected.touched
        kept = tree.where(collected.touched, collected.kept, kept)
        told = tallies.of_exchange(composed, e, state, collected.acc, among.here, collected.touched)
        state = conclude(composed, e, state, collected, kept, among)
        state = state._replace(clients=tree.put(state.clients, places.position, kept))
        found = metrics.add(found, {**collected.metrics, **told, "refused": Sum(collected.refused)})
    assert here is not None  # an algorithm has an exchange
    found["clients"] = Sum(jnp.sum(here, dtype=jnp.float32))
    found["examples"] = Sum(jnp.sum(jnp.where(here, places.examples, 0)))
    return state._replace(round=state.round + 1), found


class Read(NamedTuple):
    """A client's report as the server reads it."""

    update: Any
    weight: Array
    kept: Kept
    usable: Array
    stats: dict[str, Any]
    metrics: dict[str, Any]


def among_of(places: Places, here: Array | None) -> Among:
    """The cohort as its clients know it: those with examples, but for who was refused in an exchange before of the same round."""
    takes_part = (places.times > 0) & (places.examples > 0)
    return Among(places.address, takes_part if here is None else takes_part & here)


def conclude(composed: Round, e: int, state: State, collected: Collected, kept: Kept, among: Among) -> State:
    """The state that comes of what was collected in an exchange; `kept` [K, ...] is what clients keep now."""
    recovered = composed.recover(e, state, kept, among, collected.touched)
    came = collected.weight, collected.clients, among.here, collected.touched, recovered, collected.each
    return composed.conclude(e, state, collected.acc, *came)


class _Client(NamedTuple):
    """What any client of the cohort does in one exchange, by its place k in it."""

    begin: Any  # (k, what it keeps) -> carry
    step: Any  # (carry, rows [B], k, which step) -> (carry, metrics)
    report: Any  # (k, carry, what it kept) -> Read


def _client(
    composed: Round, e: int, data: Columns, sent: Any, state: State, places: Places, steps: Array, lanes: int, among: Among, at: Array
) -> _Client:
    """For clients that take these numbers of steps [K], in so many lanes, and stand `at` [K] these places among the whole cohort."""
    exchange, K = composed.algorithm.exchanges[e], places.position.shape[0]
    client, message, uplink = exchange.client, composed.listen(e, sent), state.uplink[e]
    idle = exchange.work.idle  # then a client's only slot is for its beginning and its end
    client_step: Any = (lambda message, carry, batch, key: (carry, {})) if idle else rewrite(client.step, lanes=lanes)
    client_keys = jax.vmap(lambda id: keys.client(state.key, state.round, id))(places.address)

    def begin(k: Array, kept: Kept) -> Any:
        return client.begin(told(message, at[k]), kept.own, keys.begin(client_keys[k], e))

    def step(carry: Any, rows: Array, k: Array, t: Array) -> tuple[Any, dict[str, Any]]:
        k = jnp.minimum(k, K - 1)
        examples = jax.tree.map(lambda x: x.at[jnp.where(rows < 0, ~rows, rows)].get(mode="clip"), data)
        batch = Batch(examples, (rows >= 0).astype(jnp.float32))
        return client_step(told(message, at[k]), carry, batch, keys.step(client_keys[k], e, t))

    def report(k: Array, carry: Any, kept: Kept) -> Read:
        seen = Seen(places.examples[k], jnp.float32(0) if idle else steps[k].astype(jnp.float32))
        sender = composed.sender(e, state.key, state.round, among, at[k])
        encoded = composed.report(e, told(message, at[k]), uplink, kept, carry, seen, sender)
        update, usable = composed.receive(e, uplink, encoded.wire, encoded.weight)
        usable &= tree.finite((encoded.kept, encoded.stats))
        return Read(update, encoded.weight, encoded.kept, usable, dict(encoded.stats), dict(encoded.metrics))

    return _Client(begin, step, report)


def collect(
    composed: Round,
    e: int,
    data: Columns,
    sent: Any,
    state: State,
    kept: Kept,
    places: Places,
    schedule: Schedule,
    here: Array | None,
    among: Among,
    at: Array | None = None,
) -> Collected:
    """All the clients of the schedule, to whom this was sent, worked through by this device's lanes. Of the state's server nothing is read.

    `here` [K] says who takes part: not who was refused in an exchange before of the same round, of whom nothing counts. None: all do.
    `among` is the whole cohort, in which these clients stand `at` [K] these places; None: they are all of it.
    """
    exchange = composed.algorithm.exchanges[e]
    K, (S, L) = places.position.shape[0], schedule.client.shape
    steps = jnp.zeros(K, jnp.int32).at[schedule.client].max(schedule.step + 1, mode="drop")
    ends = (schedule.client < K) & (schedule.step + 1 == steps.at[schedule.client].get(mode="clip"))  # [S, L]
    until = lax.cummin(jnp.where(jnp.any(ends, axis=1), jnp.arange(S, dtype=jnp.int32), S - 1), reverse=True)  # [S]
    stand = jnp.arange(K, dtype=jnp.int32) if at is None else at
    begin, step, report = _client(composed, e, data, sent, state, places, steps, L, among, stand)

    def fresh(k: Array) -> Lanes:
        """A lane where client k has just begun."""
        k = jnp.minimum(k, K - 1)
        return Lanes(begin(k, tree.take(kept, k)), tree.zeros_like(one))

    def enter(begins: Array, k: Array, lanes: Lanes) -> Lanes:
        if singly:
            return _for_each(begins, lambda lane, lanes: jax.tree.map(lambda x, y: x.at[lane].set(y), lanes, fresh(k[lane])), lanes)
        return tree.where(begins, jax.vmap(fresh)(k), lanes)

    def leave(ends: Array, k: Array, lanes: Lanes, collected: Collected) -> Collected:
        def one(lane: Array, so_far: Collected) -> Collected:
            mine = jax.tree.map(lambda x: x[lane][None], lanes)
            return gather(ends[lane][None], k[lane][None], mine, so_far)

        if singly:
            return _for_each(ends, one, collected)
        return gather(ends, k, lanes, collected)

    def gather(ends: Array, k: Array, lanes: Lanes, so_far: Collected) -> Collected:
        at = jnp.minimum(k, K - 1)
        read = jax.vmap(report)(at, lanes.carry, tree.take(so_far.kept, at))
        taking = ends if here is None else ends & here[at]
        good = taking & read.usable
        count = jnp.where(good, places.times[at], 0)
        weights = jnp.where(good, read.weight, 0) * count
        place = jnp.where(good, k, K)
        acc = so_far.acc
        if exchange.update is not None:
            acc = composed.aggregator.add(acc, tree.where(good, read.update, tree.zeros_like(read.update)), weights, place)
        each = so_far.each
        if each is not None:
            each = Each(tree.put(each.stats, place, read.stats), tree.put(each.weight, place, weights), each.position)
        seen = metrics.add(lanes.metrics, read.metrics)
        seen = tree.where(good, seen, tree.zeros_like(seen))
        return Collected(
            acc=acc,
            kept=tree.put(so_far.kept, place, read.kept),
            touched=so_far.touched.at[place].set(True, mode="drop"),
            weight=so_far.weight + jnp.sum(weights),
            clients=so_far.clients + jnp.sum(count),
            refused=so_far.refused + jnp.sum(taking & ~read.usable, dtype=jnp.float32),
            metrics=tree.add(so_far.metrics, jax.tree.map(lambda x: jnp.sum(x, axis=0), seen)),
            each=each,
        )

    def stretch(loop: tuple[Array, Lanes, Collected]) -> tuple[Array, Lanes, Collected]:
        """From slot `s` on to the next at which a client ends: no lane begins or ends in between."""
        s, lanes, collected = loop
        lanes = enter((schedule.client[s] < K) & (schedule.step[s] == 0), schedule.client[s], lanes)
        last = until[s]
        lanes = _work(step, schedule, s, last, lanes)
        return last + 1, lanes, leave(ends[last], schedule.client[last], lanes, collected)

    begun = jnp.minimum(schedule.client[0], K - 1)
    carry = jax.vmap(begin)(begun, tree.take(kept, begun))
    shapes = jax.eval_shape(jax.vmap(step), carry, schedule.rows[0], begun, begun)[1]
    first = jax.eval_shape(jax.vmap(report), begun, carry, tree.take(kept, begun))
    one, reported, stats = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (shapes, first.metrics, first.stats))
    each = nobody(exchange, stats, K, 0)
    singly = tree.nbytes(carry) >= _LARGE * L
    collected = Collected(
        acc=_zero(composed, e, first.update, K),
        kept=kept,
        touched=jnp.zeros(K, bool),
        weight=jnp.float32(0),
        clients=jnp.float32(0),
        refused=jnp.float32(0),
        metrics=tree.zeros_like(metrics.add(one, reported)),
        each=None if each is None else each._replace(position=places.client),
    )
    lanes = Lanes(carry, tree.zeros_like(shapes))
    return lax.while_loop(lambda loop: loop[0] < jnp.max(schedule.slots), stretch, (jnp.int32(0), lanes, collected))[2]


# Bytes of a lane's carry from which lanes begin and end one by one, without touching the others. MLP of 199,000 parameters: 118,000
# examples/s so and 108,000 all at once (8 lanes); logistic regression 60x10: 2.9 million so and 3.3 million all at once (64; 2-core x86).
_LARGE = 1 << 15


def _work(step: Any, schedule: Schedule, first: Array, last: Array, lanes: Lanes) -> Lanes:
    """The lanes after slots `first` to `last`."""

    def slot(s: Array, lanes: Lanes) -> Lanes:
        carry, seen = jax.vmap(step)(lanes.carry, schedule.rows[s], schedule.client[s], schedule.step[s])
        return Lanes(carry, tree.add(lanes.metrics, seen))

    def alone(s: Array, lane: Lanes) -> Lanes:
        carry, seen = step(lane.carry, schedule.rows[s, 0], schedule.client[s, 0], schedule.step[s, 0])
        return Lanes(carry, tree.add(lane.metrics, seen))

    if schedule.client.shape[1] > 1:
        return lax.fori_loop(first, last + 1, slot, lanes)
    # A lane by itself is no batch: with an axis of one, XLA copies the whole carry in every slot.
    lane = lax.fori_loop(first, last + 1, alone, jax.tree.map(lambda x: x[0], lanes))
    return jax.tree.map(lambda x: x[None], lane)


def _for_each(chosen: Array, do: Any, carry: Any) -> Any:
    """`do(lane, carry)` for each chosen lane, one after another."""
    if chosen.shape[0] == 1:  # a loop over the only lane would be loop-invariant, and XLA would do its work in every slot
        return lax.cond(chosen[0], lambda: do(0, carry), lambda: carry)
    order = jnp.argsort(~chosen)
    return lax.fori_loop(0, jnp.sum(chosen, dtype=jnp.int32), lambda i, carry: do(order[i], carry), carry)


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
    numbers = None if mine.each is None else mine.each[:2]
    rows = tree.where(mine.touched, (mine.kept, numbers), tree.zeros_like((mine.kept, numbers)))
    rest = lax.psum((mine.touched.astype(jnp.int32), mine.weight, mine.clients, mine.refused, mine.metrics), axis)
    kept, numbers = jax.tree.map(lambda x: _sum_bits(x, axis), rows)
    each = None if mine.each is None else mine.each._replace(stats=numbers[0], weight=numbers[1])
    touched, weight, clients, refused, found = rest
    return Collected(acc, kept, touched > 0, weight, clients, refused, found, each)


def _sum_bits(rows: Array, axis: str) -> Array:
    """The sum over devices of rows of which all but one are zero; booleans too."""
    return lax.psum(rows.astype(jnp.int32), axis).astype(bool) if rows.dtype == bool else lax.psum(rows, axis)
