"""One exchange in the lanes of one device: clients begin, step and report, until the schedule is worked
through.

    from the slot where some lane begins a client to the next slot where some lane ends one, again and again:
        _begin_lanes     carry = begin(message, own)
        _step_lanes      carry = step(message, carry, batch)     slot after slot, vmapped, nothing else in that loop
        _end_lanes       report, add it to the accumulator, keep what the client keeps

How many slots there are is data, so a new cohort runs the same program. An idle lane works on masked copies
of an example and reports nothing.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_core import metrics, tree
from fedjax_core.aggregators.slotted import plain
from fedjax_core.algorithms.base import Each
from fedjax_core.lanes.client import ClientProgram, Read, client_program
from fedjax_core.lanes.pack import Places, Schedule
from fedjax_core.round import Among, Kept, Round, State, nobody
from fedjax_core.types import Array, Columns

# Bytes of a lane's carry from which lanes begin and end one by one, without touching the others. MLP of 199,000
# parameters: 118,000 examples/s so and 108,000 all at once (8 lanes); logistic regression 60x10: 2.9 million so
# and 3.3 million all at once (64; 2-core x86).
_LARGE = 1 << 15


class Collected(NamedTuple):
    """The sums and rows that the lanes of a device collect in one exchange."""

    acc: Any  # the aggregator's accumulator
    kept: Kept  # [K, ...]: what each client keeps now
    touched: Array  # [K] bool: the client reported here
    weight: Array
    clients: Array
    refused: Array
    metrics: dict[str, Any]
    each: Each | None  # where reports have stats
    # the pieces that were asked for, leaves [K, ...]; zeros where nobody reported
    shown: Mapping[str, Any] = MappingProxyType({})


class Lanes(NamedTuple):
    """The state of each lane's current client; leaves [L, ...]."""

    carry: Any
    metrics: dict[str, Any]  # of the client so far: they count only if its report does


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
    place: Array | None = None,
    show: tuple[str, ...] = (),
) -> Collected:
    """Runs all clients of the schedule, who got the message `sent`, in this device's lanes. The state's
    server is not read.

    `here` [K] says who takes part: a client refused in an earlier exchange of the round does not count. None:
    all do. `among` is the whole cohort, and `place` [K] where these clients are in it; None: they are all of
    it. `show` names the pieces of every client's report to give back (`inspection.PIECES`)."""
    context = _context(composed, e, data, sent, state, kept, places, schedule, here, among, place, show)
    client, K = context.client, context.cohort
    begun = jnp.minimum(schedule.client[0], K - 1)
    carry = jax.vmap(client.begin)(begun, tree.take(kept, begun))
    shapes = jax.eval_shape(jax.vmap(client.step), carry, schedule.rows[0], begun, begun)[1]
    first = jax.eval_shape(jax.vmap(client.report), begun, carry, tree.take(kept, begun))
    lanes, collected = Lanes(carry, tree.zeros_like(shapes)), _nothing(context, shapes, first)
    context = context._replace(one_by_one=tree.nbytes(carry) >= _LARGE * schedule.client.shape[1])

    def segment(loop: tuple[Array, Lanes, Collected]) -> tuple[Array, Lanes, Collected]:
        """Runs the slots from `s` to the next at which a client ends: no lane begins or ends in between."""
        s, lanes, collected = loop
        last = context.next_end[s]
        lanes = _begin_lanes(
            context, (schedule.client[s] < K) & (schedule.step[s] == 0), schedule.client[s], lanes
        )
        lanes = _step_lanes(client.step, schedule, s, last, lanes)
        return (
            last + 1,
            lanes,
            _end_lanes(context, context.ends[last], schedule.client[last], lanes, collected),
        )

    return lax.while_loop(
        lambda loop: loop[0] < jnp.max(schedule.slots), segment, (jnp.int32(0), lanes, collected)
    )[2]


class _Context(NamedTuple):
    """The inputs that do not change while the lanes of a device run an exchange."""

    composed: Round
    e: int
    client: ClientProgram
    cohort: int  # K
    kept: Kept  # [K, ...]: what each client kept before
    places: Places
    here: Array | None  # [K] bool: who takes part; None: all
    ends: Array  # [S, L] bool: the lane's client ends in this slot
    next_end: Array  # [S] int32: the next slot at which any client ends
    show: tuple[str, ...]
    one_by_one: bool  # whether lanes begin and end one after another, without touching the others


def _context(
    composed: Round, e: int, data: Columns, sent: Any, state: State, kept: Kept, places: Places, schedule: Schedule,
    here: Array | None, among: Among, place: Array | None, show: tuple[str, ...],
) -> _Context:  # fmt: skip
    """The context of `collect`, whose arguments these are."""
    K, (S, L) = places.position.shape[0], schedule.client.shape
    steps = jnp.zeros(K, jnp.int32).at[schedule.client].max(schedule.step + 1, mode="drop")
    ends = (schedule.client < K) & (schedule.step + 1 == steps.at[schedule.client].get(mode="clip"))
    next_end = lax.cummin(
        jnp.where(jnp.any(ends, axis=1), jnp.arange(S, dtype=jnp.int32), S - 1), reverse=True
    )
    stand = jnp.arange(K, dtype=jnp.int32) if place is None else place
    client = client_program(composed, e, data, sent, state, places, steps, L, among, stand)
    return _Context(composed, e, client, K, kept, places, here, ends, next_end, show, one_by_one=False)


