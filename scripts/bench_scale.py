"""What a round costs as things grow: clients a round, the population, the model, devices; and what compiling
costs.

    python scripts/bench_scale.py                                      everything: a quarter of an hour on two idle cores, and 1.3 GB
    python scripts/bench_scale.py --parts clients compile
    python scripts/bench_scale.py --parts population --populations 1000 100000

lanes        the number of lanes that "auto" chooses beside fixed numbers, on every workload: at most 10 % slower than the best of them
clients      ten times the clients a round, of one population: time at most 10.5 times
population   the same cohort size, of 1,000 clients and of a million in memory-mapped files: time within 10 %, resident memory within 20 %
model        perceptrons of several widths, beside the limit of bench_engine.py
devices      the same round on a mesh of 1, 2, 4 and 8 devices; where there are fewer, on fake devices of the CPU, which share its cores
compile      programs for 200 rounds of random cohorts: at most 2; a script's way to the end of round 1 when started again: at most half

What is compared takes turns, each in a process of its own where memory or devices are concerned. Times are
per example worked on, since cohorts differ in size.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bench_engine as engine
import bench_timing as timing
import bench_workloads as bench
import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh
from rich.table import Table

import fedjax_core as fc

FEATURES, CLASSES = 16, 10  # of the clients in files


@dataclass(frozen=True)
class Settings:
    """What to measure, and how large."""

    parts: tuple[str, ...] = ("lanes", "clients", "population", "model", "devices", "compile")
    """Any of lanes, clients, population, model, devices, compile."""
    turns: int = 7
    """How often each case has its turn."""
    seconds: float = 0.5
    """How long a turn is at least."""
    lanes: int = 0
    """0: chosen by the engine; over several devices there are 64."""
    cohorts: tuple[int, ...] = (100, 1_000, 10_000)
    """Clients a round."""
    populations: tuple[int, ...] = (1_000, 1_000_000)
    """Clients altogether; 500 of them a round."""
    workloads: tuple[str, ...] = tuple(bench.WORKLOADS)
    """On which lanes are chosen."""
    fixed: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Numbers of lanes to choose from; beyond the chosen one, those up to four times more and four times
    fewer have their turn."""
    widths: tuple[int, ...] = (64, 256, 1024)
    """Of the perceptron's two hidden layers."""
    cores: int = 0
    """On a CPU, how many cores have lanes of their own; 0: all. The parts devices and start have what they
    say."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """How many there are."""
    rounds: int = 200
    """Of which the programs are counted."""
    started: str = "transformer"
    """The workload that is started twice."""


def lanes(name: str, settings: Settings) -> tuple[int, dict[str, np.ndarray]]:
    """The number that is chosen, and seconds an example for it and for its neighbours."""
    workload = bench.WORKLOADS[name]
    data, turns = workload.data(), {}
    made, state = engine.simulator(name, workload, data, 0, mesh=engine.mesh(settings.cores))
    turns["auto"] = timing.turn_of(engine.rounds(made, state, workload.cohort), settings.seconds)
    chosen = made.lanes
    for fixed in (n for n in settings.fixed if chosen / 4 <= n <= 4 * chosen and n != chosen):
        made, state = engine.simulator(name, workload, data, fixed, mesh=engine.mesh(settings.cores))
        turns[str(fixed)] = timing.turn_of(engine.rounds(made, state, workload.cohort), settings.seconds)
    return chosen, timing.alternate(turns, settings.turns)


def clients(settings: Settings) -> dict[str, np.ndarray]:
    """Seconds an example for each number of clients a round."""
    workload = replace(bench.WORKLOADS["synth"], data=bench.noise((60,), 10, 2 * max(settings.cohorts), 30))
    data, turns = workload.data(), {}
    for cohort in settings.cohorts:
        made, state = engine.simulator(
            "synth", workload, data, settings.lanes, mesh=engine.mesh(settings.cores)
        )
        turns[f"{cohort:,}"] = timing.turn_of(engine.rounds(made, state, cohort), settings.seconds)
    return timing.alternate(turns, settings.turns)


def model(settings: Settings) -> dict[str, np.ndarray]:
    """Seconds an example for each width, of ours and of the limit."""
    turns = {}
    for width in settings.widths:
        workload = replace(bench.WORKLOADS["mlp"], cohort=50, init=bench.layers(784, width, width, 10))
        data = workload.data()
        made, state = engine.simulator(
            "mlp", workload, data, settings.lanes, mesh=engine.mesh(settings.cores)
        )
        turns[f"{width:,}"] = timing.turn_of(engine.rounds(made, state, workload.cohort), settings.seconds)
        turns[f"{width:,}, limit"] = timing.turn_of(engine.limit(workload, data), settings.seconds)
    return timing.alternate(turns, settings.turns)


def write(folder: Path, population: int) -> None:
    """A population in files, of about 20 examples a client: each row a window of one line of noise, never
    whole in memory."""
    rng = np.random.default_rng(0)
    sizes = np.maximum(1, rng.lognormal(np.log(20) - 0.18, 0.6, population).astype(int))
    examples = int(sizes.sum())
    x = np.lib.stride_tricks.sliding_window_view(rng.random(examples + FEATURES - 1, np.float32), FEATURES)
    y = rng.integers(0, CLASSES, examples).astype(np.int32)
    fc.Clients({"x": x, "y": y}, np.concatenate([[0], sizes.cumsum()])).save(folder)


_turn: timing.Turn | None = None


def start(make: Callable[..., timing.Dispatch], *args: Any) -> None:
    """Makes the turn of this process."""
    global _turn
    _turn = timing.turn_of(make(*args[:-1]), args[-1])


def go() -> float:
    """The turn of this process: seconds an example."""
    assert _turn is not None
    return _turn()


def from_files(folder: Path, cohort: int, lanes: int, cores: int = 1) -> timing.Dispatch:
    """Rounds of logistic regression on memory-mapped clients."""
    mesh = engine.mesh(cores)
    task = fc.models.logistic(features=FEATURES, classes=CLASSES)
    composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.1)))
    simulator = fc.Simulator(
        composed, fc.Clients.open(folder), batch_size=10, epochs=1, lanes=lanes or "auto", mesh=mesh
    )
    return engine.rounds(simulator, simulator.init(jax.random.key(0)), cohort)


def on_devices(count: int, lanes: int) -> timing.Dispatch:
    """Rounds of synth on a mesh of so many devices."""
    workload, mesh = bench.WORKLOADS["synth"], Mesh(np.array(jax.devices()[:count]), ("lanes",))
    made, state = engine.simulator("synth", workload, workload.data(), lanes or 64, mesh=mesh)
    return engine.rounds(made, state, workload.cohort)


def population(settings: Settings, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, int]]]:
    """For each population: seconds an example, and the memory of its process afterwards."""
    with ExitStack() as stack:
        calls = {}
        for size in settings.populations:
            timing.say(f"population: writing {size:,} clients")
            with timing.process() as call:
                call(write, folder / str(size), size)
            calls[f"{size:,}"] = stack.enter_context(timing.process())
            calls[f"{size:,}"](
                start,
                from_files,
                folder / str(size),
                min(500, size),
                settings.lanes,
                settings.cores,
                settings.seconds,
            )
        seconds = timing.alternate(
            {name: lambda call=call: call(go) for name, call in calls.items()}, settings.turns
        )
        return seconds, {name: call(timing.memory) for name, call in calls.items()}


def devices(settings: Settings) -> dict[str, np.ndarray]:
    """Seconds an example for each number of devices."""
    with ExitStack() as stack:
        calls = {}
        for count in settings.devices:
            fake = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
            call = stack.enter_context(timing.process(**fake))
            if call(jax.device_count) < count:
                call = stack.enter_context(timing.process(**fake, JAX_PLATFORMS="cpu"))
            calls[f"{count} {call(jax.default_backend)}"] = call
            call(start, on_devices, count, settings.lanes, settings.seconds)
        return timing.alternate(
            {name: lambda call=call: call(go) for name, call in calls.items()}, settings.turns
        )


def programs(settings: Settings) -> int:
    """How many programs are compiled for so many rounds of random cohorts, one a dispatch and then ten."""
    workload = bench.WORKLOADS["synth"]
    made, state = engine.simulator(
        "synth", workload, workload.data(), settings.lanes, mesh=engine.mesh(settings.cores)
    )
    drawn = bench.cohorts(workload.cohort, len(made.clients))
    singly = settings.rounds // 2
    for _ in range(singly):
        state, _ = made.run(state, next(drawn))
    for done in range(singly, settings.rounds, 10):
        state, _ = made.run_many(state, [next(drawn) for _ in range(min(10, settings.rounds - done))])
    return made.traces


def first_round(name: str, lanes: int) -> None:
    """All of a small script: data, model, one round."""
    workload = bench.WORKLOADS[name]
    made, state = engine.simulator(name, workload, workload.data(), lanes)
    jax.block_until_ready(engine.rounds(made, state, workload.cohort)())


def starts(settings: Settings) -> list[float]:
    """Seconds from starting Python to the end of round 1: with nothing remembered, and again."""
    taken = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            begin = time.perf_counter()
            with timing.process(FEDJAX_CORE_CACHE=cache) as call:
                call(first_round, settings.started, settings.lanes)
                taken.append(time.perf_counter() - begin)
    return taken


def growth(title: str, seconds: dict[str, np.ndarray], most: float | None = None, times: int = 1) -> Table:
    """A table in which each row's time for `times` the examples stands beside the row's before."""
    against = "time / the row before" if times == 1 else f"time of {times} times the work / the row before"
    table = Table(title, "examples/s", "spread", against, "spread of that", "target")
    before: np.ndarray | None = None
    for name, taken in seconds.items():
        row = [name, *timing.spread(1 / taken, ",.0f")]
        if before is not None:
            ratio = times * taken / before
            row += [*timing.spread(ratio, ".2f"), timing.verdict(float(np.median(ratio)), most=most)]
        table.add_row(*row)
        before = taken
    return table


def main(settings: Settings) -> None:
    """Measures each part and prints its table."""
    with timing.process() as call:
        print(call(timing.header))
    for part in settings.parts:
        timing.say(f"{part} ...")
        if part == "lanes":
            table = Table(
                "workload",
                "lanes chosen",
                "examples/s",
                "spread",
                "best fixed",
                "chosen / best",
                "spread of that",
                "target",
            )
            for name in settings.workloads:
                with timing.process() as call:
                    chosen, found = call(lanes, name, settings)
                best = min(found, key=lambda n, found=found: float(np.median(found[n])))
                ratio = found[best] / found["auto"]
                judged = timing.verdict(float(np.median(ratio)), least=0.9)
                fixed = str(chosen) if best == "auto" else best
                table.add_row(
                    name,
                    str(chosen),
                    *timing.spread(1 / found["auto"], ",.0f"),
                    fixed,
                    *timing.spread(ratio, ".2f"),
                    judged,
                )
            timing.show(table)
        elif part == "clients":
            with timing.process() as call:
                found = call(clients, settings)
            timing.show(growth("clients a round", found, most=10.5, times=10))
        elif part == "population":
            with tempfile.TemporaryDirectory() as folder:
                seconds, memory = population(settings, Path(folder))
            timing.show(growth("clients altogether", seconds, most=1.1))
            table = Table("clients altogether", "resident MB", "of it files", "against the first", "target")
            least = next(iter(memory.values()))["VmRSS"]
            for name, found in memory.items():
                judged = timing.verdict(found["VmRSS"] / least, most=1.2) if found["VmRSS"] != least else ""
                table.add_row(
                    name,
                    *(f"{found[k] / 1e6:,.0f}" for k in ("VmRSS", "RssFile")),
                    f"{found['VmRSS'] / least:.2f}",
                    judged,
                )
            timing.show(table)
        elif part == "model":
            with timing.process() as call:
                found = call(model, settings)
            table = Table(
                "hidden layers of",
                "examples/s",
                "spread",
                "limit, examples/s",
                "ours / limit",
                "spread of that",
            )
            for width in (f"{width:,}" for width in settings.widths):
                ours, limit = found[width], found[f"{width}, limit"]
                at_limit = f"{np.median(1 / limit):,.0f}"
                table.add_row(
                    width, *timing.spread(1 / ours, ",.0f"), at_limit, *timing.spread(limit / ours, ".2f")
                )
            timing.show(table)
        elif part == "devices":
            timing.show(growth("devices", devices(settings)))
        elif part == "compile":
            with timing.process() as call:
                count = call(programs, settings)
            first, second = starts(settings)
            table = Table("compiling", "found", "target")
            table.add_row(
                f"programs for {settings.rounds} rounds of random cohorts",
                str(count),
                timing.verdict(count, most=2),
            )
            table.add_row(
                f"{settings.started}: seconds to the end of round 1, first start", f"{first:.1f}", ""
            )
            table.add_row("started again", f"{second:.1f}", "")
            table.add_row("second / first", f"{second / first:.2f}", timing.verdict(second / first, most=0.5))
            timing.show(table)
        else:
            raise ValueError(
                f"there is no part {part!r}: choose from lanes, clients, population, model, devices, compile"
            )


if __name__ == "__main__":
    main(tyro.cli(Settings))
