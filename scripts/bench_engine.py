"""How fast is the engine? Examples a second of FedAvg, beside the limit and beside FedJAX, in turn in one
run.

    python scripts/bench_engine.py                                             everything: 5 minutes on two idle cores
    python scripts/bench_engine.py --workloads synth mlp --turns 15
    python scripts/bench_engine.py --workloads emnist --no-fedjax --lanes 4

The limit is SGD steps of one model with full batches in one compiled loop, without any client. FedJAX runs in
a process of its own, in an environment that is made the first time (.venv-fedjax). Ours has lanes on every
core; the limit and FedJAX have the cores that XLA gives them. All three take turns and ratios are formed turn
by turn, so that a machine whose
speed drifts does not decide them; compilation and warm-up are not counted. For emnist ours trains an ordinary
Flax module, the others the same network as a pure function, the limit in the form that compiles best.

`skew` gives one client 100 times the median's work, and asks how full the lanes are and what a step costs
beside clients of equal size."""

import itertools
import json
import os
import subprocess
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_timing as timing
import bench_workloads as bench
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import Mesh
from rich.table import Table

import fedjax_core as fc

ROOT = Path(__file__).resolve().parents[1]

# (workload, engine) -> how many times its examples a second ours does at least.
TARGETS = {
    ("synth", "limit"): 0.85,
    ("synth", "FedJAX"): 25,
    ("mlp", "limit"): 1.0,
    ("mlp", "FedJAX"): 2.3,
    ("emnist", "FedJAX"): 1.8,
    ("char-lstm", "limit"): 0.8,
    ("char-lstm", "FedJAX"): 2,
    ("transformer", "limit"): 0.8,  # FedJAX has no transformer of its own: its algorithm runs ours
}
FILL, OVER_BALANCED = 0.9, 1.15


@dataclass(frozen=True)
class Settings:
    """What to measure, and how often."""

    workloads: tuple[str, ...] = (*bench.WORKLOADS, "skew")
    """Any of synth, mlp, emnist, char-lstm, transformer, skew."""
    turns: int = 7
    """How often each engine has its turn."""
    seconds: float = 0.5
    """How long a turn of ours and of the limit is at least; FedJAX has one round."""
    lanes: int = 0
    """0: chosen by the engine; skew has 16."""
    cores: int = 0
    """On a CPU, how many cores ours has lanes on, each a device; 0: all (`fc.cores()`)."""
    fedjax: bool = True
    """Measure FedJAX too."""


def mesh(cores: int) -> Mesh | None:
    """A device for each of so many cores, 0: for all of them; to be called before anything is computed."""
    return None if cores == 1 else fc.cores(cores or None)


def task(name: str, workload: bench.Workload) -> tuple[fc.Task, Callable[[Any], Any]]:
    """What ours trains, and the workload's parameters as it names them: for emnist the Flax module as it
    comes."""
    if name == "emnist":
        return fc.models.cnn(), in_flax
    return fc.Task(
        workload.init,
        lambda params, batch, key: bench.losses(workload.logits(params, batch["x"]), batch["y"]),
    ), lambda p: p


def in_flax(params: Any) -> Any:
    """The parameters of the pure CNN under the names of `fc.models.cnn()`."""
    layers = {"Conv": params["conv"], "Dense": params["dense"]}
    return {
        f"{kind}_{i}": {"kernel": p["w"], "bias": p["b"]}
        for kind, these in layers.items()
        for i, p in enumerate(these)
    }


def simulator(
    name: str, workload: bench.Workload, data: bench.Data, lanes: int, **settings: Any
) -> tuple[fc.Simulator, Any]:
    """This engine by its public calls, and its first state; `lanes` of 0 leaves them to it."""
    learnt, renamed = task(name, workload)
    clients = fc.Clients.from_arrays({"x": data.x, "y": data.y}, offsets=data.offsets)
    composed = fc.compose(fc.algorithms.fedavg(learnt, local=optax.sgd(workload.lr)))
    made = fc.Simulator(
        composed, clients, batch_size=workload.batch_size, epochs=1, lanes=lanes or "auto", **settings
    )
    return made, made.init(jax.random.key(0), params=renamed(workload.init(jax.random.key(0))))


def rounds(simulator: fc.Simulator, state: Any, cohort: int) -> timing.Dispatch:
    """Each call a round with clients drawn at random, beforehand."""
    drawn = itertools.islice(bench.cohorts(cohort, len(simulator.clients)), 50)
    turns = itertools.cycle([(who, float(simulator.clients.sizes[who].sum())) for who in drawn])

    def dispatch() -> tuple[Any, float]:
        nonlocal state
        who, examples = next(turns)
        state, _ = simulator.run(state, who)
        return state, examples

    return dispatch


