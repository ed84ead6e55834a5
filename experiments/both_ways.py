"""What compression both ways costs in accuracy: Fashion-MNIST at four sites (Dirichlet 0.5) that all take part,
with the ways to send of `scripts/bench_links.py`.

`FEDJAX_CORE_DATA=... python experiments/both_ways.py` prints the bytes of a report and of the model on its way
out, and the accuracy on the test images after 60 rounds of 100 local steps. `--quick` takes few rounds.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import optax
import tyro

import fedjax_core as fc
from fedjax_core.data.datasets import fashion_mnist

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from bench_links import WAYS


@dataclass
class Settings:
    """Of the study."""

    rounds: int = 60
    steps: int = 100  # local, a round
    seeds: int = 2
    sites: int = 4
    lr: float = 0.06
    hidden: tuple[int, ...] = (200, 200)
    examples: int = 60_000
    ways: tuple[str, ...] = (
        "float32",
        "8 bits, model 8 bits",
        "EDEN 2 bits, model 4 bits",
        "top-k 5 %, model 4 bits",
    )
    quick: bool = False  # few rounds of a small model


def accuracy(way: str, seed: int, settings: Settings) -> tuple[float, float, float]:
    """(bytes of a report, bytes of the model to one site, accuracy on the test images)."""
    data, (uplink, downlink) = fashion_mnist(), WAYS[way]
    columns = {name: x[: settings.examples] for name, x in data.train.columns.items()}
    parts = fc.partition.dirichlet(columns["y"], clients=settings.sites, alpha=0.5, seed=seed)
    task = fc.models.mlp(features=784, hidden=settings.hidden, classes=10)
    composed = fc.compose(
        fc.algorithms.fedavg(task, optax.sgd(settings.lr)), uplink=uplink, downlink=downlink
    )
    clients = fc.Clients.from_parts(columns, parts)
    sim = fc.Simulator(composed, clients, batch_size=20, steps=settings.steps, seed=seed, lanes=2, mesh=None)
    state = sim.init(jax.random.key(seed))
    for _ in range(settings.rounds // 2):
        state, _ = sim.run_many(state, [np.arange(settings.sites)] * 2)
    params = jax.eval_shape(task.init, jax.random.key(0))
    up, down = (fc.uplink.bits(stage, params) / 8 for stage in (uplink, downlink))
    return up, down, float(fc.evaluate(task, state.params, data.test).pooled["accuracy"])


def main(settings: Settings) -> None:
    """Prints the table."""
    if settings.quick:
        settings = replace(settings, rounds=2, steps=3, seeds=1, hidden=(16,), examples=1000)
    print(
        "| way | bytes a report | bytes of the model | of float32 | accuracy, each seed |\n|---|---:|---:|---:|---:|"
    )
    for way in settings.ways:
        rows = [accuracy(way, seed, settings) for seed in range(settings.seeds)]
        up, down, _ = rows[0]
        params = fc.models.mlp(features=784, hidden=settings.hidden, classes=10).init
        whole = fc.uplink.bits(fc.uplink.chain(), jax.eval_shape(params, jax.random.key(0))) / 8
        each = ", ".join(f"{100 * value:.2f}" for _, _, value in rows)
        print(f"| {way} | {up:,.0f} | {down:,.0f} | 1/{2 * whole / (up + down):.1f} | {each} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
