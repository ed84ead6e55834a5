"""The worker's half of an exchange: works through a share of a cohort on the lanes of one process, without
Ray.

    ShardResult = Worker.run(Broadcast, Shard)

It is a pure function of its two arguments, except that client state may be read and written where the share
says. So another worker, on another machine, may run it again with the same result. Reports are added at the
client's place in the whole cohort, so that the shares' accumulators merge into the cohort's."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import tree
from fedjax_core.algorithms.base import Each
from fedjax_core.client_state import Lent
from fedjax_core.cluster.schedule import Room
from fedjax_core.constants import compiled
from fedjax_core.data.batches import Plan
from fedjax_core.data.clients import Clients
from fedjax_core.data.cohort import Cohort
from fedjax_core.data.columns import narrow
from fedjax_core.lanes import tune
from fedjax_core.lanes.dispatch import DispatchBuilder, Load
from fedjax_core.lanes.exchange import Collected, collect
from fedjax_core.lanes.pack import Packed
from fedjax_core.round import Among, Kept, Round, State
from fedjax_core.types import Array, Columns
from fedjax_core.xla import tuning_cache
from fedjax_core.xla.options import compiler_options


class Broadcast(NamedTuple):
    """The inputs of one exchange that all workers share, on the host (`to_host`)."""

    exchange: int
    sent: Any  # the message, as the downlink encodes it
    uplink: Any  # the server's half of the stages, which clients may read
    round: np.ndarray  # int32
    key: Any
    among: Among  # the whole cohort, with as many empty places as there is room
    # tuning measurements (`tuning_cache.entries`): the same for all workers, as they decide last bits
    measured: dict[str, Any]


class Shard(NamedTuple):
    """A worker's part of a cohort: some of its clients, and what they keep."""

    clients: np.ndarray  # [k] positions in the population
    places: np.ndarray  # [k] places in the cohort
    counts: np.ndarray  # [k] how often each was drawn
    kept: Lent  # their rows, or where these are
    room: Room
    # [k] bool: who takes part: not refused in an earlier exchange of the round
    here: np.ndarray


class ShardResult(NamedTuple):
    """The result of a share, on the host."""

    collected: Collected  # kept, touched and each are [k]; kept is empty where rows are in files
    work: Load
    seconds: float
    traces: int  # the most traces of any of this worker's programs so far
    compiled: bool  # whether the seconds hold a compilation
    measured: dict[str, Any]  # measurements that were not in the broadcast


def for_workers(composed: Round) -> Round:
    """The round with plain functions where its algorithm or its task has compiled ones, such as
    `Task(init=jax.jit(f), ...)`: JAX cannot look at the shapes of a compiled function in another process."""

    def plain(f: Any) -> Any:
        return (lambda *args: f(*args)) if hasattr(f, "lower") else f

    def all_plain(piece: Any, *names: str) -> Any:
        return piece._replace(**{name: plain(getattr(piece, name)) for name in names})

    algorithm = composed.algorithm
    task = all_plain(algorithm.task, "init", "loss", "metrics", "predict", "features")
    algorithm = all_plain(algorithm._replace(task=task), "init_params", "init", "init_client")
    return composed._replace(algorithm=algorithm)


