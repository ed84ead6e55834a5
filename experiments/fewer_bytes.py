"""What fewer bytes cost in accuracy: Fashion-MNIST on 100 clients (Dirichlet 0.5), 20 a round, with and
without compression.

`FEDJAX_CORE_DATA=... python experiments/fewer_bytes.py` reads fashion_mnist/*.gz there, prints a table and
draws fewer_bytes.png."""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

import fedjax_core as fc


@dataclass
class Settings:
    """Of the study."""

    rounds: int = 100
    every: int = 10  # rounds between two evaluations
    lr: float = 0.05
    seed: int = 0


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images [n, 784] in 0..1, labels [n])."""
    folder = Path(os.environ["FEDJAX_CORE_DATA"]) / "fashion_mnist"
    images = np.frombuffer(
        gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8
    )
    labels = np.frombuffer(
        gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8
    )
    return (images.reshape(-1, 784) / 255).astype(np.float32), labels.astype(np.int32)


def main(settings: Settings) -> None:
    """Prints the table and draws the curves."""
    (x, y), (test_x, test_y) = read("train"), read("t10k")
    parts = fc.partition.dirichlet(y, clients=100, alpha=0.5, seed=settings.seed)
    clients = fc.Clients.from_list([{"x": x[part], "y": y[part]} for part in parts])
    test = fc.Clients.from_list([{"x": test_x, "y": test_y}])
    task, up = fc.models.mlp(features=784, hidden=(64,), classes=10), fc.uplink
    algorithm = fc.algorithms.fedavg(task, optax.sgd(settings.lr))
    params = jax.eval_shape(task.init, jax.random.key(0))
    stages = {
        "none": up.chain(),
        "top-k 5 %, feedback": up.feedback(up.topk(0.05)),
        "top-k 5 %": up.topk(0.05),
        "EDEN, 2 bits": up.eden(2),
        "sign, feedback": up.feedback(up.sign()),
    }
    sampler = fc.cohorts.uniform(len(clients), size=20, seed=settings.seed)
    _, axes = plt.subplots(figsize=(7, 4.5))
    print("| uplink | bytes a report | of none | MB up in all | accuracy |\n|---|---:|---:|---:|---:|")
    for name, stage in stages.items():
        sim = fc.Simulator(
            fc.compose(algorithm, uplink=stage), clients, batch_size=20, epochs=1, lanes=2, mesh=None
        )
        state, curve = sim.init(jax.random.key(settings.seed)), []
        size = up.bits(stage, params) / 8
        for done in range(0, settings.rounds, settings.every):
            state, _ = sim.run_many(state, [sampler(r) for r in range(done, done + settings.every)])
            accuracy = fc.evaluate(task, state.params, test).pooled["accuracy"]
            curve.append(((done + settings.every) * 20 * size / 1e6, accuracy))
        axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=name)
        share = size / (up.bits(up.chain(), params) / 8)
        print(
            f"| {name} | {size:,.0f} | 1/{1 / share:.1f} | {curve[-1][0]:,.1f} | {100 * curve[-1][1]:.2f} |",
            flush=True,
        )
    axes.set(xscale="log", xlabel="MB that all reports took so far", ylabel="accuracy on the test images")
    axes.legend()
    plt.savefig(Path(__file__).with_name("fewer_bytes.png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main(tyro.cli(Settings))
