"""The simulator: a `Round` on lanes of one process, on one device or a mesh of them.

>>> import jax, numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.data import Clients
>>> clients = Clients.from_list([{"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)} for n in (2, 3, 1)])
>>> composed = compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1)))
>>> simulator = Simulator(composed, clients, batch_size=2, epochs=1)
>>> state, metrics = simulator.run(simulator.init(jax.random.key(0)), [0, 2])
>>> int(state.round), float(metrics["examples"])
(1, 3.0)
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_core import tree
from fedjax_core.data import cohorts as sampling
from fedjax_core.data.batches import Order, Plan, in_order
from fedjax_core.data.clients import Clients
from fedjax_core.lanes import program
from fedjax_core.lanes.evaluate import Evaluation, evaluate
from fedjax_core.lanes.pack import Schedule, lay_out, pack, slots_bound
from fedjax_core.lanes.plan import MemoryPlan, bytes_of, draws
from fedjax_core.round import Round, State
from fedjax_core.task import check_task
from fedjax_core.types import Array, Columns, Key, Params

log = logging.getLogger("fedjax_core")


class Simulator:
    """Runs rounds of `composed` over `clients`; everything that changes from round to round is in the `State` it is given.

    A round gives each client `epochs` passes over its data (default 1), or `steps` batches of an epoch that goes on across rounds,
    or the batches named by `order` (see `fedjax_core.data.batches.Plan`). `seed` draws the shuffles. `lanes` (an int, or "auto")
    and `mesh` (a one-dimensional `jax.sharding.Mesh`) change only how fast: the answer is the same beyond rounding.
    """

    def __init__(
        self,
        composed: Round,
        clients: Clients,
        *,
        batch_size: int,
        epochs: int | None = None,
        steps: int | None = None,
        lanes: int | Literal["auto"] = "auto",
        mesh: Mesh | None = None,
        seed: int = 0,
        order: Order | None = None,
    ) -> None:
        if not isinstance(composed, Round):
            raise TypeError(f"Simulator needs a Round, got {type(composed).__name__}: make one with fc.compose(algorithm)")
        if not isinstance(clients, Clients):
            raise TypeError(f"Simulator needs Clients, got {type(clients).__name__}: make them with fc.Clients.from_list or from_arrays")
        if lanes != "auto" and (not isinstance(lanes, (int, np.integer)) or lanes < 1):
            raise ValueError(f'lanes must be "auto" or a whole number of at least 1, got {lanes!r}')
        if mesh is not None and len(mesh.axis_names) != 1:
            raise ValueError(f"mesh must have one axis, over which lanes are spread; this one has {mesh.axis_names}")
        self.round = composed
        self.clients = clients
        self.plan_of_batches = Plan(batch_size, epochs, steps, seed, order)
        self.mesh = mesh
        self.traces = 0
        """How many programs were compiled; more than one for each number of rounds a dispatch means a cohort outgrew its buffers."""
        columns = _narrow(clients.columns)
        check_task(composed.algorithm.task, columns, batch_size)
        if composed.algorithm.task.check is not None:
            composed.algorithm.task.check(clients)
        self._lanes = lanes
        self._replicated = NamedSharding(mesh, PartitionSpec()) if mesh is not None else None
        self._data: Columns = jax.device_put(columns, self._replicated)
        self._steps = {"train": self.plan_of_batches.steps_of(clients.sizes), "once": -(-clients.sizes // batch_size)}
        self._capacity: dict[str, int] = {}
        self._kinds = sorted({exchange.work for exchange in composed.algorithm.exchanges})
        self._cohort_size = 0
        self._most_rounds = 1
        self._program = jax.jit(self._rounds())
        self._known_round: tuple[Any, int] = (None, 0)

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes the answer, to the last bit, besides the `Round` and the data."""
        plan = self.plan_of_batches
        return {
            "batch_size": plan.batch_size,
            "epochs": plan.epochs,
            "steps": plan.steps,
            "seed": plan.seed,
            "order": plan.order,
            "lanes": self.lanes,
            "devices": self._devices,
        }

    @property
    def lanes(self) -> int:
        """The number of lanes, over all devices."""
        wanted = auto_lanes(self.round) if self._lanes == "auto" else int(self._lanes)
        return -(-wanted // self._devices) * self._devices

    @property
    def _devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def init(self, key: Key, params: Params | None = None) -> State:
        """The state before the first round; from `params` where given, else as the task begins from `key`."""
        make = jax.jit(partial(self.round.init, population=len(self.clients)), out_shardings=self._replicated)
        return make(key, params=None if params is None else jax.tree.map(jnp.asarray, params))

    def run(self, state: State, cohort: Any) -> tuple[State, dict[str, Any]]:
        """One round with the clients at these positions: (state, metrics that add)."""
        state, metrics = self.run_many(state, [cohort])
        return state, jax.tree.map(lambda x: x[0], metrics)

    def run_many(self, state: State, cohorts: Sequence[Any] | np.ndarray) -> tuple[State, dict[str, Any]]:
        """Many rounds in one dispatch, `cohorts` [R, K] or a list of R cohorts: (state, metrics with leaves [R])."""
        checked = [sampling.as_cohort(c, len(self.clients)) for c in cohorts]
        if not checked:
            raise ValueError("run_many needs at least one cohort, got none")
        first = self._round_of(state)
        self.reserve(max(len(c.clients) for c in checked), len(checked))
        packed = self._pack(checked, first)
        if self.mesh is not None:
            state, packed = jax.device_put(state, self._replicated), jax.device_put(packed, self._placed)
        state, metrics = self._program(self._data, np.int32(len(checked)), state, packed)
        self._known_round = (state.round, first + len(checked))
        return state, metrics if len(checked) == self._rounds_held(len(checked)) else jax.tree.map(lambda x: x[: len(checked)], metrics)

    def reserve(self, cohort_size: int, rounds: int = 1) -> None:
        """Makes room for cohorts of up to this size, and so many rounds in a dispatch, so that smaller ones run the same program.

        Called before the first round at best: a cohort or a dispatch that outgrows its room compiles a larger program.
        """
        self._most_rounds, cohort_size = max(self._most_rounds, rounds), max(1, cohort_size)
        if cohort_size <= self._cohort_size:
            return
        if self._cohort_size:
            log.warning(
                "a cohort of %d clients outgrows the %d that the program was compiled for, which compiles it again; "
                "call reserve(%d) before the first round to avoid it",
                cohort_size,
                self._cohort_size,
                cohort_size,
            )
        self._cohort_size = cohort_size
        lanes = self._lanes_for(cohort_size)
        self._capacity = {kind: slots_bound(self._steps[kind], cohort_size, lanes) for kind in self._kinds}

    def plan(self, cohort_size: int) -> MemoryPlan:
        """What rounds with so many clients will hold on each device, and how full the lanes will be; see `MemoryPlan`."""
        if not 1 <= cohort_size <= len(self.clients):
            raise ValueError(f"cohort_size must be from 1 to {len(self.clients)}, the number of clients, got {cohort_size}")
        lanes, batch = self._lanes_for(cohort_size), self.plan_of_batches.batch_size
        cohorts = draws(len(self.clients), cohort_size)
        slots = [lay_out(np.zeros((0, batch)), self._steps["train"][cohort], lanes).slots for cohort in cohorts]
        worked = sum(
            int((self._steps["train"][c] * self.clients.sizes[c] / np.maximum(1, -(-self.clients.sizes[c] // batch))).sum())
            for c in cohorts
        )
        laid_out = sum(slots_bound(self._steps[kind], cohort_size, lanes) for kind in self._kinds)
        return MemoryPlan(
            data=tree.nbytes(self._data),
            **bytes_of(self.round, len(self.clients), cohort_size, lanes // self._devices),
            schedule=laid_out * lanes // self._devices * (batch + 2) * 4,
            lanes=lanes,
            slots=max(slots),
            fill=worked / max(1, sum(slots) * lanes * batch),
        )

    def evaluate(self, state: State, clients: Clients | None = None) -> Evaluation:
        """The model on the examples of `clients` (default: those trained on); where clients keep a model of their own, each on its own."""
        clients = self.clients if clients is None else clients
        personal = None
        if self.round.algorithm.personal is not None:
            if len(clients) != len(self.clients):
                raise ValueError(
                    f"each client is evaluated on its own model, so clients must be the same {len(self.clients)}, got {len(clients)}"
                )
            personal = jax.jit(jax.vmap(self.round.algorithm.personal, in_axes=(None, 0)))(state.server, state.clients.own)
        return evaluate(self.round.algorithm.task, state.params, clients, personal=personal)

    def _lanes_for(self, cohort_size: int) -> int:
        """More lanes than clients would only idle."""
        return min(self.lanes, -(-cohort_size // self._devices) * self._devices)

    def _round_of(self, state: State) -> int:
        """The round a state is at; for the state that the last call gave back, without waiting for the device."""
        known, number = self._known_round
        return number if state.round is known else int(state.round)

    def _rounds_held(self, rounds: int) -> int:
        """How many rounds the buffers of a dispatch of `rounds` hold: one program for single rounds, and one for all longer runs."""
        return 1 if rounds == 1 else self._most_rounds

    def _pack(self, cohorts: Sequence[sampling.Cohort], first: int) -> tuple[program.Places, dict[str, Schedule]]:
        """What the program needs to know of these rounds, leaves [R, ...]."""
        who = [np.asarray(cohort.clients, np.int64) for cohort in cohorts]
        rounds, lanes, K = range(self._rounds_held(len(who))), self._lanes_for(self._cohort_size), self._cohort_size
        places = [self._places(w, cohort.counts) for w, cohort in zip(who, cohorts, strict=True)]
        schedules: dict[str, Any] = {}
        for kind in self._kinds:
            layouts = [lay_out(*self._batches(kind, w, first + r), lanes) for r, w in enumerate(who)]
            needed = max(layout.slots for layout in layouts)
            if needed > self._capacity[kind]:
                log.warning("a cohort needs %d slots of work, more than the %d foreseen: compiling again", needed, self._capacity[kind])
                self._capacity[kind] = int(needed * 1.25)
            packed = [pack(layout, K, lanes, self._devices, self._capacity[kind]) for layout in layouts]
            schedules[kind] = jax.tree.map(lambda *x: _stack(x, len(rounds)), *packed)
        return jax.tree.map(lambda *x: _stack(x, len(rounds)), *places), schedules

    def _batches(self, kind: str, who: np.ndarray, round: int) -> tuple[np.ndarray, np.ndarray]:
        if kind == "once":
            return in_order(who, self.clients.offsets, self.plan_of_batches.batch_size)
        return self.plan_of_batches.batches(who, self.clients.offsets, self.clients.addresses, round)

    def _places(self, who: np.ndarray, counts: np.ndarray) -> program.Places:
        short = self._cohort_size - len(who)
        return program.Places(
            position=np.pad(who, (0, short), constant_values=len(self.clients)).astype(np.int32),
            address=np.pad(self.clients.addresses[who], ((0, short), (0, 0))),
            examples=np.pad(self.clients.sizes[who], (0, short)).astype(np.float32),
            times=np.pad(counts, (0, short)).astype(np.float32),
        )

    def _rounds(self) -> Any:
        """The program of several rounds, one after another, on every device of the mesh."""
        mesh = self.mesh
        axis = None if mesh is None else mesh.axis_names[0]

        def rounds(data: Columns, count: Array, state: State, packed: Any) -> tuple[State, dict[str, Any]]:
            def one(r: Any, state: State) -> tuple[State, dict[str, Any]]:
                places, schedules = tree.take(packed, r)
                return program.run_round(self.round, data, state, places, schedules, axis)

            def next_round(r: Array, loop: tuple[State, dict[str, Any]]) -> tuple[State, dict[str, Any]]:
                state, metrics = one(r, loop[0])
                return state, tree.put(loop[1], r, metrics)

            self.traces += 1
            shapes = jax.eval_shape(one, 0, state)[1]
            none = jax.tree.map(lambda x: jnp.zeros((packed[0].position.shape[0], *x.shape), x.dtype), shapes)
            # The number of rounds is data: a loop known to run once is dissolved, and then rounds otherwise than a longer one.
            return lax.fori_loop(0, count, next_round, (state, none))

        if mesh is None:
            return rounds
        everywhere: Any = PartitionSpec()
        by_slot: Any = PartitionSpec(None, None, axis)
        by_lane: Any = PartitionSpec(None, axis)
        on_lanes = {kind: Schedule(by_slot, by_slot, by_slot, by_lane) for kind in self._kinds}
        packed = (program.Places(everywhere, everywhere, everywhere, everywhere), on_lanes)
        self._placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), packed)
        return jax.shard_map(
            rounds, mesh=mesh, in_specs=(everywhere, everywhere, everywhere, packed), out_specs=everywhere, check_vma=False
        )


def auto_lanes(composed: Round) -> int:
    """Lanes by the size of the model: many for a small one, whose step is all overhead; few for a large one, which fills the device."""
    params = jax.eval_shape(composed.algorithm.init_params, jax.eval_shape(lambda: jax.random.key(0)))
    numbers = tree.size(params)
    return next((lanes for most, lanes in ((10_000, 64), (50_000, 16), (500_000, 4)) if numbers <= most), 1)


def _stack(rounds: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The rounds' arrays one above another, with nothing where there are fewer than `count`."""
    stacked = np.zeros((count, *rounds[0].shape), rounds[0].dtype)
    for r, array in enumerate(rounds):
        stacked[r] = array
    return stacked


def _narrow(columns: Columns) -> Columns:
    """64-bit columns as the 32-bit ones a device works on; raises where a whole number does not fit."""

    def narrow(path: Any, x: np.ndarray) -> np.ndarray:
        target = jax.dtypes.canonicalize_dtype(x.dtype)
        if target == x.dtype:
            return x
        if np.issubdtype(x.dtype, np.integer):
            limits, least, most = np.iinfo(target), x.min(initial=0), x.max(initial=0)
            if least < limits.min or most > limits.max:
                raise ValueError(
                    f"column {jax.tree_util.keystr(path)} holds whole numbers from {least} to {most}, which do not fit {target}; "
                    "renumber them, or store them as two columns"
                )
        return x.astype(target)

    return jax.tree_util.tree_map_with_path(narrow, columns)