class Worker:
    """Works through shares, exchange by exchange, on this process's first device."""

    def __init__(self, composed: Round, clients: Clients, plan: Plan, *, streamed: bool) -> None:
        tuning_cache.enable_compilation_cache()
        self.round, self.clients, self.plan = composed, clients, plan
        kinds = {exchange.work for exchange in composed.algorithm.exchanges}
        self._feeds = {kind: DispatchBuilder(clients, plan, [kind], streamed=streamed) for kind in kinds}
        self._data: Columns = () if streamed else jax.device_put(narrow(clients.columns))
        self._programs: list[Any] = [
            compiled(
                partial(self._collect, e),
                composed.algorithm.task.constants,
                static_argnums=(0,),
                compiler_options=compiler_options(cores=False),
            )
            for e in range(len(composed.algorithm.exchanges))
        ]
        self._merge = jax.jit(composed.aggregator.merge)
        self.traces = [0] * len(self._programs)

    def run(self, broadcast: Broadcast, share: Shard) -> ShardResult:
        """Runs the share and returns its result."""
        begun, k, traces = time.perf_counter(), len(share.clients), sum(self.traces)
        arguments, work = self._arguments(broadcast, share)
        collected = jax.device_get(self._programs[broadcast.exchange](*arguments))
        kept, touched, each = jax.tree.map(
            lambda x: x[:k], (collected.kept, collected.touched, collected.each)
        )
        collected = collected._replace(kept=share.kept.write(kept, touched), touched=touched, each=each)
        seconds, compiled = time.perf_counter() - begun, sum(self.traces) > traces
        return ShardResult(collected, work, seconds, max(self.traces), compiled, _news(broadcast.measured))

    def measure(self, broadcast: Broadcast, share: Shard) -> dict[str, Any]:
        """Measures what the program of this exchange needs, by tracing it; one worker does so before all of
        them build the program."""
        self._programs[broadcast.exchange].lower(*self._arguments(broadcast, share)[0])
        return _news(broadcast.measured)

    def choose_lanes(self, most: int, measured: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(the fastest number of lanes for this model on this device, at most `most`; what was measured
        beyond what is given)."""
        tuning_cache.adopt(measured)
        longest = max(self._feeds.values(), key=lambda feed: int(feed.steps[feed.longest].sum()))
        return tune.choose(self.round, *longest.typical(), most), _news(measured)

    def merge(self, a: Any, b: Any) -> Any:
        """Merges two accumulators, on the host."""
        return jax.device_get(self._merge(a, b))

    def _arguments(self, broadcast: Broadcast, share: Shard) -> tuple[tuple[Any, ...], Load]:
        """(the arguments of the exchange's program, the work in them)."""
        tuning_cache.adopt(broadcast.measured)
        feed, K, k = self._feed(broadcast.exchange, share.room), share.room.cohort, len(share.clients)
        packed, work = feed.pack([Cohort(share.clients, share.counts)], int(broadcast.round), held=1)
        kept = jax.tree.map(
            lambda x: np.concatenate([x, np.zeros((K - k, *x.shape[1:]), x.dtype)]), share.kept.read()
        )
        place = np.pad(share.places, (0, K + 1 - k), constant_values=K).astype(np.int32)
        here = np.pad(share.here, (0, K - k))
        context = from_host(
            (broadcast.sent, broadcast.uplink, broadcast.round, broadcast.key, broadcast.among)
        )
        return (K, self._data, context, kept, place, here, packed), work

    def _feed(self, e: int, room: Room) -> DispatchBuilder:
        """The dispatch builder of this exchange, with at least this room."""
        kind = self.round.algorithm.exchanges[e].work
        feed = self._feeds[kind]
        if (feed.cohort_size, feed.lanes) != (room.cohort, room.lanes) or feed.capacity[kind] < room.slots[
            kind
        ]:
            feed.reserve(room.cohort, lanes=room.lanes, devices=1)
            feed.capacity[kind] = room.slots[kind]
            if feed.streamed:
                feed.room[kind] = room.examples[kind]
        return feed

    def _collect(
        self,
        e: int,
        cohort: int,
        data: Columns,
        context: Any,
        kept: Kept,
        place: Array,
        here: Array,
        packed: Packed,
    ) -> Collected:
        """The program of an exchange, traced once; `context` has the fields of a `Broadcast` from `sent` to
        `among`."""
        self.traces[e] += 1
        kind = self.round.algorithm.exchanges[e].work
        data = jax.tree.map(lambda x: x[0, 0], packed.streamed[kind]) if packed.streamed else data
        places, schedule = jax.tree.map(lambda x: jnp.asarray(x[0]), (packed.places, packed.schedules[kind]))
        sent, uplink_state, round, key, among = context
        uplink = tuple(uplink_state if i == e else () for i in range(len(self.traces)))
        state = State(
            server=(), uplink=uplink, downlink=(), aggregator=(), clients=Kept((), ()), round=round, key=key
        )
        part = part_of(self.round, cohort, place)
        return collect(
            part, e, data, sent, state, jax.tree.map(jnp.asarray, kept), places, schedule, here, among, place
        )


def _news(known: dict[str, Any]) -> dict[str, Any]:
    """The measurements of this process that are not in `known`."""
    return {question: answer for question, answer in tuning_cache.entries().items() if question not in known}


def part_of(composed: Round, cohort: int, place: Array) -> Round:
    """`composed` for some clients of a cohort: client k reports in place[k] of the whole."""
    whole = composed.aggregator
    aggregator = whole._replace(
        zero=lambda shapes, _: whole.zero(shapes, cohort),
        add=lambda acc, updates, weights, places: whole.add(
            acc, updates, weights, place.at[places].get(mode="clip")
        ),
    )
    return composed._replace(aggregator=aggregator)


def check_recovers(composed: Round) -> None:
    """Raises where recovering dropped-out clients needs what others keep: the workers have that, the driver
    has not."""
    state = jax.eval_shape(lambda: composed.init(jax.random.key(0), 1))
    if composed.uplink.recover is not None and jax.tree.leaves(state.clients.uplink):
        raise ValueError(
            f"ClusterSimulator cannot run {composed.uplink.name}, which asks clients for something after their reports (recover) and has "
            "them keep state: use fc.Simulator, or leave out the stage that keeps state"
        )


def merge(composed: Round, parts: Sequence[Collected]) -> Collected:
    """Merges what the shares collected, in pairs, in the order given; values of single clients are left out
    (`of_cohort`)."""
    bare = [part._replace(kept=Kept((), ()), touched=jnp.zeros(0, bool), each=None) for part in parts]
    return in_pairs(partial(_merge_two, composed.aggregator.merge), bare)


def in_pairs(merge: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
    """Merges all parts into one, neighbours first.

    >>> in_pairs("({} {})".format, "abcde")
    '(((a b) (c d)) e)'
    """
    level = list(parts)
    while len(level) > 1:
        pairs = [merge(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


@partial(jax.jit, static_argnums=0)
def _merge_two(merge: Callable[[Any, Any], Any], a: Collected, b: Collected) -> Collected:
    counted = ("weight", "clients", "refused", "metrics")
    sums = {name: tree.add(getattr(a, name), getattr(b, name)) for name in counted}
    return a._replace(acc=merge(a.acc, b.acc) if jax.tree.leaves(a.acc) else a.acc, **sums)


def of_cohort(parts: Sequence[Each | None], places: Sequence[np.ndarray], position: Any) -> Each | None:
    """The stats of single clients from all shares, in the cohort's order: each share's clients are at its
    `places` of the cohort, whose clients are `position` [K]."""
    if (one := parts[0]) is None:
        return None
    rows = jax.tree.map(lambda x: np.zeros((len(position), *x.shape[1:]), x.dtype), (one.stats, one.weight))
    for part, place in zip(parts, places, strict=True):
        assert part is not None
        for whole, part_rows in zip(jax.tree.leaves(rows), jax.tree.leaves(part[:2]), strict=True):
            whole[place] = part_rows
    return one._replace(stats=rows[0], weight=rows[1], position=position)


@dataclass(frozen=True)
class _HostKey:
    """A typed key as plain numbers."""

    data: np.ndarray
    implementation: str


def to_host(values: Any) -> Any:
    """The tree with arrays on the host and keys as plain numbers, so that it can be sent to another
    process."""

    def plain(x: Any) -> Any:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return _HostKey(np.asarray(jax.random.key_data(x)), str(jax.random.key_impl(x)))
        return x

    return jax.device_get(jax.tree.map(plain, values))


def from_host(values: Any) -> Any:
    """The inverse of `to_host`."""

    def typed(x: Any) -> Any:
        return (
            jax.random.wrap_key_data(jnp.asarray(x.data), impl=x.implementation)
            if isinstance(x, _HostKey)
            else x
        )

    return jax.tree.map(typed, values)
