"""The memory plan: what a run will hold on each device, predicted before it begins, and how full its lanes
will be.

Inputs and outputs (data, state, schedule) are counted from shapes. What the program needs while it runs (the
lanes' carries, gradients, activations, accumulators) is the compiler's own count. A run that cannot fit is
refused before it is compiled, by the shapes alone.

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

from fedjax_core import keys, tree
from fedjax_core.data.clients import Clients
from fedjax_core.lanes.pack import lay_out, typical_cohorts
from fedjax_core.lanes.runs import Runs
from fedjax_core.machine import memory_limit
from fedjax_core.round import Round, State, reports_of, state_shapes


class MemoryPlan(NamedTuple):
    """Bytes on each device, and how the work is laid out. Prints as a table."""

    data: int  # the examples
    state: int  # what the server keeps between rounds, and client state as far as it is on the device
    schedule: int  # which batch of which client, for one round
    carries: int  # what the lanes of one device carry from step to step
    accumulators: int  # the reports so far, and the cohort's rows of what clients keep
    constants: int  # what the model reads and nobody trains
    # all that the program needs while it works, carries and accumulators too; 0 before it is compiled
    working: int
    limit: int  # what the device has
    lanes: int  # over all devices
    lanes_that_fit: int  # over all devices, as far as carries decide it
    slots: int  # local steps that a lane takes in a round
    fill: float  # the share of the lanes' places that hold an example, for cohorts drawn at random
    programs: int  # programs that a run of single rounds compiles

    @property
    def total(self) -> int:
        """All bytes together."""
        return (
            self.data
            + self.state
            + self.schedule
            + self.constants
            + max(self.working, self.carries + self.accumulators)
        )

    def __str__(self) -> str:
        names = (
            "data",
            "state",
            "schedule",
            "constants",
            "carries",
            "accumulators",
            "working",
            "total",
            "limit",
        )
        rows = [(name, getattr(self, name)) for name in names if name != "constants" or self.constants]
        table = "\n".join(f"{name:<14}{nbytes / 1e6:>12,.2f} MB" for name, nbytes in rows)
        return (
            f"{table}\n{self.lanes} lanes of {self.slots} slots, {self.fill:.0%} full; {self.lanes_that_fit} lanes would fit; "
            f"{self.programs} program"
        )


def predict(
    runs: Runs,
    clients: Clients,
    steps: np.ndarray,
    cohort_size: int,
    *,
    population: int,
    data: int,
    schedule: int,
    constants: int = 0,
    lanes: int,
    devices: int,
    parts: int,
    batch_size: int,
    sharing: int = 1,
) -> MemoryPlan:
    """The plan from shapes alone; `steps` [N] are the local steps of each client, `population` the number of
    clients whose rows are on the device.

    Lanes are spread over `devices`, and the model inside each is split in `parts`; `sharing` devices are
    cores with one memory."""
    limit = device_bytes() // sharing
    bytes_ = {
        name: -(-nbytes // parts) for name, nbytes in bytes_of(runs, population, cohort_size, 1).items()
    }
    cohorts = typical_cohorts(len(clients), cohort_size)
    slots = [lay_out(np.zeros((0, batch_size)), steps[cohort], lanes).slots for cohort in cohorts]
    per_pass = np.maximum(1, -(-clients.sizes // batch_size))
    worked = sum(int((steps[c] * clients.sizes[c] / per_pass[c]).sum()) for c in cohorts)
    constants = -(-constants // parts)
    free = limit - data - bytes_["state"] - schedule - constants - bytes_["accumulators"]
    return MemoryPlan(
        data=data,
        state=bytes_["state"],
        schedule=schedule,
        carries=bytes_["carries"] * lanes // devices,
        accumulators=bytes_["accumulators"],
        constants=constants,
        working=0,
        limit=limit,
        lanes=lanes,
        lanes_that_fit=max(0, free // max(1, bytes_["carries"])) * devices,
        slots=max(slots),
        fill=worked / max(1, sum(slots) * lanes * batch_size),
        programs=1,
    )


def with_program(plan: MemoryPlan, compiled: Any) -> MemoryPlan:
    """The plan, completed with the memory that the compiled program needs beside its arguments."""
    usage = compiled.memory_analysis()
    extra = usage.output_size_in_bytes - usage.alias_size_in_bytes
    return plan._replace(working=int(usage.temp_size_in_bytes + max(0, extra)))


def with_reports(plan: MemoryPlan, composed: Round, cohort: int, show: tuple[str, ...]) -> MemoryPlan:
    """The plan of a round that also returns these pieces of the reports of all clients of a cohort."""
    one = (
        state_shapes(composed).clients if "kept" in show else (),
        reports_of(composed)[0].update if "update" in show else (),
    )
    return plan._replace(
        accumulators=plan.accumulators + cohort * len(composed.algorithm.exchanges) * tree.nbytes(one)
    )


def check_fits(plan: MemoryPlan, rows: int) -> None:
    """Raises, with the numbers and what to change, where the run cannot fit the device."""
    if plan.total <= plan.limit:
        return
    fewer = (
        f"lanes={plan.lanes_that_fit} would fit"
        if plan.lanes_that_fit
        else "a mesh with a second axis splits the model"
    )
    ways = {
        "data": "stream=True brings only the examples of each round's cohort",
        "state": f'client_state="host" keeps the rows of {rows} clients off the device',
        "carries": fewer,
        "accumulators": "a smaller cohort, or an aggregator that only sums (mean), holds fewer reports at once",
        "constants": "a mesh with a second axis splits what is frozen, too, or take half the bits (bfloat16)",
        "schedule": "fewer clients a round, or fewer local steps, make a shorter schedule",
    }
    largest = max(ways, key=lambda name: getattr(plan, name))
    raise ValueError(
        f"this run needs at least {plan.total / 1e6:,.0f} MB on each device, which has {plan.limit / 1e6:,.0f} MB:\n{plan}\n"
        f"Most of it is {largest}: {ways[largest]}."
    )


def check_state(state: State, parts: int, rows: int) -> None:
    """Raises, before it is made, where a state of these shapes, split in `parts` parts, fits no device."""
    nbytes, limit = -(-tree.nbytes(state[:-1]) // parts), device_bytes()  # all but the key
    if nbytes > limit:
        raise ValueError(
            f"the state alone takes {nbytes / 1e6:,.0f} MB on each device, which has {limit / 1e6:,.0f} MB: "
            f'client_state="host" keeps the rows of {rows} clients off the device, and a mesh with a second axis splits the model'
        )


def streams(clients: Clients, mapped: bool) -> bool:
    """Whether the examples had better be brought dispatch by dispatch: they are in files, or would fill half
    of the device."""
    return mapped or clients.nbytes > device_bytes() // 2


def device_bytes() -> int:
    """The memory of the first device; for a CPU what this process may use of the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return memory_limit()


def bytes_of(runs: Runs, population: int, cohort: int, lanes: int) -> dict[str, int]:
    """The bytes of state, carries and accumulators, for this many lanes on a device."""

    def shapes(key: Any) -> tuple[Any, Any]:
        def one(composed: Round, state: State) -> tuple[State, Any]:
            kept = tree.take(state.clients, jax.numpy.zeros(cohort, jax.numpy.int32))
            own = jax.tree.map(lambda x: x[0], kept.own)
            carries, accumulators = [], [kept]
            for e, exchange in enumerate(composed.algorithm.exchanges):
                carries.append(exchange.client.begin(composed.told(e, state), own, key))
                if exchange.update is not None:
                    update = composed.received(composed.report_shapes(e, state.server, own).update)
                    accumulators.append(composed.aggregator.zero(update, cohort))
            return state, (carries, accumulators)

        return runs.each(one, runs.init(key, population))

    state, (carries, accumulators) = jax.eval_shape(shapes, keys.shape())
    largest = max(tree.nbytes(carry) for carry in carries)  # exchanges follow one another
    return {
        "state": tree.nbytes(state._replace(key=())),
        "carries": lanes * largest,
        "accumulators": tree.nbytes(accumulators),
    }
