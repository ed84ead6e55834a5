"""Runs a sweep in one program: runs that differ only in numbers (a learning rate, a bound, a seed), each as
it would be alone.

    state_j <- round(build(**point_j), state_j)        j = 1..J, vmapped; the cohorts, batches and schedule are shared

A run's numbers are traced, so that one program serves all points. A number that decides shapes or control
flow (of layers, bits, epochs) cannot be swept. A run that diverges harms only itself.

>>> import jax, numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.data import Clients
>>> clients = Clients.from_list([{"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)} for n in (2, 3, 1)])
>>> task = models.linear(features=2)
>>> def build(lr, mu):
...     return compose(algorithms.fedprox(task, mu, optax.sgd(lr)))
>>> sweep = Sweep(build, grid(lr=[0.01, 0.1], mu=[0.0, 1.0]), clients, batch_size=2)
>>> state, metrics = sweep.run(sweep.init(jax.random.key(0)), [0, 1, 2])
>>> [f"{loss:.2f}" for loss in metrics["loss"].value]
['0.98', '0.98', '0.86', '0.86']
>>> sweep.point(2), sweep.result(state, 2).params["w"].shape
({'lr': 0.1, 'mu': 0.0}, (2,))
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import keys, tree
from fedjax_core.client_state import HostRows
from fedjax_core.data.clients import Clients
from fedjax_core.lanes.memory import MemoryPlan
from fedjax_core.lanes.runs import Run
from fedjax_core.lanes.simulator import Simulator
from fedjax_core.round import Kept, Round, State
from fedjax_core.types import Array, Key, Params

# Where each part of a sweep's state has its axis of runs. Clients' rows come first, as everywhere; the round is
# that of all.
_AXES = cast(Any, State)(server=0, uplink=0, downlink=0, aggregator=0, clients=1, round=None, key=0)


def grid(**axes: Sequence[float]) -> dict[str, list[float]]:
    """Every combination of the values, the last name's changing fastest: points for a `Sweep`.

    >>> grid(lr=[0.1, 0.2], mu=[0, 1])
    {'lr': [0.1, 0.1, 0.2, 0.2], 'mu': [0, 1, 0, 1]}
    """
    combined = list(product(*axes.values()))
    return {name: [values[i] for values in combined] for i, name in enumerate(axes)}


class Sweep:
    """Runs `build(**point)`, a `Round`, for each of the J points over the same `clients`; the rest of the
    arguments are `Simulator`'s.

    points: {name: J numbers}, or `grid(...)`. All are float32 in the program. To repeat a run with several
        seeds, let a name that `build` does not use have several values (`grid(lr=[0.1, 0.2], seed=range(5))`)
        and give `init` a key for each run.

    Results are those of J simulators, one after another, up to rounding. Every point is built once beforehand
    with its own numbers, so that an impossible one is refused by name. Like lanes, a sweep pays where a step
    is all overhead: 16 learning rates of a logistic regression with 610 parameters take 0.25 to 0.46 of their
    time one by one, 8 of an MLP with 199,210 take 1.2 to 1.6 times it (2-core x86, busy). `lanes="auto"` goes
    by the size of the model, without measuring.
    """

    def __init__(
        self,
        build: Callable[..., Round],
        points: Mapping[str, Sequence[float]],
        clients: Clients,
        *,
        batch_size: int,
        **settings: Any,
    ) -> None:
        self.points = _check_points(points)
        """{name: [J]}."""
        self._runs = _SideBySide(build, self.points)
        if settings.get("lanes", "auto") == "auto":
            # Runs and lanes fill a device together. Those two sweeps: 158 ms a dispatch in 1 lane and 87 in 64; 347 ms in 1
            # lane and 1,028 in 4. So up to 64 lanes, while the models at work hold no more numbers than 64 of 10,000 do.
            numbers = tree.size(jax.eval_shape(self._runs.first.algorithm.init_params, keys.shape()))
            settings["lanes"] = max(1, min(64, 640_000 // max(1, len(self) * numbers)))
        self._simulator = Simulator(
            self._runs.first, clients, batch_size=batch_size, runs=self._runs, **settings
        )

    def __repr__(self) -> str:
        return f"Sweep({len(self)} runs that differ in {', '.join(self.points)}; {self._simulator})"

    def __len__(self) -> int:
        """J, the number of runs."""
        return len(next(iter(self.points.values())))

    @property
    def traces(self) -> int:
        """The number of programs compiled, for all points together; see `Simulator.traces`."""
        return self._simulator.traces

    def init(self, key: Key, params: Params | None = None) -> State:
        """The state of all runs before the first round; see `run` for its shapes. `key` is one for all runs,
        or one for each, [J]."""
        keys.check(key, several=True)
        if key.shape not in ((), (len(self),)):
            raise ValueError(
                f"a sweep of {len(self)} runs begins from one key, or from as many as there are runs, got keys of {key.shape}"
            )
        return self._simulator.init(key, params)

    def run(self, state: State, cohort: Any, *, donate: bool = False) -> tuple[State, dict[str, Any]]:
        """One round of every run with the clients at these positions: (state, metrics with leaves [J]).

        The state's server and uplink have leaves [J, ...], its clients [N, J, ...], and there is one key a
        run."""
        return self._simulator.run(state, cohort, donate=donate)

    def run_many(
        self, state: State, cohorts: Sequence[Any] | np.ndarray, *, donate: bool = False
    ) -> tuple[State, dict[str, Any]]:
        """Many rounds in one dispatch, `cohorts` [R, K] or a list of R cohorts: (state, metrics with leaves
        [R, J])."""
        return self._simulator.run_many(state, cohorts, donate=donate)

    def reserve(self, cohort_size: int, rounds: int = 1) -> None:
        """Makes room for cohorts of up to this size, and for this many rounds in a dispatch; see
        `Simulator.reserve`."""
        self._simulator.reserve(cohort_size, rounds)

    def plan(self, cohort_size: int) -> MemoryPlan:
        """The memory plan of rounds of all runs; see `Simulator.plan`."""
        return self._simulator.plan(cohort_size)

    def point(self, j: int) -> dict[str, float]:
        """The numbers of run j."""
        return {name: float(numbers[j]) for name, numbers in self.points.items()}

    def result(self, state: State, j: int) -> State:
        """The state of run j alone, from which a `Simulator` of `build(**sweep.point(j))` goes on where the
        sweep is."""
        kept: Any = state.clients
        kept = kept.everyone(state) if isinstance(kept, HostRows) else kept
        alike: Any = state._replace(clients=Kept((), ()), round=())  # type: ignore[arg-type]
        one: State = jax.tree.map(lambda x: x[j], alike)
        return one._replace(clients=jax.tree.map(lambda x: x[:, j], kept), round=state.round)


class _SideBySide:
    """The rounds of all points, vmapped: each is built within the program, from its own numbers."""

    def __init__(self, build: Callable[..., Round], points: dict[str, np.ndarray]) -> None:
        rounds = [
            build(**dict(zip(points, map(float, point), strict=True)))
            for point in zip(*points.values(), strict=True)
        ]
        if not isinstance(rounds[0], Round):
            raise TypeError(
                f"a sweep's build must return a Round, got {type(rounds[0]).__name__}: return fc.compose(algorithm)"
            )
        self.first, self.build, self.points = rounds[0], build, points

        def as_traced(point: dict[str, Array]) -> dict[str, Array]:
            build(**point)
            return point

        try:
            jax.eval_shape(jax.vmap(as_traced), self._traced())
        except _READ as error:
            raise ValueError(
                f"build() reads a number of {sorted(points)} as it builds, to choose a shape or a way to go. A sweep has one program for "
                "all points, so only numbers that enter its arithmetic can be swept: make a sweep for each value of the others."
            ) from error

    def init(self, key: Key, population: int, params: Params | None = None) -> State:
        """The state of all runs; `key` is one, or one a run."""

        def one(point: dict[str, Array], key: Key) -> State:
            return self.build(**point).init(key, population, params)

        return jax.vmap(one, in_axes=(0, 0 if key.ndim else None), out_axes=_AXES)(self._traced(), key)

    def each(self, run: Run, state: State) -> tuple[State, Any]:
        """`run(round, state)` of every run, side by side."""

        def one(point: dict[str, Array], state: State) -> tuple[State, Any]:
            return run(self.build(**point), state)

        return jax.vmap(one, in_axes=(0, _AXES), out_axes=(_AXES, 0))(self._traced(), state)

    def _traced(self) -> dict[str, Array]:
        return {name: jnp.asarray(numbers, jnp.float32) for name, numbers in self.points.items()}


# What JAX raises where Python asks a traced value for its number.
_READ = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerArrayConversionError,
)


def _check_points(points: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """{name: [J]}, checked: raises unless all have equally many numbers, and at least one."""
    arrays = {name: np.asarray(list(values)) for name, values in points.items()}
    shapes = {name: values.shape for name, values in arrays.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 or not shape[0] for shape in shapes.values()):
        raise ValueError(
            f"points must name equally many numbers each, at least one, got shapes {shapes}: fc.grid(lr=[...]) combines them"
        )
    for name, values in arrays.items():
        if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
            raise TypeError(
                f"only numbers can be swept, but {name!r} has {values.tolist()}: make a sweep for each of them"
            )
    return arrays
