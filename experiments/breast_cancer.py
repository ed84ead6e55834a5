"""Five hospitals learn one model of breast cancer from real patients, without sharing them: the project's main job.

    python experiments/breast_cancer.py                     about a minute on two cores; --quick for a look

Compares what each hospital reaches alone, what they reach together (FedAvg, FedProx, SCAFFOLD), and what one could reach with all
patients in one place. Prints and saves a table a clinician can read, three figures, and the runs with their checkpoints; then shows
how many examples a second a thousand simulated clients a round come to. Runs that are already in --out are taken up where they
stand, so that a second call trains nothing.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from rich.console import Console

import fedjax_core as fc
from fedjax_core.clinical import figures, performance, tables
from fedjax_core.clinical.performance import Predictions
from fedjax_core.data.datasets import breast_cancer
from fedjax_core.run import History

BATCH, EPOCHS, LR, MU = 16, 5, 0.05, 0.1
METRICS = ("auroc", "accuracy", "calibration")


@dataclass(frozen=True)
class Settings:
    """The five-hospital breast-cancer study."""

    rounds: int = 30
    """Rounds of 5 local epochs; alone and pooled train as many."""
    out: Path = Path("runs/breast_cancer")
    """Where runs, table and figures go."""
    seed: int = 0
    """Deals the patients to hospitals and draws the shuffles."""
    quick: bool = False
    """3 rounds and 100 simulated clients: to see that everything works."""


def train(task: fc.Task, rounds: int, runs: Path, seed: int) -> tuple[dict[str, dict[str, Predictions]], dict[str, list[float]]]:
    """Each method's predictions for every hospital's test patients, and the training loss in every round of those with one model."""
    data = breast_cancer(seed)
    local = optax.sgd(LR)
    fedavg = fc.algorithms.fedavg(task, local=local)

    def fit(name: str, algorithm: fc.algorithms.Algorithm, clients: fc.Clients) -> History:
        sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=BATCH, epochs=EPOCHS, seed=seed)
        everyone = fc.cohorts.everyone(len(clients))
        print(f"training {name}", flush=True)
        history = fc.fit(sim, rounds=rounds, cohorts=everyone, run_dir=runs / name, checkpoint_every=10, rounds_per_dispatch=10)
        if history.stopped == "interrupted":
            raise SystemExit(f"interrupted in {name} and saved; the same command goes on from there")
        return history

    found: dict[str, dict[str, Predictions]] = {"alone": {}}
    for i, hospital in enumerate(data.train.ids):
        history = fit(f"alone_{hospital.replace(' ', '_')}", fedavg, data.train.select([i]))
        found["alone"] |= performance.predictions(task, history.state.params, data.test.select([i]))
    histories: dict[str, History] = {}
    for name, algorithm in {
        "FedAvg": fedavg,
        "FedProx": fc.algorithms.fedprox(task, mu=MU, local=local),
        "SCAFFOLD": fc.algorithms.scaffold(task, lr=LR, population=len(data.train), weighting=fc.algorithms.by_examples),
    }.items():
        histories[name] = fit(name.lower(), algorithm, data.train)
    histories["pooled data"] = fit("pooled", fedavg, data.pooled_train)
    found |= {name: performance.predictions(task, history.state.params, data.test) for name, history in histories.items()}
    losses = {name: [record["loss"] for record in history.records if record["kind"] == "train"] for name, history in histories.items()}
    return found, losses


def simulate(cohort: int, seed: int, cores: jax.sharding.Mesh) -> str:
    """Trains on synthetic(1,1) clients, `cohort` of them a round; one line on how fast that went."""
    sizes = np.maximum(10, np.random.default_rng(seed).lognormal(np.log(60) - 0.5, 1, 2 * cohort).astype(int))  # mean 60, a heavy tail
    clients = fc.synthetic.synthetic(1, 1, clients=2 * cohort, seed=seed, sizes=sizes)
    algorithm = fc.algorithms.fedavg(fc.models.logistic(features=60, classes=10), local=optax.sgd(0.01))
    sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=10, epochs=1, mesh=cores)
    sample, state, speeds = fc.cohorts.uniform(len(clients), size=cohort, seed=seed), sim.init(jax.random.key(seed)), []
    for start in range(0, 40, 5):  # five rounds a dispatch
        cohorts = [sample(round) for round in range(start, start + 5)]
        began = time.perf_counter()
        state, _ = jax.block_until_ready(sim.run_many(state, cohorts))
        seconds = time.perf_counter() - began
        if start:  # the first compiles
            speeds.append(sum(int(clients.sizes[each].sum()) for each in cohorts) / seconds)
    return (
        f"{cohort:,} simulated clients a round, logistic regression 60 x 10, batches of 10, {sim.lanes} lanes: "
        f"{statistics.median(speeds):,.0f} examples/s (median of {len(speeds)}, {min(speeds):,.0f} to {max(speeds):,.0f}; "
        f"{cores.size} x {jax.devices()[0].device_kind})"
    )


def main(settings: Settings) -> int:
    console, cores = Console(width=130), fc.cores()  # asked for before JAX begins
    rounds = min(3, settings.rounds) if settings.quick else settings.rounds
    out, runs = settings.out, settings.out / "runs" / f"seed{settings.seed}_rounds{rounds}"
    task = fc.models.logistic(features=30, classes=1)
    print(f"569 patients, five hospitals, {rounds} rounds of {EPOCHS} local epochs; into {out}")
    found, losses = train(task, rounds, runs, settings.seed)

    results = {method: performance.by_hospital(each, seed=settings.seed) for method, each in found.items()}
    sizes = {hospital: len(each.risk) for hospital, each in found["FedAvg"].items()}
    sizes[performance.ALL] = sum(sizes.values())
    console.print(tables.table(results, METRICS, sizes))
    print(*tables.notes(results, METRICS), sep="\n")
    (out / "table.md").write_text(tables.markdown(results, METRICS, sizes))
    written = [
        out / "table.md",
        figures.convergence(losses, out / "convergence.png", ylabel="training loss"),
        *(figures.hospitals(results, metric, out / f"hospitals_{metric}.png", sizes) for metric in METRICS),
        figures.calibration({method: performance.joined(each) for method, each in found.items()}, out / "calibration.png"),
        runs / "fedavg" / "checkpoints",
    ]
    print("written:", *written, sep="\n  ")
    print(simulate(100 if settings.quick else 1000, settings.seed, cores))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