def sgd(logits: Callable[[Any, Any], Any], lr: float, batch_size: int) -> Callable[[Any, Any, Any], Any]:
    """(params, x, y) -> params after one pass in batches, the rows that fill none left out: one compiled
    loop."""

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> Any:
        def step(i: Any, params: Any) -> Any:
            rows = [jax.lax.dynamic_slice_in_dim(a, i * batch_size, batch_size) for a in (x, y)]
            grads = jax.grad(lambda p: jnp.mean(bench.losses(logits(p, rows[0]), rows[1])))(params)
            return jax.tree.map(lambda p, g: p - lr * g, params, grads)

        return jax.lax.fori_loop(0, len(x) // batch_size, step, params)

    return run


def limit(workload: bench.Workload, data: bench.Data) -> timing.Dispatch:
    """Each call as many steps of plain SGD on one model as a round has full batches."""
    batches = int(np.diff(data.offsets).mean() * workload.cohort) // workload.batch_size
    examples = max(1, batches) * workload.batch_size
    x, y, params = (
        jnp.asarray(data.x[:examples]),
        jnp.asarray(data.y[:examples]),
        workload.init(jax.random.key(0)),
    )
    run = sgd(workload.quick or workload.logits, workload.lr, workload.batch_size)
    return lambda: (run(params, x, y), examples)


@contextmanager
def fedjax(name: str) -> Iterator[tuple[str, timing.Turn]]:
    """(the platform it runs on, a turn of one round): FedJAX in its own process."""
    python = ROOT / ".venv-fedjax" / "bin" / "python"
    if not python.exists():
        timing.say(f"making {python.parents[1]}")
        venv.create(python.parents[1], with_pip=True)
        wanted = ["fedjax==0.0.17", f"jax=={jax.__version__}", "numpy"]
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True
        )
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # a GPU is shared with ours
    script = [python, ROOT / "scripts" / "bench_fedjax.py", name]
    with subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as peer:

        def read() -> str:
            assert peer.stdout is not None
            if not (line := peer.stdout.readline().strip()):
                raise RuntimeError(
                    f"FedJAX stopped with status {peer.wait()}; run {' '.join(map(str, script))} to see why"
                )
            return line

        def turn() -> float:
            assert peer.stdin is not None
            peer.stdin.write("go\n")
            return float(read())

        yield read(), turn


def compare(name: str, settings: Settings, table: Table) -> None:
    """A workload's rows: ours, the limit and FedJAX."""
    workload = bench.WORKLOADS[name]
    timing.say(f"{name}: {workload.title}")
    data = workload.data()
    made, state = simulator(name, workload, data, settings.lanes, mesh=mesh(settings.cores))
    with ExitStack() as stack:
        timing.say(f"{name}: compiling ours and the limit")
        engines = {"ours": timing.turn_of(rounds(made, state, workload.cohort), settings.seconds)}
        engines["limit"] = timing.turn_of(limit(workload, data), settings.seconds)
        if settings.fedjax:
            platform, turn = stack.enter_context(fedjax(name))
            engines["FedJAX" if platform == jax.default_backend() else f"FedJAX on {platform}"] = turn
        timing.say(f"{name}: {settings.turns} turns of {', '.join(engines)}")
        seconds = timing.alternate(engines, settings.turns)
    for engine, taken in seconds.items():
        row = [name, str(made.lanes) if engine == "ours" else "", engine, *timing.spread(1 / taken, ",.0f")]
        if engine != "ours":
            ratio = taken / seconds["ours"]
            row += [
                *timing.spread(ratio, ".2f"),
                timing.verdict(float(np.median(ratio)), least=TARGETS.get((name, engine))),
            ]
        table.add_row(*row)
    table.add_section()
    print(
        json.dumps(
            {
                "workload": name,
                "lanes": made.lanes,
                "seconds_an_example": {k: v.tolist() for k, v in seconds.items()},
            }
        )
    )


def uneven(clients: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(sizes of clients of whole batches of which one has 100 times the median, sizes of equal clients with
    as many batches in all)."""
    steps = np.maximum(1, np.random.default_rng(0).lognormal(np.log(2), 0.5, clients).round().astype(int))
    median = int(np.median(steps))
    steps[0] = 100 * median
    steps[1] += -steps.sum() % median
    return steps * batch_size, np.full(steps.sum() // median, median * batch_size)


def skew(clients: int, settings: Settings, table: Table) -> None:
    """The row of a cohort in which one client has 100 times the median's work."""
    lanes, workload = settings.lanes or 16, bench.WORKLOADS["synth"]
    timing.say(f"skew: {clients} clients in {lanes} lanes")
    engines, fills = {}, []
    for name, sizes in zip(("skewed", "balanced"), uneven(clients, workload.batch_size), strict=True):
        offsets = np.concatenate([[0], sizes.cumsum()])
        rng = np.random.default_rng(0)
        data = bench.Data(
            rng.random((offsets[-1], 60), np.float32),
            rng.integers(0, 10, offsets[-1]).astype(np.int32),
            offsets,
        )
        made, state = simulator("synth", workload, data, lanes, mesh=mesh(settings.cores))
        fills.append((made.plan(len(sizes)).fill, min(1.0, sizes.sum() / sizes.max() / lanes)))
        engines[name] = timing.turn_of(rounds(made, state, len(sizes)), settings.seconds)
    seconds = timing.alternate(engines, settings.turns)
    (fill, at_best), ratio = fills[0], seconds["skewed"] / seconds["balanced"]
    reachable = at_best >= FILL
    judged = timing.verdict(fill, least=FILL if reachable else None)
    judged_time = timing.verdict(float(np.median(ratio)), most=OVER_BALANCED if reachable else None)
    table.add_row(
        f"{clients:,}",
        str(lanes),
        f"{fill:.3f}",
        f"{at_best:.3f}",
        judged,
        *timing.spread(ratio, ".2f"),
        judged_time,
    )


def main(settings: Settings) -> None:
    """Measures each workload and prints the tables."""
    mesh(settings.cores)
    print(timing.header())
    names = [name for name in settings.workloads if name != "skew"]
    speeds = Table(
        "workload", "lanes", "engine", "examples/s", "spread", "ours / it", "spread of that", "target"
    )
    for name in names:
        compare(name, settings, speeds)
    if names:
        timing.show(speeds)
    if "skew" in settings.workloads:
        shape = Table(
            "clients",
            "lanes",
            "fill",
            "at best",
            "target",
            "time / balanced",
            "spread",
            "target",
            title="one of 100 times the median",
        )
        for clients in (2000, 200):  # of 200, one client is a longer lane than arithmetic can fill
            skew(clients, settings, shape)
        timing.show(shape)


if __name__ == "__main__":
    main(tyro.cli(Settings))
