"""The cluster simulator: runs a `Round` on the workers of a Ray cluster, or on several processes of this
machine.

    message -> each node once -> workers: lanes over their shares -> accumulators merge -> the round concludes here, in one place

The answer is that of `Simulator` up to rounding. Its last bits depend on the number of shares of a cohort,
and not on which worker ran them, how fast, whether one died, or who merged them. Workers merge, in pairs,
where accumulators are large and come from several nodes; else the driver does. The `State`, on the driver,
holds all that goes from round to round; client state may be beside it, in files of the workers.

    with fc.ClusterSimulator(composed, clients, workers=2, batch_size=20) as cluster:
        history = fc.fit(cluster, rounds=100, cohorts=fc.cohorts.uniform(len(clients), size=50))

The round is sent to workers by cloudpickle, with the user's own functions in it: a cluster must be one trust
domain."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import keys, tallies, tree
from fedjax_core.checks import at_least
from fedjax_core.client_state import Carried, ClientState, HostRows, Lent, RecordFiles, Resident
from fedjax_core.cluster.meter import ClusterMeter
from fedjax_core.cluster.schedule import Room, room_for, split_cohort
from fedjax_core.cluster.shard import (
    Broadcast,
    Shard,
    ShardResult,
    check_recovers,
    for_workers,
    merge,
    of_cohort,
    to_host,
)
from fedjax_core.cluster.source import source_of
from fedjax_core.data.batches import Amount, Order, Plan
from fedjax_core.data.clients import Clients
from fedjax_core.data.cohort import as_cohort
from fedjax_core.data.columns import mapped
from fedjax_core.lanes import memory, program
from fedjax_core.lanes.checks import check_counts, check_model, check_simulation, warn_outgrown
from fedjax_core.lanes.dispatch import slots_of
from fedjax_core.lanes.evaluate import Evaluation, evaluate_state, score_state
from fedjax_core.lanes.exchange import Collected
from fedjax_core.metrics import Sum, add
from fedjax_core.one_by_one import one_by_one
from fedjax_core.round import Among, Kept, Round, State
from fedjax_core.types import Array, Key, Params
from fedjax_core.work import Work
from fedjax_core.xla import tuning_cache

if TYPE_CHECKING:
    from fedjax_core.cluster.pool import WorkerPool

log = logging.getLogger("fedjax_core")

# bytes from which workers merge accumulators; smaller ones come to the driver with the rest of a result
LARGE = 10_000_000


class ClusterSimulator:
    """Runs rounds of `composed` over `clients` on `workers`; everything that changes from round to round is
    in the `State` it is given.

    `batch_size`, `epochs`, `steps`, `order`, `seed`, `lanes` (of one worker) and `stream` are those of
    `Simulator`. Clients opened from a folder are opened by each worker under the same path; others are sent
    to each node once. `client_state`: where client state is: on the "device" or "host" of the driver, which
    sends it to workers and back, or in a folder that all nodes see under the same path, where workers read
    and write it themselves.

    Without an `address`, and without one in RAY_ADDRESS, Ray is started on this machine and ended by `close`,
    unless this process is connected to a cluster already.
    A worker has `cpus_per_worker` cores, with one thread each, and `gpus_per_worker` of a GPU; start this
    process with JAX_PLATFORMS=cpu where workers have GPUs, so that it takes none of their memory.

    `shares`: the number of parts of a cohort, by default one a worker. It decides last bits, as `lanes` does:
    with a fixed number, say 16, runs on any number of workers agree to the last bit, and faster workers do
    more shares. A share whose worker dies is begun again, up to `retries` times. A worker that finishes
    nothing for `hang_seconds` is ended: choose well above the time of a share with its compilation.
    """

    def __init__(
        self,
        composed: Round,
        clients: Clients,
        *,
        workers: int = 2,
        batch_size: int,
        epochs: Amount | None = None,
        steps: Amount | None = None,
        lanes: int | Literal["auto"] = "auto",
        shares: int | None = None,
        seed: int = 0,
        order: Order | None = None,
        stream: bool | None = None,
        client_state: str | Path = "device",
        address: str | None = None,
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0,
        retries: int = 3,
        hang_seconds: float = 600,
    ) -> None:
        check_simulation("ClusterSimulator", composed, clients, lanes)
        at_least(1, workers=workers, shares=workers if shares is None else shares)
        at_least(0, retries=retries)
        if not cpus_per_worker > 0:
            raise ValueError(
                f"cpus_per_worker must be above 0, got {cpus_per_worker!r}: a worker needs a core, or a part of one"
            )
        if not hang_seconds > 0:
            raise ValueError(
                f"hang_seconds must be above 0, got {hang_seconds!r}; math.inf waits for workers for ever"
            )
        if not 0 <= gpus_per_worker <= 1:
            raise ValueError(
                f"gpus_per_worker must be from 0 to 1, got {gpus_per_worker!r}: for more GPUs use more workers, one for each"
            )
        self.plan_of_batches = Plan(batch_size, epochs, steps, seed, order)
        check_model(composed, clients, batch_size)
        check_recovers(composed)
        self.round = composed
        self.clients = clients
        self.meter = ClusterMeter()
        """The speed so far: `meter.report()`."""
        self._lanes: int | None = None if lanes == "auto" else int(lanes)
        self._fixed_shares, self.shares = shares is not None, int(shares or workers)
        self._client_state = _store(client_state, len(clients))
        works = [exchange.work for exchange in composed.algorithm.exchanges]
        self._steps: dict[Work, np.ndarray] = {
            work: slots_of(self.plan_of_batches, clients.sizes, work) for work in sorted(set(works))
        }
        self._load = np.asarray(sum(self._steps[work] for work in works))
        self._room: Room | None = None
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._measured: set[int] = set()  # exchanges
        self._accumulator: dict[int, int] = {}  # bytes of the last one of each exchange
        self._traced: dict[tuple[Any, ...], int] = {}  # how often each was traced, here and on the workers

        from fedjax_core.cluster import pool

        pool.connect(address, math.ceil(workers * cpus_per_worker))
        self._disconnect: Callable[[], None] | None = pool.disconnect
        try:
            self._pool: WorkerPool = pool.WorkerPool(
                for_workers(composed),
                self.plan_of_batches,
                source_of(clients),
                workers=int(workers),
                streamed=memory.streams(clients, mapped(clients.columns)) if stream is None else stream,
                cpus=cpus_per_worker,
                gpus=gpus_per_worker,
                retries=int(retries),
                hang_seconds=hang_seconds,
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ClusterSimulator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, and Ray where it was started for them. May be called twice."""
        if self._disconnect is None:
            return
        if hasattr(self, "_pool"):
            self._pool.close()
        self._disconnect()
        self._disconnect = None

    def __repr__(self) -> str:
        population = f"{len(self.clients):,} clients with {self.clients.examples:,} examples"
        return f"ClusterSimulator({self.round}, {population}, {self.plan_of_batches}, shares={self.shares})"

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes the answer, to the last bit, besides the `Round` and the data."""
        return {**self.plan_of_batches.settings, "lanes": self.lanes, "shares": self.shares}

    @property
    def lanes(self) -> int:
        """The number of lanes of a worker; with `lanes="auto"` a worker chooses it at the first use."""
        if self._lanes is None:
            most = max(1, len(self.clients) // self.shares)
            self._lanes, measured = self._open_pool().choose_lanes(most, tuning_cache.entries())
            tuning_cache.adopt(measured)  # a run saves them in its checkpoints
        return self._lanes

    @property
    def workers(self) -> list[dict[str, Any]]:
        """The workers that are ready: process, node, device of each."""
        return [dict(member.about) for member in self._pool.members]

    @property
    def deaths(self) -> int:
        """The number of workers that died so far, and were replaced."""
        return self._pool.deaths

    @property
    def traces(self) -> int:
        """The most traces of any program: more than one means that a cohort outgrew its buffers."""
        return max(self._traced.values(), default=0)

    def resize(self, workers: int) -> None:
        """Sets the number of workers from the next round on, and that of shares too, unless `shares` was
        given."""
        at_least(1, workers=workers)
        self._open_pool().resize(int(workers))
        if not self._fixed_shares and self.shares != workers:
            self.shares = int(workers)
            if self._room is not None:
                self._room = self._room_for(self._room.cohort)

    def reserve(self, cohort_size: int, rounds: int = 1) -> None:
        """Makes room for cohorts of up to this size, so that smaller ones run the same program."""
        if self._room is None or cohort_size > self._room.cohort:
            warn_outgrown(cohort_size, self._room.cohort if self._room is not None else 0)
            self._room = self._room_for(max(1, cohort_size))

    def init(self, key: Key, params: Params | None = None) -> State:
        """The state before the first round; from `params` where given, else as the task begins from `key`."""
        keys.check(key)
        params = None if params is None else jax.tree.map(jnp.asarray, params)
        make = jax.jit(partial(self.round.init, population=self._client_state.fresh_rows))
        self._client_state, state = self._client_state.begin(make(key, params=params))
        return state

    def run(self, state: State, cohort: Any, *, donate: bool = False) -> tuple[State, dict[str, Any]]:
        """One round with the clients at these positions: (state, metrics that add). With `donate` the state
        given is used up."""
        begun = time.perf_counter()
        cohort = as_cohort(cohort, len(self.clients))
        clients, counts = np.asarray(cohort.clients, np.int64), np.asarray(cohort.counts)
        check_counts(self.round, counts)
        self.reserve(len(clients))
        first, shares = int(state.round), self._deal(clients, counts)
        assert self._room is not None
        lent, half = (
            self._client_state.lend(state, clients, first, self._room.cohort),
            state._replace(clients=Kept((), ())),
        )
        metrics: dict[str, Any] = {"refused": Sum(jnp.float32(0))}
        position = np.pad(
            clients, (0, self._room.cohort - len(clients)), constant_values=len(self.clients)
        ).astype(np.int32)
        done: list[ShardResult] = []
        here = np.asarray(self.clients.sizes[clients] > 0)  # with examples, and not refused so far
        for e in range(len(self.round.algorithm.exchanges)):
            sent, half = self._program("broadcast", partial(self.round.broadcast, e), e)(half, position)
            among = self._among(clients, here)
            current = [share._replace(here=here[share.places]) for share in shares]
            results, acc = self._exchange(e, sent, half, among, current, lent, first)
            for share, part in zip(shares, results, strict=True):
                here[share.places] = part.collected.touched
                lent.take_back(share.places, part.collected.kept, part.collected.touched)
            collected = merge(self.round, [part.collected for part in results])
            collected = collected if acc is None else collected._replace(acc=acc)
            each = of_cohort(
                [part.collected.each for part in results], [share.places for share in shares], position
            )
            collected = collected._replace(each=each)
            self._accumulator[e] = tree.nbytes(collected.acc)
            conclude = self._program("conclude", partial(self._conclude, e), e)
            half, tallied = conclude(half, collected, among, self._among(clients, here).here)
            metrics = add(metrics, {**collected.metrics, **tallied, "refused": Sum(collected.refused)})
            done += results
        sizes = self.clients.sizes[clients]
        metrics["clients"], metrics["examples"] = (
            Sum(jnp.float32(here.sum())),
            Sum(jnp.float32(sizes[here].sum())),
        )
        after, room = half._replace(round=half.round + 1), self._room.cohort
        state = self._client_state.take_back(after, state, clients, lent, first + 1, room, donate)
        moved = 2 * sum(tree.nbytes(part.collected.kept) for part in done)
        self.meter.add(
            time.perf_counter() - begun, int((sizes > 0).sum()), done, len(self._pool.members), moved
        )
        return state, metrics

    def run_many(
        self, state: State, cohorts: Sequence[Any] | np.ndarray, *, donate: bool = False
    ) -> tuple[State, dict[str, Any]]:
        """Many rounds, `cohorts` [R, K] or a list of R cohorts: (state, metrics with leaves [R])."""
        checked = [as_cohort(cohort, len(self.clients)) for cohort in cohorts]
        if checked:
            self.reserve(max(len(cohort.clients) for cohort in checked))
        return one_by_one(self.run, state, checked, donate=donate)

    def evaluate(self, state: State, clients: Clients | None = None) -> Evaluation:
        """Evaluates the model on the examples of `clients` (default: those trained on), on the driver; a
        client with a model of its own on that."""
        return evaluate_state(self.round.algorithm, state, self.clients, self._client_state, on=clients)

    def score(self, state: State, clients: Any) -> dict[str, np.ndarray]:
        """Each metric of the clients at these positions [n], {name: [n]}, for a sampler that chooses by them;
        NaN without examples."""
        return score_state(self.round.algorithm, state, self.clients, clients, self._client_state)

    def _deal(self, clients: np.ndarray, counts: np.ndarray) -> list[Shard]:
        """The cohort's shares, without client state; empty ones are left out, except for one."""
        assert self._room is not None
        dealt = split_cohort(self._load[clients], self.shares)
        dealt = [places for places in dealt if len(places)] or dealt[:1]
        return [
            Shard(
                clients[places],
                places,
                counts[places],
                Carried(Kept((), ())),
                self._room,
                np.ones(len(places), bool),
            )
            for places in dealt
        ]

    def _among(self, clients: np.ndarray, here: np.ndarray) -> Among:
        """The addresses of the whole cohort and who takes part, padded to the room."""
        assert self._room is not None
        short = self._room.cohort - len(clients)
        return Among(np.pad(self.clients.addresses[clients], ((0, short), (0, 0))), np.pad(here, (0, short)))  # type: ignore[arg-type]

    def _exchange(
        self, e: int, sent: Any, half: State, among: Among, shares: list[Shard], lent: Lent, first: int
    ) -> tuple[list[ShardResult], Any]:
        """(the shares' results in one exchange, the merged accumulator if workers merged it, else None).

        Workers merge accumulators that were large the time before and come from several nodes: sent at once,
        they would wait for the driver's network link. The bits are the same.
        """
        pool = self._open_pool()
        broadcast = Broadcast(
            exchange=e,
            sent=to_host(sent),
            uplink=to_host(half.uplink[e]),
            round=np.asarray(first, np.int32),
            key=to_host(half.key),
            among=among,
            measured=tuning_cache.entries(),
        )
        shares = [share._replace(kept=lent.of(share.places)) for share in shares]
        loads = [float(self._load[share.clients].sum()) for share in shares]
        if e not in self._measured and len(shares) > 1:
            tuning_cache.adopt(pool.measure(pool.put(broadcast), shares[0]))
            broadcast = broadcast._replace(measured=tuning_cache.entries())
        self._measured.add(e)
        at_workers = len(shares) > 2 and pool.nodes > 1 and self._accumulator.get(e, 0) >= LARGE
        results, acc = (
            pool.run_and_merge(pool.put(broadcast), shares, loads)
            if at_workers
            else (pool.run(pool.put(broadcast), shares, loads), None)
        )
        for part in reversed(results):  # of two answers to a question the first counts
            tuning_cache.adopt(
                {
                    question: answer
                    for question, answer in part.measured.items()
                    if question not in broadcast.measured
                }
            )
        self._traced["workers",] = max(self._traced.get(("workers",), 0), *(part.traces for part in results))
        return results, acc

    def _conclude(
        self, e: int, half: State, collected: Collected, among: Among, reported: Array
    ) -> tuple[State, dict[str, Sum]]:
        # `check_recovers` has made sure that these are not needed.
        nothing = jax.eval_shape(lambda: self.round.init(jax.random.key(0), 1)).clients
        tallied = tallies.of_exchange(self.round, e, half, collected.acc, among.here, reported)
        return program.conclude(
            self.round, e, half, collected._replace(touched=reported), nothing, among
        ), tallied

    def _program(self, what: str, do: Callable[..., Any], *key: Any, **options: Any) -> Any:
        """`do`, jitted at its first use."""
        name = (what, *key)

        def counted(*arguments: Any) -> Any:
            self._traced[name] = self._traced.get(name, 0) + 1
            return do(*arguments)

        if name not in self._programs:
            self._programs[name] = jax.jit(counted, **options)
        return self._programs[name]

    def _room_for(self, cohort_size: int) -> Room:
        return room_for(cohort_size, self.shares, self.lanes, self._steps, self._load, self.clients.sizes)

    def _open_pool(self) -> "WorkerPool":
        if self._disconnect is None:
            raise RuntimeError(
                "this ClusterSimulator is closed: make another one, which can go on from the same state"
            )
        return self._pool


def _store(client_state: str | Path, clients: int) -> ClientState:
    """The store of client state: at the driver, or in a folder that all nodes see."""
    if client_state == "device":
        return Resident(clients)
    return HostRows((), clients) if client_state == "host" else RecordFiles((), clients, Path(client_state))
