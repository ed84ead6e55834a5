"""Does the memory plan tell the truth? `sim.plan(cohort).total` beside the memory that rounds are seen to
take.

    python scripts/bench_memory.py                          all cases: 3 minutes on two idle cores, more where nothing is compiled
    python scripts/bench_memory.py --cases data scaffold

On a device that counts its memory, the most in use less what was in use before the simulator was made; on a
CPU, the same of resident memory, in a process of its own that reads its programs and choices from a cache,
since compiling and measuring take memory too: trying the rules for the CNN's convolutions in 8 lanes takes
twice what its rounds do. A CPU's number therefore has what the host holds as well, such as packed rounds.
glibc is told to have one arena and to give back at once what it is given: left to itself, it keeps up to
twice the memory of the CNN below for later.
"""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import bench_engine as engine
import bench_timing as timing
import bench_workloads as bench
import jax
import numpy as np
import optax
import tyro
from rich.table import Table

import fedjax_core as fc

WITHIN = 0.2


class Case(NamedTuple):
    """What is simulated: one kind of memory outweighs the others in each."""

    title: str
    workload: str
    lanes: int
    algorithm: Callable[[fc.Task, int], Any]
    """(task, population) -> algorithm."""
    data: Callable[[], bench.Data] | None = None
    """In place of the workload's."""
    cohort: int = 20
    uplink: Callable[[], Any] | None = None


def averaged(momentum: float | None = None, **rest: Any) -> Callable[[fc.Task, int], Any]:
    """FedAvg, or what it is called with another server optimiser."""
    return lambda task, population: fc.algorithms.fedavg(task, local=optax.sgd(0.1, momentum), **rest)


def scaffold(task: fc.Task, population: int) -> Any:
    return fc.algorithms.scaffold(task, lr=0.1, population=population)


def residuals() -> Any:
    return fc.uplink.feedback(fc.uplink.quantize(bits=8))


_IMAGES = bench.noise((784,), 10, 600, 60)

CASES = {
    "data": Case("logistic, much data", "synth", 64, averaged(), bench.noise((60,), 10, 20_000, 100), 1000),
    "lanes": Case("MLP, 128 lanes with momentum", "mlp", 128, averaged(momentum=0.9), _IMAGES, 200),
    "few-lanes": Case("MLP, 4 lanes", "mlp", 4, averaged(), bench.noise((784,), 10, 3000, 60), 200),
    "scaffold": Case("MLP, SCAFFOLD: a model kept for each of 600 clients", "mlp", 4, scaffold, _IMAGES),
    "residuals": Case(
        "MLP, 8 bits with feedback: a residual kept for each of 600 clients",
        "mlp",
        4,
        averaged(),
        _IMAGES,
        uplink=residuals,
    ),
    "server": Case(
        "EMNIST CNN, FedAdam, 1 lane", "emnist", 1, averaged(server=fc.algorithms.fedopt.adam(0.01)), cohort=8
    ),
    "cnn": Case("EMNIST CNN, 8 lanes: activations", "emnist", 8, averaged(), cohort=8),
    "char-lstm": Case("char-LSTM, 4 lanes", "char-lstm", 4, averaged(), cohort=8),
    "transformer": Case("transformer, 8 lanes", "transformer", 8, averaged(), cohort=16),
}


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    cases: tuple[str, ...] = tuple(CASES)
    """Any of data, lanes, few-lanes, scaffold, residuals, server, cnn, char-lstm, transformer."""
    rounds: int = 3
    """Rounds run, one a dispatch."""


def measure(name: str, rounds: int) -> tuple[fc.Simulator, Any, int]:
    """The simulator, its plan, and by how many bytes the memory in use grew at most, on the device where it
    counts, else of the process."""
    case, device = CASES[name], jax.devices()[0]
    workload = bench.WORKLOADS[case.workload]
    data = (case.data or workload.data)()
    clients = fc.Clients.from_arrays({"x": data.x, "y": data.y}, offsets=data.offsets)
    task, _ = engine.task(case.workload, workload)
    composed = fc.compose(case.algorithm(task, len(clients)), uplink=case.uplink() if case.uplink else None)
    few = clients.select(np.arange(2))  # what tracing, compiling and the backend take once is not the run's
    jax.block_until_ready(
        run(fc.Simulator(composed, few, batch_size=workload.batch_size, epochs=1, lanes=1), 1, 1)
    )
    timing.mark()
    resident, on_device = timing.memory()["VmRSS"], device.memory_stats()
    simulator = fc.Simulator(composed, clients, batch_size=workload.batch_size, epochs=1, lanes=case.lanes)
    plan = simulator.plan(case.cohort)
    run(simulator, case.cohort, rounds)
    if on_device:
        return simulator, plan, device.memory_stats()["peak_bytes_in_use"] - on_device["bytes_in_use"]
    return simulator, plan, timing.memory()["VmHWM"] - resident


def run(simulator: fc.Simulator, cohort: int, rounds: int) -> Any:
    """The state after so many rounds, each given up for the next as `fc.fit` does."""
    state = simulator.init(jax.random.key(0))
    for who in itertools.islice(bench.cohorts(cohort, len(simulator.clients)), rounds):
        state, _ = simulator.run(state, who, donate=True)
        jax.block_until_ready(state)
    return state


def grown(name: str, rounds: int) -> tuple[int, dict[str, int], int]:
    """(lanes, the plan's bytes by name, bytes measured)."""
    simulator, plan, found = measure(name, rounds)
    return (
        simulator.lanes,
        {k: v for k, v in plan._asdict().items() if isinstance(v, int | np.integer)} | {"total": plan.total},
        found,
    )


def main(settings: Settings) -> None:
    """Measures each case and prints the table."""
    with timing.process() as call:
        print(call(timing.header))
    table = Table("case", "lanes", "planned MB", "of it data", "measured MB", "planned / measured", "target")
    for name in settings.cases:
        timing.say(f"{name}: {CASES[name].title}")
        with tempfile.TemporaryDirectory() as cache:
            kept = -1
            # until nothing is compiled or measured any more
            while kept != (kept := len(list(Path(cache).rglob("*")))):
                allocator = {
                    "MALLOC_ARENA_MAX": "1",
                    "MALLOC_MMAP_THRESHOLD_": "65536",
                    "MALLOC_TRIM_THRESHOLD_": "65536",
                }
                always = {
                    **allocator,
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                }
                with timing.process(
                    JAX_COMPILATION_CACHE_DIR=cache, FEDJAX_CORE_CACHE=cache, **always
                ) as call:
                    lanes, plan, found = call(grown, name, settings.rounds)
        ratio = plan["total"] / found
        row = [
            CASES[name].title,
            str(lanes),
            *(f"{nbytes / 1e6:,.1f}" for nbytes in (plan["total"], plan["data"], found)),
            f"{ratio:.2f}",
        ]
        table.add_row(*row, timing.verdict(ratio, least=1 - WITHIN, most=1 + WITHIN))
    timing.show(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
