"""The simulator: runs a `Round` on lanes in one process, on one device or a mesh of devices.

>>> import jax, numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.data import Clients
>>> clients = Clients.from_list([{"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)} for n in (2, 3, 1)])
>>> composed = compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1)))
>>> simulator = Simulator(composed, clients, batch_size=2, epochs=1, lanes=2)
>>> state, metrics = simulator.run(simulator.init(jax.random.key(0)), [0, 2])
>>> int(state.round), float(metrics["examples"])
(1, 3.0)
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_core import keys, machine, tree
from fedjax_core.client_state import HostRows, Resident
from fedjax_core.constants import compiled
from fedjax_core.data.batches import Amount, Order, Plan
from fedjax_core.data.clients import Clients
from fedjax_core.data.cohort import Cohort, as_cohort
from fedjax_core.data.columns import mapped, narrow
from fedjax_core.lanes import memory, program, tune
from fedjax_core.lanes.checks import check_counts, check_model, check_simulation, check_state, warn_outgrown
from fedjax_core.lanes.dispatch import DispatchBuilder
from fedjax_core.lanes.evaluate import Evaluation, evaluate_state, score_state
from fedjax_core.lanes.inspection import PIECES, Visits, check_pieces, in_order
from fedjax_core.lanes.mesh import Placing, ask_for_cores, cores, usual
from fedjax_core.lanes.meter import Meter
from fedjax_core.lanes.pack import Packed
from fedjax_core.lanes.runs import Alone, Runs
from fedjax_core.round import Round, State
from fedjax_core.types import Array, Columns, Key, Params
from fedjax_core.xla import flops, tuning_cache
from fedjax_core.xla.options import compiler_options

log = logging.getLogger("fedjax_core")

_USUAL_COHORT = 1000  # clients, where lanes are asked for before any cohort is known
_DEVICES = "devices of a simulator that was given no mesh"  # a run keeps their number with its measurements
_STREAMED_BYTES = 1 << 28  # bytes of examples in one dispatch of several rounds


class Simulator:
    """Runs rounds of `composed` over `clients`; everything that changes from round to round is in the `State`
    it is given.

    A round gives each client `epochs` passes over its data (default 1), or `steps` batches of an epoch that
    goes on across rounds, or the batches named by `order` (see `fedjax_core.data.batches.Plan`). Either may
    be a function (round, positions [K]) -> [K], for clients that do different amounts of work. `seed` draws
    the shuffles, whatever the key of `init` and `fc.fit`: for another repetition change it too, and the seed
    of the cohorts.

    The other arguments change only the speed, and the answer is the same up to rounding. `lanes`: an int, or
    "auto", which times a few numbers of lanes on this model and device and remembers the best. `mesh`: a
    `jax.sharding.Mesh` whose first axis lanes are spread over; a second one splits the model inside each
    lane; None: one device. The default is all cores of a CPU, `fc.cores()`, and one device of any other kind;
    one device too where JAX has begun with another number of them, or `client_state` is on the host.
    `stream`: whether a dispatch brings its cohorts' examples, instead of all examples being on the device
    from the start; by default where the data is memory-mapped, or takes more than half of the device's
    memory. `client_state`: where client state is held: "device", "host", or a folder; see
    `fedjax_core.client_state`. `runs`: several rounds at once that are all like `composed`, as in `Sweep`."""

    def __init__(
        self,
        composed: Round,
        clients: Clients,
        *,
        batch_size: int,
        epochs: Amount | None = None,
        steps: Amount | None = None,
        lanes: int | Literal["auto"] = "auto",
        mesh: Mesh | Literal["auto"] | None = "auto",
        seed: int = 0,
        order: Order | None = None,
        stream: bool | None = None,
        client_state: str | Path = "device",
        runs: Runs | None = None,
    ) -> None:
        check_simulation("Simulator", composed, clients, lanes)
        if mesh == "auto":
            ask_for_cores(machine.cores())
        tuning_cache.enable_compilation_cache()
        self.round = composed
        self._runs: Runs = Alone(composed) if runs is None else runs
        self.clients = clients
        self.plan_of_batches = Plan(batch_size, epochs, steps, seed, order)
        self._mesh = None if mesh == "auto" and client_state != "device" else mesh
        if self._mesh != "auto":
            self._placing = Placing(self._mesh)
        self.meter = Meter(self._step_cost)
        """The speed so far: `meter.report()`."""
        self.traces = 0
        """The number of programs made; more than one for each number of rounds a dispatch means that a cohort
        outgrew its buffers."""
        self._lanes: int | None = None if lanes == "auto" else int(lanes)
        self.streams = memory.streams(clients, mapped(clients.columns)) if stream is None else stream
        """Whether a dispatch brings its own examples."""
        check_model(composed, clients, batch_size)
        self._client_state = self._store(client_state)
        kinds = sorted({exchange.work for exchange in composed.algorithm.exchanges})
        self._feed = DispatchBuilder(clients, self.plan_of_batches, kinds, streamed=self.streams)
        self._most_rounds = 1
        self._programs: dict[tuple[bool, tuple[str, ...]], Any] = {}
        self._known_round: tuple[Any, int] = (None, 0)
        self._in_flight: deque[Any] = deque(maxlen=2)

    def __repr__(self) -> str:
        population = f"{len(self.clients):,} clients with {self.clients.examples:,} examples"
        lanes = "auto" if self._lanes is None else self._lanes
        return f"Simulator({self.round}, {population}, {self.plan_of_batches}, lanes={lanes})"

    @cached_property
    def _placing(self) -> Placing:
        """The placement of arrays. A run that goes on from a checkpoint uses as many devices as it began
        with, if there are as many."""
        if self._mesh != "auto":
            return Placing(self._mesh)
        before, mesh = tuning_cache.before(_DEVICES), usual(self._lanes)
        if before is not None and mesh is not None and before < mesh.size:
            mesh = cores(before) if before > 1 else None
        tuning_cache.keep(_DEVICES, 1 if mesh is None else mesh.size)
        return Placing(mesh)

    @cached_property
    def _data(self) -> Columns:
        """All examples, on the devices; empty where a dispatch brings its own."""
        return () if self.streams else self._placing.data(narrow(self.clients.columns))

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes the answer, to the last bit, besides the `Round` and the data."""
        return {**self.plan_of_batches.settings, "lanes": self.lanes, "devices": self._placing.devices}

    @property
    def lanes(self) -> int:
        """The number of lanes, over all devices; with `lanes="auto"` it is chosen at the first use."""
        return self._lanes_known(min(len(self.clients), _USUAL_COHORT))

    def init(self, key: Key, params: Params | None = None) -> State:
        """The state before the first round; from `params` where given, else as the task begins from `key`."""
        keys.check(key, several=True)  # of the runs of a sweep
        population = self._client_state.fresh_rows
        params = None if params is None else jax.tree.map(jnp.asarray, params)
        make = partial(self._runs.init, population=population)
        shapes = jax.eval_shape(make, key, params=params)
        memory.check_state(shapes, self._placing.parts, population)
        placed = self._placing.state(shapes)
        state = jax.jit(make, out_shardings=placed)(key, params=params)
        self._client_state, state = self._client_state.begin(state)
        return state

    def run(self, state: State, cohort: Any, *, donate: bool = False) -> tuple[State, dict[str, Any]]:
        """One round with the clients at these positions: (state, metrics that add)."""
        checked = as_cohort(cohort, len(self.clients))
        self.reserve(len(checked.clients))
        return self._dispatch(state, [checked], 1, donate)[:2]

    def inspect(
        self, state: State, cohort: Any, pieces: Sequence[str] = PIECES
    ) -> tuple[State, dict[str, Any], tuple[Visits, ...]]:
        """Runs one round as `run` does, and keeps the clients' reports: (state, metrics, the `Visits` of each
        exchange).

        `pieces` names the pieces of every report to keep, each of which takes the memory of K; see
        `fedjax_core.lanes.inspection`."""
        checked, show = as_cohort(cohort, len(self.clients)), check_pieces(pieces)
        self.reserve(len(checked.clients))
        room = self._feed.cohort_size
        memory.check_fits(
            memory.with_reports(self._planned(room), self.round, room, show), self._kept_on_device(room)
        )
        state, metrics, shown = self._dispatch(state, [checked], 1, False, show)
        return state, metrics, tuple(in_order(one, checked.clients) for one in shown)

    def run_many(
        self, state: State, cohorts: Sequence[Any] | np.ndarray, *, donate: bool = False
    ) -> tuple[State, dict[str, Any]]:
        """Many rounds in one dispatch, `cohorts` [R, K] or a list of R cohorts: (state, metrics with leaves
        [R]).

        With `donate`, the state given is used up: its memory holds the new one. Streamed rounds go in as many
        dispatches as they need."""
        checked = [as_cohort(c, len(self.clients)) for c in cohorts]
        if not checked:
            raise ValueError("run_many needs at least one cohort, got none")
        self.reserve(max(len(c.clients) for c in checked), len(checked))
        group, groups = self._rounds_held(len(checked)), []
        for begin in range(0, len(checked), group):
            state, metrics, _ = self._dispatch(state, checked[begin : begin + group], group, donate)
            groups.append(jax.tree.map(lambda x: x[None], metrics) if group == 1 else metrics)
        return state, groups[0] if len(groups) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *groups)

    def reserve(self, cohort_size: int, rounds: int = 1) -> None:
        """Makes room for cohorts of up to this size, and for this many rounds in a dispatch, so that smaller
        ones run the same program.

        Best called before the first round: a cohort or a dispatch that outgrows its room compiles a larger
        program. Raises where the device lacks the memory, with the numbers and what to change.
        """
        self._most_rounds, cohort_size = max(self._most_rounds, rounds), max(1, cohort_size)
        if cohort_size <= self._feed.cohort_size:
            return
        warn_outgrown(cohort_size, self._feed.cohort_size)
        self._feed.reserve(cohort_size, lanes=self._lanes_for(cohort_size), devices=self._placing.loops)
        memory.check_fits(self._planned(cohort_size), self._kept_on_device(cohort_size))

    def plan(self, cohort_size: int) -> memory.MemoryPlan:
        """The memory plan of rounds with this many clients, and how full the lanes will be; compiles the
        program for it."""
        if not 1 <= cohort_size <= len(self.clients):
            raise ValueError(
                f"cohort_size must be from 1 to {len(self.clients)}, the number of clients, got {cohort_size}"
            )
        if cohort_size > self._feed.cohort_size:
            self.reserve(cohort_size)
        return memory.with_program(self._planned(cohort_size), self._compile())

    def evaluate(self, state: State, clients: Clients | None = None) -> Evaluation:
        """Evaluates the model on the examples of `clients` (default: those trained on); a client with a model
        of its own on that."""
        return evaluate_state(self.round.algorithm, state, self.clients, self._client_state, on=clients)

    def score(self, state: State, clients: Any) -> dict[str, np.ndarray]:
        """Each metric of the clients at these positions [n], {name: [n]}, for a sampler that chooses by them;
        NaN without examples."""
        return score_state(self.round.algorithm, state, self.clients, clients, self._client_state)

    def _dispatch(
        self, state: State, cohorts: Sequence[Cohort], held: int, donate: bool, show: tuple[str, ...] = ()
    ) -> tuple[State, dict[str, Any], list[Any]]:
        """Runs these rounds in one call of the program, in buffers that hold `held` rounds: (state, metrics,
        the pieces that `show` names).

        Metrics have no axis of rounds where `held` is one.
        """
        first, packing = self._round_of(state), time.perf_counter()
        for cohort in cohorts:
            check_counts(self.round, np.asarray(cohort.counts))
        clients, positions = self._client_state.union(cohorts)
        packed, work = self._feed.pack(cohorts, first, held, positions)
        state = self._client_state.bring(
            state, clients, first, min(len(self.clients), held * self._feed.cohort_size)
        )
        state, packed = self._placing.place(state, packed)
        if self.streams and len(self._in_flight) == 2:
            jax.block_until_ready(self._in_flight[0])  # holds the examples of two dispatches at most
        traces, start = self.traces, time.perf_counter()
        state, (metrics, shown) = self._program(donate, show)(
            self._data, np.int32(len(cohorts)), state, packed
        )
        if self.traces > traces:
            self.meter.compiled(time.perf_counter() - start)
        else:
            self.meter.dispatched(work, packing, metrics["clients"].total)
        self._in_flight.append(metrics["clients"].total)
        self._known_round = (state.round, first + len(cohorts))
        state = self._client_state.keep(state, clients, first + len(cohorts))
        return (
            state,
            metrics if held in (1, len(cohorts)) else jax.tree.map(lambda x: x[: len(cohorts)], metrics),
            shown,
        )

    def _step_cost(self) -> tuple[float, float]:
        """The operations of a local step, and the seconds that it takes at the peak of all devices."""
        one = narrow(jax.tree.map(lambda x: x[:1], self.clients.columns))
        size = self.plan_of_batches.batch_size
        operations = flops.operations(
            self.round, jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), one)
        )
        seconds = flops.seconds_at_peak(operations, jax.devices()[0].device_kind)
        return sum(operations.values()), seconds / (self._placing.devices * self._placing.parts)

    def _store(self, client_state: str | Path) -> Resident | HostRows:
        """The store of client state."""
        if client_state == "device":
            return Resident(len(self.clients))
        if self._mesh is not None:
            raise ValueError('client_state must be "device" on a mesh: the host holds rows for one device')
        return HostRows((), len(self.clients), None if client_state == "host" else Path(client_state))

    def _lanes_known(self, cohort_size: int) -> int:
        """The number of lanes; chosen for cohorts of this size if it is not known yet."""
        devices = self._placing.devices
        if self._lanes is None:
            chosen = tune.choose(
                self.round,
                *self._feed.typical(),
                max(1, len(self.clients) // devices),
                rows=self.clients.examples,
                fill=lambda lanes: self._feed.fill(cohort_size, lanes * devices),
                cores=self._placing.mesh if self._placing.on_cores and self._placing.parts == 1 else None,
            )
            self._lanes = devices * chosen
        return -(-self._lanes // devices) * devices

    def _lanes_for(self, cohort_size: int) -> int:
        """The number of lanes for cohorts of this size: more lanes than clients would only idle."""
        return min(
            self._lanes_known(cohort_size), -(-cohort_size // self._placing.devices) * self._placing.devices
        )

    def _round_of(self, state: State) -> int:
        """The round of a state; for the state that the last call returned, without waiting for the device."""
        known, number = self._known_round
        if state.round is known:
            return number
        check_state(state)
        return int(state.round)

    def _rounds_held(self, rounds: int) -> int:
        """The number of rounds that the buffers of a dispatch of `rounds` hold: one program serves single
        rounds, and one all longer runs."""
        if rounds == 1:
            return 1
        if not self.streams:
            return self._most_rounds
        return max(1, min(self._most_rounds, _STREAMED_BYTES // max(1, self._feed.bytes_a_round())))

    def _program(self, donate: bool, show: tuple[str, ...] = ()) -> Any:
        """The program of several rounds, compiled once for each shape of what it is given."""
        if (donate, show) not in self._programs:
            options, rounds = compiler_options(cores=self._placing.on_cores), partial(self._rounds, show=show)
            self._programs[donate, show] = compiled(
                rounds,
                self.round.algorithm.task.constants,
                place=None if self._placing.mesh is None else self._placing.constants,
                donate_argnums=(2,) if donate else (),
                compiler_options=options,
            )
        return self._programs[donate, show]

    def _rounds(
        self, data: Columns, count: Array, state: State, packed: Packed, show: tuple[str, ...]
    ) -> tuple[State, Any]:
        """Several rounds, one after another, on every device of the mesh."""
        self.traces += 1
        rounds = partial(program.run_rounds, self._runs, axis=self._placing.axis, show=show)
        state, metrics = self._placing.spread(rounds, packed)(data, count, state, packed)
        # indexing here, and not after the call, which it would wait for
        alone = packed.places.position.shape[0] == 1
        return state, jax.tree.map(lambda x: x[0], metrics) if alone else metrics

    def _kept_on_device(self, cohort_size: int) -> int:
        """The number of clients whose rows are on the device."""
        return self._client_state.rows_on_device(cohort_size * self._most_rounds)

    def _planned(self, cohort_size: int) -> memory.MemoryPlan:
        batch, lanes = self.plan_of_batches.batch_size, self._lanes_for(cohort_size)
        slots = {kind: self._feed.capacity[kind] for kind in self._feed.kinds}
        sharing = self._placing.devices * self._placing.parts if self._placing.on_cores else 1
        return memory.predict(
            self._runs,
            self.clients,
            self._feed.steps[self._feed.longest],
            cohort_size,
            population=self._kept_on_device(cohort_size),
            data=self._feed.bytes_a_round() if self.streams else tree.nbytes(self._data) // sharing,
            constants=sum(one.nbytes for one in self.round.algorithm.task.constants) // sharing,
            schedule=sum(slots.values()) * lanes // self._placing.devices * (batch + 2) * 4,
            lanes=lanes,
            devices=self._placing.devices,
            parts=self._placing.parts,
            batch_size=batch,
            sharing=sharing,
        )

    def _compile(self) -> Any:
        """The program for single rounds, compiled for the shapes that a dispatch has."""
        nobody = [as_cohort(np.zeros(0, np.int64), len(self.clients))]
        state = jax.eval_shape(
            partial(self._runs.init, population=self._kept_on_device(self._feed.cohort_size)), keys.shape()
        )
        packed, _ = self._feed.pack(nobody, 0, 1, self._client_state.union(nobody)[1])
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, self._placing.state(state)
        )
        _, packed = self._placing.place((), packed)
        traces = self.traces
        made = self._program(True).lower(self._data, np.int32(1), state, packed).compile()
        self.traces = traces
        return made
