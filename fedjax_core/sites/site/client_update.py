"""ClientUpdate (McMahan et al.): one client's work in one exchange, from begin over its steps to finish and
encode.

It uses the same keys and batches as the simulator's lanes, so it gives the same numbers. Batches are gathered
on the host a chunk at a time: memory does not grow with the data, and the compiled loop takes their number as
data. In the loop the step has the default one of the forms that lanes choose from
(`fedjax_core.xla.rewrite`), and nothing is measured: a restarted site must do the same to the last bit. With
few batches, all of it is one program: a call of a compiled program takes 20 to 80 us in a process that has
just woken up, most of all with keys among its arguments or results, and each result array takes 10 to 30 us
until it is read. So the scalars come as one array, and what is the same in every round is put on the device
once. With a time limit it goes on step by step, so that it can stop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_core import keys, tree
from fedjax_core.aggregators.slotted import plain
from fedjax_core.algorithms.base import Seen
from fedjax_core.constants import compiled, remembered
from fedjax_core.data.batches import Plan, in_order
from fedjax_core.data.clients import Clients
from fedjax_core.data.columns import narrow
from fedjax_core.lanes.evaluate import batch_sums
from fedjax_core.metrics import Mean, add
from fedjax_core.round import Among, Kept, Round
from fedjax_core.sites.protocol.report import LEFT, part_of
from fedjax_core.sites.protocol.request import Draws, client_key
from fedjax_core.sites.site.time_limit import NoStepDone, StepClock
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Carry, Columns, Key, Message, Params
from fedjax_core.uplink.base import chain
from fedjax_core.work import ONCE
from fedjax_core.xla.options import compiler_options
from fedjax_core.xla.rewrite import rewrite

_BYTES = 16 << 20  # bytes of examples on the device at a time
_ROWS = 4096  # examples evaluated at a time
EVALUATED = 512
"""The batch size of evaluation, as in the largest batches of the simulator's, for losses in which examples
meet."""
_STEPS = 64  # steps before the first look at the clock


class ClientUpdate(NamedTuple):
    """The result of a client's exchange; its scalars may be NumPy's."""

    sent: Any  # `Encoded.wire`
    weight: Array
    kept: Kept
    fine: Array  # whether `kept` is finite
    left: dict[str, Mean]
    """What the uplink's stages keep of the update; empty without stages, or if they hide its size."""
    metrics: dict[str, Any]


def client_update(
    composed: Round,
    e: int,
    plan: Plan,
    clients: Clients,
    broadcast: Any,
    uplink: Any,
    kept: Kept,
    draws: Draws,
    round: int,
    watch: Callable[[int], None] | None = None,
    limit: Callable[[int], int] | None = None,
    protecting: bool = False,
) -> ClientUpdate:
    """Runs exchange `e` of a round at the only client of `clients`, from the message `broadcast`; `draws`:
    the client's keys.

    `watch` gets the number of steps done about every half second, and at the end, and may raise to stop.
    `limit` gets the same, and returns how many more may follow before it is called again; at 0 the work ends
    there, and what is done is reported, with `PARTIAL` among the metrics. Raises `NoStepDone` if that is
    nothing. `protecting`: the steps draw from the client's secret."""
    client = _client(composed, e, protecting)
    work = composed.algorithm.exchanges[e].work
    batches = _all_once(clients, plan.batch_size) if work == ONCE else _batches(clients, plan.of(work), round)
    rows, size = batches.rows, batches.size
    if limit is None and 0 < len(rows) <= min(_STEPS, size):
        chunk = batches.chunk or _chunk(clients.columns, rows, size)
        counts = np.array([draws.round, len(rows), clients.examples], np.uint32)
        numbers = np.concatenate([draws.words, draws.secret, draws.address, counts])
        sent, kept, scalars = client.whole(draws.kind, numbers, broadcast, uplink, kept, *chunk)
        weight, fine, left, metrics = _apart(scalars)  # waits for the whole program
        if watch is not None:
            watch(len(rows))
        return ClientUpdate(sent, weight, kept, fine, left, metrics)
    number: Any = np.float32  # as jnp.float32, without a dispatch
    seen, columns = Seen(number(clients.examples), number(len(rows))), clients.columns
    key = draws.key(secret=protecting)
    carry = client.begin(broadcast, kept, key)
    metrics, done = None, 0
    more = limit or (StepClock(_STEPS) if watch is not None else lambda done: len(rows))
    for first, begin, end, some, mask in _spans(columns, rows, size, more):
        metrics = client.nothing(broadcast, carry, some, mask, key) if metrics is None else metrics
        carry, metrics = client.work(
            broadcast, carry, metrics, some, mask, key, np.int32(first), np.int32(begin), np.int32(end)
        )
        done = first + end
        if watch is not None:
            jax.block_until_ready(carry)
            watch(done)
    if limit is not None:
        if len(rows) and not done:
            raise NoStepDone(
                "no step done in time, so nothing is sent; give sites more time, or smaller batches (Rules.train_seconds)"
            )
        seen = seen._replace(steps=number(done))
        metrics = (metrics or {}) | part_of(rows, done, clients.examples)
    sent, weight, kept, fine, left, more = client.finish(
        broadcast, draws.kind, *draws[:4], uplink, kept, carry, seen
    )
    return ClientUpdate(sent, weight, kept, fine, left, add(metrics or {}, more))


