"""How fast is the engine? Examples a second of FedAvg, beside the limit and beside FedJAX, in turn in one run.

    python scripts/bench_engine.py                        synth and mlp
    python scripts/bench_engine.py --workloads emnist --no-fedjax

The limit is the same number of SGD steps of one model with full batches in one compiled loop, without any client. FedJAX runs in a process
of its own, in an environment that is made the first time (.venv-fedjax). Each turn gives ours, the limit and the peer some rounds; the
ratio is taken turn by turn, so that a machine whose speed drifts does not decide it. Compilation and warm-up are not counted.
"""

import json
import os
import platform
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_workloads as bench
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import fedjax_core as fc

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """What to measure, and how often."""

    workloads: tuple[str, ...] = ("synth", "mlp")
    """Any of synth, mlp, emnist."""
    turns: int = 7
    """How often each engine has its turn."""
    rounds: int = 4
    """Rounds in a turn of ours, dispatched one after another as a run would; FedJAX and the limit have one."""
    lanes: int = 0
    """0: chosen by the engine."""
    fedjax: bool = True
    """Measure FedJAX too."""


Turn = Callable[[], float]
"""Runs some rounds: seconds a round."""


def ours(workload: bench.Workload, data: bench.Data, cohorts: list[np.ndarray], settings: Settings) -> tuple[Turn, int]:
    """A turn of this engine by its public calls, and the number of lanes."""
    task = fc.Task(workload.init, lambda params, batch, key: bench.losses(workload.logits(params, batch["x"]), batch["y"]))
    clients = fc.Clients.from_arrays({"x": data.x, "y": data.y}, offsets=data.offsets)
    algorithm = fc.algorithms.fedavg(task, local=optax.sgd(workload.lr))
    simulator = fc.Simulator(fc.compose(algorithm), clients, batch_size=workload.batch_size, epochs=1, lanes=settings.lanes or "auto")
    state, drawn = simulator.init(jax.random.key(0)), iter(cohorts)

    def turn() -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(settings.rounds):
            state, _ = simulator.run(state, next(drawn))
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / settings.rounds

    return turn, simulator.lanes


def limit(workload: bench.Workload, data: bench.Data, examples: float) -> Turn:
    """A turn of plain SGD on one model: as many steps as a round has full batches."""
    batch, steps = workload.batch_size, int(examples) // workload.batch_size
    x, y = jnp.asarray(data.x[: steps * batch]), jnp.asarray(data.y[: steps * batch])
    logits = workload.quick or workload.logits

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> Any:
        def step(i: Any, params: Any) -> Any:
            rows = [jax.lax.dynamic_slice_in_dim(a, i * batch, batch) for a in (x, y)]
            grads = jax.grad(lambda p: jnp.mean(bench.losses(logits(p, rows[0]), rows[1])))(params)
            return jax.tree.map(lambda p, g: p - workload.lr * g, params, grads)

        return jax.lax.fori_loop(0, steps, step, params)

    params = workload.init(jax.random.key(0))

    def turn() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run(params, x, y))
        return (time.perf_counter() - start) * examples / (steps * batch)

    return turn


def fedjax(name: str) -> Turn:
    """A turn of FedJAX, one round, in its own process."""
    python = ROOT / ".venv-fedjax" / "bin" / "python"
    if not python.exists():
        print(f"making {python.parents[1]}")
        venv.create(python.parents[1], with_pip=True)
        wanted = ["fedjax==0.0.17", f"jax=={jax.__version__}", "numpy"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    script = [python, ROOT / "scripts" / "bench_fedjax.py", name]
    process = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment)

    def turn() -> float:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("go\n")
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"FedJAX stopped with status {process.wait()}; run {' '.join(map(str, script))} to see why")
        return float(line)

    return turn


def main(settings: Settings) -> None:
    """Measures each workload and prints the table."""
    device = jax.devices()[0]
    print(f"{device.device_kind}, {os.cpu_count()} cores, {platform.machine()}; Python {platform.python_version()}, jax {jax.__version__}")
    table = Table("workload", "lanes", "engine", "examples/s", "spread", "ours / it", "spread of that")
    for name in settings.workloads:
        workload = bench.WORKLOADS[name]
        data = workload.data()
        cohorts = bench.cohorts(workload, len(data.offsets) - 1, settings.rounds * (settings.turns + 1))
        examples = float(np.mean([np.diff(data.offsets)[cohort].sum() for cohort in cohorts]))
        first, lanes = ours(workload, data, cohorts, settings)
        engines: dict[str, Turn] = {"ours": first, "limit": limit(workload, data, examples)}
        if settings.fedjax:
            engines["FedJAX"] = fedjax(name)
        for turn in engines.values():
            turn()
        seconds: dict[str, list[float]] = {engine: [] for engine in engines}
        for _ in range(settings.turns):
            for engine, turn in engines.items():
                seconds[engine].append(turn())
        for engine, times in seconds.items():
            speed, ratio = examples / np.array(times), np.array(times) / np.array(seconds["ours"])
            against = (f"{np.median(ratio):.2f}", f"{ratio.min():.2f} to {ratio.max():.2f}") if engine != "ours" else ("", "")
            spread = f"{speed.min():,.0f} to {speed.max():,.0f}"
            table.add_row(name, str(lanes) if engine == "ours" else "", engine, f"{np.median(speed):,.0f}", spread, *against)
        table.add_section()
        print(json.dumps({"workload": name, "lanes": lanes, "seconds_per_round": seconds, "examples_per_round": examples}))
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
