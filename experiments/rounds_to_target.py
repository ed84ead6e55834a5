"""Rounds to a target accuracy: Fashion-MNIST on 100 clients (Dirichlet 0.1), 10 a round, by eight methods,
three seeds each.

`FEDJAX_CORE_DATA=... python experiments/rounds_to_target.py` trains 24 runs one after another, each in a
folder of its own below `--runs`: stop it at any time, and the same command goes on where it was. It prints a
row a method and draws rounds_to_target.png. `--quick` takes a few rounds on few images, to see that all of it
works.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

import fedjax_core as fc
from fedjax_core.data.datasets import fashion_mnist


@dataclass
class Settings:
    """Of the study."""

    rounds: int = 500
    every: int = 5  # rounds between two evaluations
    target: float = 0.80  # of the test images
    seeds: int = 3
    clients: int = 100
    cohort: int = 10
    alpha: float = 0.1  # of the Dirichlet distribution
    hidden: tuple[int, ...] = (200, 200)
    lr: float = 0.05
    examples: int = 60_000
    methods: tuple[str, ...] = ()  # all where none is named
    runs: Path = Path("runs/rounds_to_target")
    picture: Path = field(default_factory=lambda: Path(__file__).with_name("rounds_to_target.png"))
    quick: bool = False  # a few rounds of a small model


def built(name: str, task: fc.Task, settings: Settings) -> fc.algorithms.Algorithm:
    """The method of this name."""
    of, lr, clients = fc.algorithms, settings.lr, settings.clients
    sgd = optax.sgd(lr)
    return {
        "FedAvg": lambda: of.fedavg(task, sgd),
        "FedProx": lambda: of.fedprox(task, 0.1, sgd),
        "SCAFFOLD": lambda: of.scaffold(task, lr, clients),
        "FedDyn": lambda: of.feddyn(task, 0.1, sgd, clients),
        "FedSAM": lambda: of.fedsam(task, 0.05, sgd),
        "FedExP": lambda: of.fedexp(task, sgd),
        "FedCM": lambda: of.fedcm(task, lr, 0.1),
        "FedAdamW": lambda: of.fedadamw(task, lr / 100),
    }[name]()


METHODS = ("FedAvg", "FedProx", "SCAFFOLD", "FedDyn", "FedSAM", "FedExP", "FedCM", "FedAdamW")


def rounds_to(target: float, rounds: np.ndarray, accuracy: np.ndarray) -> float:
    """The first round after which the accuracy was at least the target; infinite where it never was."""
    reached = np.flatnonzero(accuracy >= target)
    return float(rounds[reached[0]]) if len(reached) else np.inf


def curve(name: str, seed: int, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """(rounds, accuracy on the test images after each) of one run, which goes on where it was."""
    data = fashion_mnist()
    columns = {column: x[: settings.examples] for column, x in data.train.columns.items()}
    parts = fc.partition.dirichlet(columns["y"], clients=settings.clients, alpha=settings.alpha, seed=seed)
    clients = fc.Clients.from_parts(columns, parts)
    task = fc.models.mlp(features=784, hidden=settings.hidden, classes=10)
    sim = fc.Simulator(fc.compose(built(name, task, settings)), clients, batch_size=20, epochs=1, seed=seed)
    history = fc.fit(
        sim,
        rounds=settings.rounds,
        cohorts=fc.cohorts.uniform(len(clients), size=settings.cohort, seed=seed),
        run_dir=settings.runs / f"{name}-{seed}",
        checkpoint_every=10 * settings.every,
        evaluate_every=settings.every,
        best="accuracy",
        mode="max",
        evaluate=data.test,
        key=jax.random.key(seed),
    )
    return history.curve("accuracy")


def row(name: str, reached: list[float], ends: list[float]) -> str:
    """A line of the table."""
    told = ", ".join("not" if np.isinf(r) else f"{r:.0f}" for r in reached)
    return f"| {name} | {told} | {np.median(reached):.0f} | {100 * np.mean(ends):.2f} ± {100 * np.std(ends):.2f} |"


def main(settings: Settings) -> None:
    """Prints the table and draws the curves."""
    if settings.quick:
        settings = replace(
            settings, rounds=4, every=2, seeds=1, clients=10, cohort=3, hidden=(8,), examples=1000
        )
    methods = settings.methods or METHODS
    if unknown := sorted(set(methods) - set(METHODS)):
        raise ValueError(f"there is no method {', '.join(unknown)}: there are {', '.join(METHODS)}")
    _, axes = plt.subplots(figsize=(7, 4.5))
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores\n")
    print(
        f"| method | rounds to {settings.target:.0%}, each seed | median | accuracy after {settings.rounds} rounds |\n|---|---|---:|---:|"
    )
    for name in methods:
        curves = [curve(name, seed, settings) for seed in range(settings.seeds)]
        found = np.array([accuracy for _, accuracy in curves])
        axes.plot(curves[0][0], found.mean(axis=0), label=name)
        axes.fill_between(curves[0][0], found.min(axis=0), found.max(axis=0), alpha=0.15)
        print(row(name, [rounds_to(settings.target, *one) for one in curves], list(found[:, -1])), flush=True)
    axes.axhline(settings.target, color="grey", linewidth=0.8)
    axes.set(xlabel="round", ylabel="accuracy on the test images")
    axes.legend()
    plt.savefig(settings.picture, dpi=110, bbox_inches="tight")
    plt.close()


if __name__ == "__main__":
    main(tyro.cli(Settings))