def _nothing(context: _Context, step_metrics: Any, first: Read) -> Collected:
    """The empty `Collected` before the first report, from the shapes of a step's metrics and of a report,
    both [L, ...]."""
    one, reported, stats = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (step_metrics, first.metrics, first.stats)
    )
    composed, e, K = context.composed, context.e, context.cohort
    each = nobody(composed.algorithm.exchanges[e], stats, K, 0)
    return Collected(
        acc=_zero(composed, e, first.update, K),
        kept=context.kept,
        touched=jnp.zeros(K, bool),
        weight=jnp.float32(0),
        clients=jnp.float32(0),
        refused=jnp.float32(0),
        metrics=tree.zeros_like(metrics.add(one, reported)),
        each=None if each is None else each._replace(position=context.places.client),
        shown=jax.tree.map(
            lambda x: jnp.zeros((K, *x.shape[1:]), x.dtype),
            _shown(context.show, first, _total(step_metrics, first)),
        ),
    )


def _total(of_steps: Any, read: Read) -> dict[str, Any]:
    """The shapes of a client's metrics, of its steps and its report, [L, ...]."""
    shapes: dict[str, Any] = jax.eval_shape(metrics.add, of_steps, read.metrics)
    return shapes


def _shown(show: tuple[str, ...], read: Read, seen: dict[str, Any]) -> dict[str, Any]:
    """The pieces of reports that were asked for; `seen` are all metrics of their clients."""
    pieces = {
        "update": plain(read.update),
        "weight": read.weight,
        "kept": read.kept,
        "stats": read.stats,
        "metrics": seen,
    }
    return {name: pieces[name] for name in show}


def _begin_lanes(context: _Context, begins: Array, k: Array, lanes: Lanes) -> Lanes:
    """The lanes after those chosen by `begins` have begun client k [L]."""

    def begin_lane(k: Array) -> Lanes:
        k = jnp.minimum(k, context.cohort - 1)
        none = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), lanes.metrics)
        return Lanes(context.client.begin(k, tree.take(context.kept, k)), none)

    def begin_one(lane: Array, lanes: Lanes) -> Lanes:
        return jax.tree.map(lambda x, y: x.at[lane].set(y), lanes, begin_lane(k[lane]))

    return (
        _for_each(begins, begin_one, lanes)
        if context.one_by_one
        else tree.where(begins, jax.vmap(begin_lane)(k), lanes)
    )


def _end_lanes(context: _Context, ends: Array, k: Array, lanes: Lanes, collected: Collected) -> Collected:
    """`collected` with the reports of the lanes chosen by `ends`, for client k [L]."""

    def end_one(lane: Array, so_far: Collected) -> Collected:
        one = jax.tree.map(lambda x: x[lane][None], lanes)
        return _gather(context, ends[lane][None], k[lane][None], one, so_far)

    return (
        _for_each(ends, end_one, collected)
        if context.one_by_one
        else _gather(context, ends, k, lanes, collected)
    )


def _gather(context: _Context, ends: Array, k: Array, lanes: Lanes, so_far: Collected) -> Collected:
    """`so_far` with the reports of the lanes chosen by `ends`."""
    composed, places, here, K = context.composed, context.places, context.here, context.cohort
    index = jnp.minimum(k, K - 1)
    read = jax.vmap(context.client.report)(index, lanes.carry, tree.take(so_far.kept, index))
    taking = ends if here is None else ends & here[index]
    good = taking & read.usable
    count = jnp.where(good, places.times[index], 0)
    weights = jnp.where(good, read.weight, 0) * count
    place = jnp.where(good, k, K)
    acc = so_far.acc
    if composed.algorithm.exchanges[context.e].update is not None:
        acc = composed.aggregator.add(
            acc, tree.where(good, read.update, tree.zeros_like(read.update)), weights, place
        )
    each = so_far.each
    if each is not None:
        each = Each(
            tree.put(each.stats, place, read.stats), tree.put(each.weight, place, weights), each.position
        )
    seen = metrics.add(lanes.metrics, read.metrics)
    shown = tree.put(so_far.shown, place, _shown(context.show, read, seen)) if context.show else so_far.shown
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
        shown=shown,
    )


def _step_lanes(step: Any, schedule: Schedule, first: Array, last: Array, lanes: Lanes) -> Lanes:
    """The lanes after slots `first` to `last`."""

    def slot(s: Array, lanes: Lanes) -> Lanes:
        carry, metrics = jax.vmap(step)(lanes.carry, schedule.rows[s], schedule.client[s], schedule.step[s])
        return Lanes(carry, tree.add(lanes.metrics, metrics))

    def alone(s: Array, lane: Lanes) -> Lanes:
        carry, metrics = step(lane.carry, schedule.rows[s, 0], schedule.client[s, 0], schedule.step[s, 0])
        return Lanes(carry, tree.add(lane.metrics, metrics))

    if schedule.client.shape[1] > 1:
        return lax.fori_loop(first, last + 1, slot, lanes)
    # A lane by itself is no batch: with an axis of one, XLA copies the whole carry in every slot.
    lane = lax.fori_loop(first, last + 1, alone, jax.tree.map(lambda x: x[0], lanes))
    return jax.tree.map(lambda x: x[None], lane)


def _for_each(chosen: Array, do: Any, carry: Any) -> Any:
    """`do(lane, carry)` for each chosen lane, one after another."""
    # a loop over the only lane would be loop-invariant, and XLA would do its work in every slot
    if chosen.shape[0] == 1:
        return lax.cond(chosen[0], lambda: do(0, carry), lambda: carry)
    order = jnp.argsort(~chosen)
    return lax.fori_loop(0, jnp.sum(chosen, dtype=jnp.int32), lambda i, carry: do(order[i], carry), carry)


def _zero(composed: Round, e: int, updates: Any, cohort: int) -> Any:
    if composed.algorithm.exchanges[e].update is None:
        return ()
    return composed.aggregator.zero(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates), cohort
    )