def totals(task: Task, params: Params, clients: Clients, batch_size: int) -> dict[str, float]:
    """The sum of each metric over all examples, in batches of this size."""
    result: dict[str, float] = {}
    rows = _once(*clients.offsets[[0, -1]].tolist(), batch_size)
    group = max(1, min(_ROWS // batch_size, 1 << max(4, (len(rows) - 1).bit_length())))
    for begin in range(0, len(rows), group):
        part = _padded(rows[begin : begin + group], group)
        mask: Any = (part >= 0).astype(np.float32)
        sums = batch_sums(task)(params, Batch(_gather(clients.columns, part), mask))
        for name, value in jax.device_get(sums).items():
            result[name] = result.get(name, 0.0) + float(np.sum(value[: len(rows) - begin], dtype=np.float64))
    return result


class _Client(NamedTuple):
    begin: Any
    nothing: Any
    work: Any
    finish: Any
    whole: Any  # all parts in one program


def _others_than_zero(value: Any) -> Array:
    return jnp.float32(sum(jnp.sum(leaf != 0, dtype=jnp.float32) for leaf in jax.tree.leaves(value)))


@remembered(maxsize=64)
def _client(composed: Round, e: int, protecting: bool) -> _Client:
    """The compiled parts of exchange `e`; `protecting`: the steps draw from the client's secret."""
    client = composed.algorithm.exchanges[e].client
    client_step = rewrite(client.step, lanes=1, measure=False)
    program = partial(compiled, constants=composed.algorithm.task.constants)
    in_loop = partial(program, compiler_options=compiler_options(cores=False))

    def begin(message: Message, kept: Kept, key: Key) -> Carry:
        return client.begin(message, kept.own, keys.begin(key, e))

    def step(
        message: Message, carry: Carry, columns: Columns, mask: Array, key: Key, t: Array
    ) -> tuple[Carry, Any]:
        return client_step(message, carry, Batch(columns, mask), keys.step(key, e, t))

    def nothing(message: Message, carry: Carry, columns: Columns, mask: Array, key: Key) -> Any:
        one = jax.tree.map(lambda x: x[0], columns)
        return tree.zeros_like(jax.eval_shape(step, message, carry, one, mask[0], key, jnp.int32(0))[1])

    def work(
        message: Message,
        carry: Carry,
        metrics: Any,
        columns: Columns,
        mask: Array,
        key: Key,
        first: Array,
        begin: Array,
        end: Array,
    ) -> Any:
        def one(i: Array, loop: tuple[Carry, Any]) -> tuple[Carry, Any]:
            carry, new = step(message, loop[0], tree.take(columns, i), mask[i], key, first + i)
            return carry, tree.add(loop[1], new)

        return lax.fori_loop(begin, end, one, (carry, metrics))

    def finish(
        message: Message, kind: str, words: Array, round: Array, address: Array, secret: Array, uplink: Any, kept: Kept, carry: Carry,
        seen: Seen,
    ) -> Any:  # fmt: skip
        # Studies whose stages use the other clients are refused, so only this client is listed.
        among = Among(address[None], jnp.ones(1, bool))
        sender = composed.sender(e, jax.random.wrap_key_data(words, impl=kind), round, among, jnp.int32(0))
        sender = sender._replace(secret=jax.random.wrap_key_data(secret, impl=kind))
        encoded = composed.report(e, message, uplink, kept, carry, seen, sender)
        weight, kept = encoded.weight, encoded.kept
        leaves = left(message, uplink, carry, seen, encoded.wire, weight)
        return encoded.wire, weight, kept, tree.finite(kept), leaves, dict(encoded.metrics)

    def left(
        message: Message, uplink: Any, carry: Carry, seen: Seen, sent: Any, weight: Array
    ) -> dict[str, Mean]:
        stages = composed.uplink.name != chain().name and composed.algorithm.exchanges[e].update is not None
        if not (stages and composed.uplink.measurable):
            return {}
        before, after = (
            client.finish(message, carry, seen).update,
            plain(composed.receive(e, uplink, sent, weight)[0]),
        )
        one = jnp.float32(1)

        def share(of: Callable[[Any], Array]) -> Mean:
            return Mean(jnp.where(of(before) > 0, of(after) / jnp.maximum(of(before), 1e-30), one), one)

        return dict(zip(LEFT, (share(_others_than_zero), share(tree.norm)), strict=True))

    def whole(
        kind: str, numbers: Array, broadcast: Any, uplink: Any, kept: Kept, columns: Columns, mask: Array
    ) -> Any:  # fmt: skip
        # All are in one array, as each array that a program is given takes 5 us.
        (words, secret), address = numbers[:-5].reshape(2, -1), numbers[-5:-3]
        round, count = numbers[-3:-1].astype(jnp.int32)
        seen = Seen(numbers[-1].astype(jnp.float32), count.astype(jnp.float32))
        key, message = (
            client_key(secret if protecting else words, round, address, kind),
            composed.listen(e, broadcast),
        )
        carry = begin(message, kept, key)
        metrics = nothing(message, carry, columns, mask, key)
        carry, metrics = work(message, carry, metrics, columns, mask, key, jnp.int32(0), jnp.int32(0), count)
        sent, weight, kept, fine, left, reported = finish(
            message, kind, words, round, address, secret, uplink, kept, carry, seen
        )
        return sent, kept, _together((weight, fine, left, add(metrics, reported)))

    def listening(do: Callable[..., Any]) -> Callable[..., Any]:
        return lambda broadcast, *rest: do(composed.listen(e, broadcast), *rest)

    parts = (
        program(listening(begin)),
        program(listening(nothing)),
        in_loop(listening(work)),
        program(listening(finish), static_argnums=(1,)),
    )
    return _Client(*parts, in_loop(whole, static_argnums=(0,)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Together:
    """A pytree of scalars as one array."""

    values: Array  # [n] float32
    structure: Any = field(metadata={"static": True})


def _together(scalars: Any) -> Any:
    """Packs the scalars into one array, if a float32 can hold each."""
    leaves, structure = jax.tree.flatten(scalars)
    if not all(x.shape == () and x.dtype in (jnp.float32, jnp.bool_) for x in leaves):
        return scalars
    return _Together(jnp.stack([x.astype(jnp.float32) for x in leaves]), structure)


def _apart(together: Any) -> Any:
    """Unpacks the scalars, as NumPy's float32."""
    if not isinstance(together, _Together):
        return jax.device_get(together)
    return jax.tree.unflatten(together.structure, np.asarray(together.values))


class _Batches(NamedTuple):
    """The batches of one round."""

    rows: np.ndarray  # [T, B]
    size: int  # batches on the device at a time
    chunk: Any = None  # `_chunk` of all batches, if already on the device


_given: "WeakKeyDictionary[Clients, _Batches]" = WeakKeyDictionary()


def _batches(clients: Clients, plan: Plan, round: int) -> _Batches:
    rows, _ = plan.batches(np.zeros(1, np.int64), clients.offsets, clients.addresses, round)
    return _Batches(rows, _at_once(clients.columns, rows))


def _all_once(clients: Clients, batch_size: int) -> _Batches:
    """All examples of the clients in their order, the same in every round; a few are kept on the device as
    long as the clients."""
    given = _given.get(clients)
    if given is None or given.rows.shape[1] != batch_size:
        rows = _once(*clients.offsets.tolist(), batch_size)
        size = _at_once(clients.columns, rows)
        chunk = (
            jax.device_put(_chunk(clients.columns, rows, size))
            if 0 < len(rows) <= min(_STEPS, size)
            else None
        )
        given = _given[clients] = _Batches(rows, size, chunk)
    return given


@lru_cache(maxsize=4)
def _once(begin: int, end: int, batch_size: int) -> np.ndarray:
    """[T, B] int32: these examples in their order, cached: 4 bytes an example."""
    rows, _ = in_order(np.zeros(1, np.int64), np.array([begin, end]), batch_size)
    rows.flags.writeable = False
    return rows


def _chunk(columns: Columns, rows: np.ndarray, size: int) -> tuple[Columns, np.ndarray]:
    """(columns [C, B, ...], mask [C, B]) of these batches, padded to `size` batches."""
    part = _padded(rows, size)
    return _gather(columns, part), (part >= 0).astype(np.float32)


def _spans(
    columns: Columns, rows: np.ndarray, size: int, more: Callable[[int], int]
) -> Iterator[tuple[int, int, int, Columns, np.ndarray]]:
    """(first step of a chunk, begin and end within it, its columns and mask), for as many steps as `more`
    allows."""
    for first in range(0, len(rows), size):
        begin, count = 0, min(size, len(rows) - first)
        chunk = _chunk(columns, rows[first : first + size], size)
        while begin < count:
            end = min(count, begin + more(first + begin))
            if begin == end:
                return
            yield first, begin, end, *chunk
            begin = end


def _at_once(columns: Columns, rows: np.ndarray) -> int:
    """C, the number of batches on the device at a time: a power of two, so that few programs serve clients of
    all sizes."""
    row = sum(x.nbytes // max(1, len(x)) for x in jax.tree.leaves(columns)) * rows.shape[1]
    return 1 << max(0, min(max(4, (len(rows) - 1).bit_length()), (_BYTES // max(1, row)).bit_length() - 1))


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    padded = np.full((size, rows.shape[1]), -1, rows.dtype)
    padded[: len(rows)] = rows
    return padded


def _gather(columns: Columns, rows: np.ndarray) -> Columns:
    """The rows of every column."""
    indices = np.where(rows < 0, ~rows, rows)
    return narrow(jax.tree.map(lambda x: x[indices], columns))
