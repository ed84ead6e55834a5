"""Rounds to a target accuracy: Fashion-MNIST or CIFAR-10 on 100 clients (Dirichlet 0.1), 10 a round, by eight
methods, three seeds each.

`FEDJAX_CORE_DATA=... python experiments/rounds_to_target.py --data fashion` (or `cifar10`) first tries the
steps of each method on a split of its own (seed 100), then trains 24 runs with the best of each, one after
another, each in a folder of its own below `--runs`: stop it at any time, and the same command goes on where it
was. It prints a row a method and draws rounds_to_target_fashion.png. `--quick` takes a few rounds on few
images, to see that all of it works.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from pictures import cifar10, cifar_cnn, fashion, fashion_mlp

import fedjax_core as fc
from fedjax_core.data.datasets.pooled import Pooled

METHODS = ("FedAvg", "FedProx", "SCAFFOLD", "FedDyn", "FedSAM", "FedExP", "FedCM", "FedAdamW")


class Problem(NamedTuple):
    """What is learnt, for how long, and the accuracy that counts as reached."""

    data: Callable[[], Pooled]
    task: Callable[[], fc.Task]
    target: float
    rounds: int
    epochs: int
    judged: int
    """Test images that are looked at."""
    sgd: tuple[float, ...]
    """Local step sizes that are tried of all methods but two."""
    others: dict[str, tuple[float, ...]]
    """Those of the two: nine tenths of a step of FedCM are the last round's direction, and FedAdamW's have a
    length of their own."""

    def steps(self, name: str) -> tuple[float, ...]:
        """The local step sizes that are tried of this method."""
        return self.others.get(name, self.sgd)


PROBLEMS = {
    "fashion": Problem(
        cache(fashion),
        fashion_mlp,
        target=0.80,
        rounds=200,
        epochs=1,
        judged=10_000,
        sgd=(0.02, 0.06, 0.2),
        others={"FedCM": (0.06, 0.2, 0.6), "FedAdamW": (0.0003, 0.001, 0.003)},
    ),
    "cifar10": Problem(
        cache(cifar10),
        cifar_cnn,
        target=0.30,
        rounds=80,
        epochs=2,
        judged=2_500,
        sgd=(0.03, 0.1),
        others={"FedCM": (0.1, 0.3), "FedAdamW": (0.0005, 0.0015)},
    ),
}
TUNING_SEED = 100


@dataclass
class Settings:
    """Of the study."""

    data: Literal["fashion", "cifar10"] = "fashion"
    rounds: int | None = None  # the problem's
    target: float | None = None  # of the test images; the problem's
    tuning: int | None = None  # rounds for each step size that is tried; half of `rounds`
    every: int = 5  # rounds between two evaluations
    seeds: int = 3
    clients: int = 100
    cohort: int = 10
    alpha: float = 0.1  # of the Dirichlet distribution
    examples: int = 60_000
    methods: tuple[str, ...] = ()  # all where none is named
    runs: Path = Path("runs/rounds_to_target")
    picture: Path | None = None
    quick: bool = False  # a few rounds on few images


def built(name: str, task: fc.Task, lr: float, clients: int) -> fc.algorithms.Algorithm:
    """The method of this name with the local step size `lr`."""
    zoo, sgd = fc.algorithms, optax.sgd(lr)
    return {
        "FedAvg": lambda: zoo.fedavg(task, sgd),
        "FedProx": lambda: zoo.fedprox(task, 0.1, sgd),
        "SCAFFOLD": lambda: zoo.scaffold(task, lr, clients),
        "FedDyn": lambda: zoo.feddyn(task, 0.1, sgd, clients),
        "FedSAM": lambda: zoo.fedsam(task, 0.05, sgd),
        "FedExP": lambda: zoo.fedexp(task, sgd),
        "FedCM": lambda: zoo.fedcm(task, lr, 0.1),
        "FedAdamW": lambda: zoo.fedadamw(task, lr),
    }[name]()


def rounds_to(target: float, rounds: np.ndarray, accuracy: np.ndarray) -> float:
    """The first round after which the accuracy was at least the target; infinite where it never was."""
    reached = np.flatnonzero(accuracy >= target)
    return float(rounds[reached[0]]) if len(reached) else np.inf


def curve(name: str, lr: float, seed: int, rounds: int, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """(rounds, accuracy on the test images after each) of one run, which goes on where it was."""
    problem = PROBLEMS[settings.data]
    run_dir = settings.runs / settings.data / f"{name}-{lr:g}-{seed}-{rounds}"
    finished = run_dir / "curve.npy"
    if finished.exists():
        return tuple(np.load(finished))
    data, task = problem.data(), problem.task()
    order = np.random.default_rng(0).permutation(data.train.examples)[: settings.examples]
    columns = {column: x[order] for column, x in data.train.columns.items()}
    parts = fc.partition.dirichlet(
        columns["y"], clients=settings.clients, alpha=settings.alpha, seed=seed, min_size=5
    )
    clients = fc.Clients.from_parts(columns, parts)
    chosen = np.random.default_rng(1).permutation(data.test.examples)[: problem.judged]
    composed = fc.compose(built(name, task, lr, settings.clients))
    sim = fc.Simulator(composed, clients, batch_size=20, epochs=problem.epochs, seed=seed, lanes=2, mesh=None)
    history = fc.fit(
        sim,
        rounds=rounds,
        cohorts=fc.cohorts.uniform(len(clients), size=settings.cohort, seed=seed),
        run_dir=run_dir,
        checkpoint_every=10 * settings.every,
        evaluate_every=settings.every,
        rounds_per_dispatch=settings.every,
        best="accuracy",
        mode="max",
        evaluate=data.test.take(np.sort(chosen)),
        key=jax.random.key(seed),
        keep=1,
        progress=False,
    )
    if history.stopped != "finished":
        raise SystemExit(f"{run_dir} was interrupted: the same command goes on from here")
    result = history.curve("accuracy")
    np.save(finished, np.stack(result))
    return result


def best_step(name: str, rounds: int, settings: Settings) -> tuple[float, dict[float, float]]:
    """The step size of the highest mean accuracy over the later half of `rounds` on the tuning seed, and that
    accuracy for each step size."""
    scores = {}
    for lr in PROBLEMS[settings.data].steps(name):
        _, accuracy = curve(name, lr, TUNING_SEED, rounds, settings)
        scores[lr] = float(np.nan_to_num(accuracy[len(accuracy) // 2 :]).mean())
    return max(scores, key=lambda lr: scores[lr]), scores


def row(name: str, lr: float, reached: list[float], ends: list[float], rounds: int) -> str:
    """A line of the table."""
    each = ", ".join("not" if np.isinf(r) else f"{r:.0f}" for r in reached)
    median = np.median(reached)
    middle = f"not within {rounds}" if np.isinf(median) else f"{median:.0f}"
    return f"| {name} | {lr:g} | {each} | {middle} | {100 * np.mean(ends):.2f} ± {100 * np.std(ends):.2f} |"


def resolved(settings: Settings) -> Settings:
    """The settings with the problem's own values where none is given, and small ones for `quick`."""
    problem = PROBLEMS[settings.data]
    if settings.quick:
        settings = replace(settings, rounds=4, tuning=2, every=2, seeds=1, clients=10, cohort=3, examples=500)
    rounds = problem.rounds if settings.rounds is None else settings.rounds
    return replace(
        settings,
        rounds=rounds,
        tuning=max(1, rounds // 2) if settings.tuning is None else settings.tuning,
        target=problem.target if settings.target is None else settings.target,
        picture=settings.picture or Path(__file__).with_name(f"rounds_to_target_{settings.data}.png"),
    )


def main(settings: Settings) -> None:
    """Prints the step sizes tried and the table, and draws the curves."""
    settings = resolved(settings)
    methods, rounds = settings.methods or METHODS, settings.rounds
    if unknown := sorted(set(methods) - set(METHODS)):
        raise ValueError(f"there is no method {', '.join(unknown)}: there are {', '.join(METHODS)}")
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores; {settings.data}\n", flush=True)
    steps = {}
    for name in methods:
        steps[name], scores = best_step(name, settings.tuning, settings)
        print(
            f"{name}: " + ", ".join(f"{lr:g} {100 * score:.2f}" for lr, score in scores.items()), flush=True
        )
    curves = {name: [] for name in methods}
    for seed in range(settings.seeds):
        for name in methods:
            curves[name].append(curve(name, steps[name], seed, rounds, settings))
    print(f"\n| method | step | rounds to {settings.target:.0%}, each seed | median | at the end |")
    print("|---|---:|---|---:|---:|")
    for name in methods:
        reached = [rounds_to(settings.target, *one) for one in curves[name]]
        ends = [accuracy[-len(accuracy) // 10 :].mean() for _, accuracy in curves[name]]
        print(row(name, steps[name], reached, ends, rounds), flush=True)
    draw(curves, settings)


def draw(curves: dict[str, list[tuple[np.ndarray, np.ndarray]]], settings: Settings) -> None:
    """Draws each method's mean accuracy over the seeds, and its range."""
    _, axes = plt.subplots(figsize=(7, 4.5))
    for name, runs in curves.items():
        accuracy = np.array([values for _, values in runs])
        axes.plot(runs[0][0], accuracy.mean(axis=0), label=name)
        axes.fill_between(runs[0][0], accuracy.min(axis=0), accuracy.max(axis=0), alpha=0.12)
    axes.axhline(settings.target, color="grey", linewidth=0.8)
    axes.set(xlabel="round", ylabel=f"accuracy on the test images, {settings.data}")
    axes.legend(ncols=2, fontsize="small")
    plt.savefig(settings.picture, dpi=110, bbox_inches="tight")
    plt.close()


if __name__ == "__main__":
    main(tyro.cli(Settings))
