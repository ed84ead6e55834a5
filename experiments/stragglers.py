"""Stragglers: synthetic(1, 1) on 30 clients of whom 90 % do less work than was asked, by FedAvg that drops
these and by FedProx that takes what they did, with mu 0 and 1.

    per round 10 of 30 clients, asked for 20 epochs: one does them all, nine do 1 to 19 (drawn evenly)
    FedAvg     the one alone                             FedProx    all ten, weighed by their examples

`python experiments/stragglers.py` needs no data from outside, prints a table over five seeds, and draws
stragglers.png: the setting of figure 1 of Li et al., "Federated Optimization in Heterogeneous Networks",
MLSys 2020 (multinomial logistic regression, step 0.01, batches of 10, 200 rounds). `--quick` takes few rounds.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

import fedjax_core as fc

METHODS = ("FedAvg, stragglers dropped", "FedProx, mu 0", "FedProx, mu 1")


@dataclass
class Settings:
    """Of the study."""

    rounds: int = 200
    every: int = 4  # rounds between two evaluations
    seeds: int = 5
    clients: int = 30
    cohort: int = 10
    stragglers: float = 0.9  # share of the cohort
    epochs: int = 20
    lr: float = 0.01
    picture: Path = field(default_factory=lambda: Path(__file__).with_name("stragglers.png"))
    quick: bool = False  # few rounds of one seed


class Work:
    """How much each client does in each round: drawn from (seed, round), so that every method meets the same
    stragglers."""

    def __init__(self, seed: int, settings: Settings) -> None:
        self.seed, self.settings = seed, settings
        self.sampler = fc.cohorts.uniform(settings.clients, size=settings.cohort, seed=seed)

    def epochs(self, round: int, positions: np.ndarray) -> np.ndarray:
        """Epochs of the clients at these positions in this round; fewer than asked for stragglers."""
        return self._drawn(round)[np.asarray(positions)]

    def finishers(self, round: int) -> np.ndarray:
        """The clients of the round's cohort who do all the work."""
        cohort = np.asarray(self.sampler(round))
        return cohort[self._drawn(round)[cohort] == self.settings.epochs]

    def _drawn(self, round: int) -> np.ndarray:
        settings, rng = self.settings, np.random.default_rng((self.seed, round))
        cohort = np.asarray(self.sampler(round))
        late = rng.permutation(cohort)[: int(np.round(settings.stragglers * len(cohort)))]
        epochs = np.full(settings.clients, settings.epochs)
        epochs[late] = rng.integers(1, settings.epochs, len(late))
        return epochs


def simulator(name: str, task: fc.Task, train: fc.Clients, work: Work, settings: Settings) -> fc.Simulator:
    """The rounds of this method."""
    sgd = optax.sgd(settings.lr)
    if name == METHODS[0]:
        algorithm, epochs = fc.algorithms.fedavg(task, sgd), settings.epochs
    else:
        algorithm, epochs = fc.algorithms.fedprox(task, float(name[-1]), sgd), work.epochs
    return fc.Simulator(fc.compose(algorithm), train, batch_size=10, epochs=epochs, seed=work.seed)


def curve(name: str, seed: int, settings: Settings) -> np.ndarray:
    """[evaluations, 2]: the loss on all training examples and the accuracy on all test examples."""
    train, test = fc.synthetic.synthetic(1, 1, clients=settings.clients, seed=seed).split(0.9, seed=seed)
    task, work = fc.models.logistic(features=60, classes=10), Work(seed, settings)
    sim = simulator(name, task, train, work, settings)
    cohorts = work.finishers if name == METHODS[0] else work.sampler
    state, values = sim.init(jax.random.key(seed)), []
    for start in range(0, settings.rounds, settings.every):
        state, _ = sim.run_many(state, [cohorts(r) for r in range(start, start + settings.every)])
        loss = fc.evaluate(task, state.params, train).pooled["loss"]
        values.append((loss, fc.evaluate(task, state.params, test).pooled["accuracy"]))
    return np.array(values)


def row(name: str, curves: np.ndarray) -> str:
    """A line of the table, of curves [seeds, evaluations, 2]: the last tenth, and the largest rise of the loss
    between two evaluations in the later half, the mean over the seeds."""
    tail = curves[:, -max(1, curves.shape[1] // 10) :].mean(axis=1)
    later = curves[:, curves.shape[1] // 2 :, 0]
    rise = np.maximum(np.diff(later, axis=1), 0).max(axis=1) if later.shape[1] > 1 else np.zeros(len(later))
    loss, accuracy = tail[:, 0], 100 * tail[:, 1]
    return (
        f"| {name} | {loss.mean():.3f} ± {loss.std():.3f} | {accuracy.mean():.1f} ± {accuracy.std():.1f} "
        f"| {rise.mean():.3f} |"
    )


def main(settings: Settings) -> None:
    """Prints the table and draws the loss of each method."""
    if settings.quick:
        settings = replace(settings, rounds=4, every=2, seeds=1, epochs=3)
    _, axes = plt.subplots(figsize=(7, 4.5))
    print("| method | training loss | test accuracy | largest rise of the loss |\n|---|---:|---:|---:|")
    rounds = np.arange(settings.every, settings.rounds + 1, settings.every)
    for name in METHODS:
        curves = np.stack([curve(name, seed, settings) for seed in range(settings.seeds)])
        losses = curves[..., 0]
        axes.plot(rounds, losses.mean(axis=0), label=name)
        axes.fill_between(rounds, losses.min(axis=0), losses.max(axis=0), alpha=0.15)
        print(row(name, curves), flush=True)
    axes.set(xlabel="round", ylabel="loss on all training examples")
    axes.legend()
    plt.savefig(settings.picture, dpi=110, bbox_inches="tight")
    plt.close()


if __name__ == "__main__":
    main(tyro.cli(Settings))
