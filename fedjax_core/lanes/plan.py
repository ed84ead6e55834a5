"""The memory plan: what a run will hold on each device, before it begins, and how full its lanes will be.

Counted from shapes alone: nothing is compiled or put on a device. What a step needs for a moment (activations, gradients) depends on
the model and the compiler and is not in it.

>>> import numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.data import Clients
>>> from fedjax_core.lanes import Simulator
>>> clients = Clients.from_list([{"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)} for n in (4, 4, 8)])
>>> composed = compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1)))
>>> plan = Simulator(composed, clients, batch_size=4, lanes=2).plan(3)
>>> plan.data, plan.lanes, plan.slots, plan.fill
(192, 2, 2, 1.0)
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core import tree
from fedjax_core.round import Round


class MemoryPlan(NamedTuple):
    """Bytes on each device, and how the work is laid out. Prints as a table."""

    data: int  # the examples
    state: int  # what the server and all clients keep between rounds
    carries: int  # what the lanes of one device carry from step to step
    accumulators: int  # the reports so far, and the cohort's rows of what clients keep
    schedule: int  # which batch of which client, for one round
    lanes: int  # over all devices
    slots: int  # local steps that a lane takes in a round
    fill: float  # the share of the lanes' places that hold an example, for cohorts drawn at random

    @property
    def total(self) -> int:
        """All bytes together."""
        return self.data + self.state + self.carries + self.accumulators + self.schedule

    def __str__(self) -> str:
        rows = [(name, getattr(self, name)) for name in ("data", "state", "carries", "accumulators", "schedule", "total")]
        table = "\n".join(f"{name:<14}{nbytes / 1e6:>12,.2f} MB" for name, nbytes in rows)
        return f"{table}\n{self.lanes} lanes of {self.slots} slots, {self.fill:.0%} full"


def bytes_of(composed: Round, population: int, cohort: int, lanes: int) -> dict[str, int]:
    """The bytes of state, carries and accumulators, for this many lanes on a device."""

    def shapes(key: Any) -> tuple[Any, Any, Any]:
        state = composed.init(key, population)
        kept = tree.take(state.clients, jax.numpy.zeros(cohort, jax.numpy.int32))
        own = jax.tree.map(lambda x: x[0], kept.own)
        carries, accumulators = [], [kept]
        for e, exchange in enumerate(composed.algorithm.exchanges):
            carries.append(exchange.client.begin(exchange.broadcast(state.server), own, key))
            if exchange.update is not None:
                accumulators.append(composed.aggregator.zero(composed.report_shapes(e, state.server, own).update, cohort))
        return state, carries, accumulators

    state, carries, accumulators = jax.eval_shape(shapes, jax.eval_shape(lambda: jax.random.key(0)))
    largest = max(tree.nbytes(carry) for carry in carries)  # exchanges follow one another
    return {"state": tree.nbytes(state._replace(key=())), "carries": lanes * largest, "accumulators": tree.nbytes(accumulators)}


def draws(population: int, cohort: int, times: int = 3) -> list[np.ndarray]:
    """A few cohorts drawn at random, always the same ones."""
    rng = np.random.default_rng(0)
    return [rng.choice(population, cohort, replace=False) for _ in range(times)]
