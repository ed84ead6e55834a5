"""Simulates FedBuff: clients finish by a simulated clock, and every K updates make a step of the server.

    clients begin ─► heap of (due, position) ─► K arrivals ─► those of one version are gathered in lanes ─► one step of the server

Arrival times do not depend on computed values. So the arrivals of a step are determined first, and their
updates are computed when needed: all that began from one version together. A `run` is one step of the server;
`fit` works as it does for rounds. With K = the cohort and no delays it is the synchronous run.

>>> import jax, numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> clients = Clients.from_list([{"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)} for n in (2, 3, 1)])
>>> composed = compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1)))
>>> delays = Delays(median=100, spread=1.0, seed=0)
>>> simulator = AsynchronousSimulator(composed, clients, Buffer(size=2), delays=delays, batch_size=2, lanes=1)
>>> state, metrics = simulator.run(simulator.init(jax.random.key(0)), [0, 1, 2])
>>> int(state.round), float(metrics["clients"]), int((np.asarray(state.clients.flight.started) == 0).sum())
(1, 2.0, 1)
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.buffer import Buffer, InFlight, free_clients, idle, load_model, store_model
from fedjax_core.data import host_random
from fedjax_core.data.clients import Clients
from fedjax_core.evaluation import Evaluation
from fedjax_core.lanes.simulator import Simulator
from fedjax_core.metrics import Mean, Sum, add
from fedjax_core.one_by_one import one_by_one
from fedjax_core.partial import begin, combine, partial_round
from fedjax_core.round import Round, State
from fedjax_core.types import Array, Key, Params


@dataclass(frozen=True)
class Delays:
    """Log-normal times in whole ticks: `median`, and `spread`, the logarithm's standard deviation; addressed
    by (client, version)."""

    median: float = 0.0
    spread: float = 0.0
    seed: int = 0

    def __call__(self, client: int, version: int) -> int:
        normal = host_random.generator(
            host_random.DELAY, self.seed, (client << 32) + version
        ).standard_normal()
        return int(min(self.median * np.exp(self.spread * normal), 2**30))


class Clock(NamedTuple):
    """The client state of an asynchronous run: the clients at work, and the simulated clock."""

    flight: InFlight
    due: Array  # [N] int32 ticks: when a client at work arrives
    now: Array  # int32 ticks


class Arrival(NamedTuple):
    """An update that reaches the server within a step."""

    client: int
    version: int  # the version that it began from


class AsynchronousSimulator:
    """Runs FedBuff over `clients`: one `run` is one step of the server, from `buffer.size` updates of the
    clients in its cohort.

    `delays(client, version)`: whole ticks from a client's beginning to its arrival, default none. The rest is
    the `Simulator`'s."""

    def __init__(
        self,
        composed: Round,
        clients: Clients,
        buffer: Buffer,
        *,
        delays: Callable[[int, int], int] | None = None,
        **settings: Any,
    ) -> None:
        self.round, self.clients, self.buffer = composed, clients, buffer
        self.delays = Delays() if delays is None else delays
        self._gathers = partial_round(composed)
        self._sim = Simulator(self._gathers, clients, **settings)
        if buffer.size > len(clients):
            raise ValueError(
                f"a buffer of {buffer.size} updates never fills: there are {len(clients)} clients, each once a version"
            )
        self._sent = jax.jit(lambda state: composed.broadcast(0, state)[0])
        self.meter = self._sim.meter

    def __repr__(self) -> str:
        return f"AsynchronousSimulator({self.round}, {len(self.clients):,} clients, {self.buffer}, {self._sim.plan_of_batches})"

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes the answer, to the last bit, besides the `Round` and the data."""
        return {**self._sim.settings, "buffer": self.buffer, "delays": self.delays}

    def reserve(self, cohort_size: int) -> None:
        """Makes room for the updates of a step."""
        self._sim.reserve(min(self.buffer.size, len(self.clients)))

    def init(self, key: Key, params: Params | None = None) -> State:
        """The state before the first step: nobody is at work."""
        params = None if params is None else jax.tree.map(jnp.asarray, params)
        state = jax.jit(partial(self.round.init, population=1))(key, params=params)
        flight = idle(len(self.clients), self._sent(state), self.buffer)
        clock: Any = Clock(flight, jnp.zeros(len(self.clients), jnp.int32), jnp.int32(0))
        return state._replace(clients=clock)

    def run(self, state: State, cohort: Any, *, donate: bool = False) -> tuple[State, dict[str, Any]]:
        """One step of the server: (state, metrics that add). Clients of the cohort begin when they are free;
        others only finish.

        `stale` counts updates that were refused, `staleness` is the mean over those that counted, and `ticks`
        how long the step took."""
        chosen = free_clients(cohort, len(self.clients))
        clock: Clock = state.clients  # type: ignore[assignment]
        version, before = int(state.round), int(clock.now)
        models = store_model(clock.flight.models, version, self._sent(state._replace(clients=())))  # type: ignore[arg-type]
        arrivals, stale, clock = self._arrivals(clock, version, chosen)
        self.reserve(0)
        parts, metrics = [], dict[str, Any]()
        for began in sorted({a.version for a in arrivals}):
            clients = np.array([a.client for a in arrivals if a.version == began], np.int32)
            gathered, new = self._sim.run(
                begin(self._gathers, state.key, began, load_model(models, began)), clients
            )
            parts.append((gathered.server, self.buffer.damping(version - began)))
            metrics = add(metrics, new)
        after: Any = clock._replace(flight=clock.flight._replace(models=models))
        state = combine(self.round, state, parts)._replace(round=state.round + 1, clients=after)
        metrics |= {
            "staleness": Mean(
                jnp.float32(sum(version - a.version for a in arrivals)), jnp.float32(len(arrivals))
            ),
            "stale": Sum(jnp.float32(stale)),
            "ticks": Sum(jnp.float32(int(clock.now) - before)),
        }
        return state, metrics

    def run_many(
        self, state: State, cohorts: Sequence[Any], *, donate: bool = False
    ) -> tuple[State, dict[str, Any]]:
        """Steps one after another: (state, metrics with leaves [R])."""
        return one_by_one(self.run, state, cohorts, donate=donate)

    def evaluate(self, state: State, clients: Clients | None = None) -> Evaluation:
        """The model on the examples of `clients` (default: those trained on)."""
        return self._sim.evaluate(state, clients)

    def score(self, state: State, clients: Any) -> dict[str, np.ndarray]:
        """Each metric of the clients at these positions [n], {name: [n]}, for a sampler that chooses by them;
        NaN without examples."""
        return self._sim.score(state, clients)

    def _arrivals(self, clock: Clock, version: int, chosen: np.ndarray) -> tuple[list[Arrival], int, Clock]:
        """(the updates of this step in the order in which they come, how many were too old, the clock after
        the last of them)."""
        started, last = np.array(clock.flight.started), np.array(clock.flight.last)
        due, now, cohort = np.array(clock.due), int(clock.now), set(chosen.tolist())
        heap = [(int(due[c]), int(c)) for c in np.flatnonzero(started >= 0)]

        def begin(client: int) -> None:
            if client in cohort and last[client] < version:
                started[client] = last[client] = version
                due[client] = now + self.delays(client, version)
                heap.append((int(due[client]), client))

        for client in chosen.tolist():
            if started[client] < 0:
                begin(client)
        heapq.heapify(heap)
        arrived, stale = list[Arrival](), 0
        while len(arrived) < self.buffer.size:
            if not heap:
                raise ValueError(
                    f"version {version} can get only {len(arrived)} updates and its buffer needs {self.buffer.size}: each client trains "
                    f"once from a version, and the cohort has {len(cohort)}; use a smaller Buffer(size=) or a larger cohort"
                )
            now, client = max(now, heap[0][0]), heapq.heappop(heap)[1]
            arrival, started[client] = Arrival(client, int(started[client])), -1
            fresh = version - arrival.version <= self.buffer.max_staleness
            arrived, stale = arrived + [arrival] if fresh else arrived, stale + (not fresh)
            if len(arrived) < self.buffer.size:  # else the client waits for the model of this step
                begin(client)
                heapq.heapify(heap)
        flight = InFlight(jnp.asarray(started), jnp.asarray(last), clock.flight.models)
        return arrived, stale, Clock(flight, jnp.asarray(due), jnp.int32(now))
