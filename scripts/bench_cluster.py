"""What do Ray workers cost and bring? A round of clients that do next to nothing, and examples a second of
workers against one process.

    python scripts/bench_cluster.py                                  2 workers
    python scripts/bench_cluster.py --workers 4 --workloads mlp
    python scripts/bench_cluster.py --workloads scaffold:mlp         what clients keep goes to the workers and back
    python scripts/bench_cluster.py --workloads scaffold:mlp --client-state rows     it lies in files of the workers

The two have their turns one after another; the ratio is taken turn by turn, so that a machine whose speed
drifts does not decide it. Compilation and warm-up are not counted. One process uses as many threads as XLA
likes, a worker one core."""

import itertools
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import bench_workloads as bench
import jax
import numpy as np
import optax
import ray
import tyro
from rich.console import Console
from rich.table import Table

import fedjax_core as fc


@dataclass(frozen=True)
class Settings:
    """What to measure, and how often."""

    workers: int = 2
    """Each with a core of its own."""
    workloads: tuple[str, ...] = ("synth", "mlp")
    """Any of those in bench_workloads.py, by FedAvg, or by SCAFFOLD as in scaffold:mlp."""
    turns: int = 7
    """How often each has its turn."""
    rounds: int = 3
    """Rounds in a turn."""
    client_state: str = "device"
    """Where what clients keep lies, for the workers: "device", "host", or a folder."""


def idle_clients(clients: int = 100) -> tuple[fc.Round, fc.Clients, list[np.ndarray]]:
    """Clients of one example who take one step of a model of two numbers: what is left is the way there and
    back."""
    data = fc.Clients.from_arrays(
        {"x": np.ones((clients, 1), np.float32), "y": np.ones(clients, np.float32)}, np.arange(clients + 1)
    )
    return (
        fc.compose(fc.algorithms.fedavg(fc.models.linear(features=1), optax.sgd(0.1))),
        data,
        [np.arange(clients)] * 1000,
    )


def real_work(
    workload: bench.Workload, rounds: int, scaffold: bool
) -> tuple[fc.Round, fc.Clients, list[np.ndarray]]:
    """A workload of the benchmarks."""
    data = workload.data()
    clients = fc.Clients.from_arrays({"x": data.x, "y": data.y}, offsets=data.offsets)
    task = fc.Task(
        workload.init,
        lambda params, batch, key: bench.losses(workload.logits(params, batch["x"]), batch["y"]),
    )
    if scaffold:
        composed = fc.compose(fc.algorithms.scaffold(task, lr=workload.lr, population=len(clients)))
    else:
        composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(workload.lr)))
    return composed, clients, list(itertools.islice(bench.cohorts(workload.cohort, len(clients)), rounds))


def turns(simulators: Sequence[Any], cohorts: list[np.ndarray], settings: Settings) -> np.ndarray:
    """Seconds a round, [simulators, turns]."""
    states, drawn, found = [sim.init(jax.random.key(0)) for sim in simulators], iter(cohorts), []
    for _ in range(settings.turns + 1):
        now = [next(drawn) for _ in range(settings.rounds)]
        for i, sim in enumerate(simulators):
            start = time.perf_counter()
            for cohort in now:
                states[i], _ = sim.run(states[i], cohort)
            jax.block_until_ready(states[i])
            found.append((time.perf_counter() - start) / settings.rounds)
    return np.array(found).reshape(-1, len(simulators)).T[:, 1:]


def main(settings: Settings) -> None:
    """Measures and prints the table."""
    print(
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}; jax {jax.__version__}, ray {ray.__version__}"
    )
    workers = f"{settings.workers} workers"
    table = Table(
        "clients a round",
        "lanes",
        "ms a round, one process",
        workers,
        f"examples/s, {workers}",
        "workers / one process",
        "client state MB",
    )
    for name in ("idle", *settings.workloads):
        algorithm, _, named = name.rpartition(":")
        workload = bench.WORKLOADS[named] if name != "idle" else None
        batch = workload.batch_size if workload else 1
        rounds = settings.rounds * (settings.turns + 1)
        composed, clients, cohorts = (
            real_work(workload, rounds, algorithm == "scaffold") if workload else idle_clients()
        )
        one = fc.Simulator(composed, clients, batch_size=batch, epochs=1)
        options: dict[str, Any] = {
            "workers": settings.workers,
            "lanes": one.lanes,
            "client_state": settings.client_state,
        }
        with fc.ClusterSimulator(composed, clients, batch_size=batch, epochs=1, **options) as many:
            seconds, moved = (
                turns([one, many], cohorts, settings),
                many.meter.report()["client state MB/round"],
            )
        examples = float(np.mean([clients.sizes[cohort].sum() for cohort in cohorts]))
        milliseconds = [
            f"{np.median(s) * 1e3:,.1f} ({s.min() * 1e3:,.1f} to {s.max() * 1e3:,.1f})" for s in seconds
        ]
        ratio = seconds[0] / seconds[1]
        against = f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
        table.add_row(
            f"{len(cohorts[0]):,} {name}",
            str(one.lanes),
            *milliseconds,
            f"{examples / np.median(seconds[1]):,.0f}",
            against,
            f"{moved:,.0f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
