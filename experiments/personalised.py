"""Personalised methods: how good the model that each client uses is on that client's own test images, beside
FedAvg's global model and training alone.

Fashion-MNIST on 100 clients (Dirichlet 0.1), of whose images a quarter is held out at each; 20 clients a round.
`FEDJAX_CORE_DATA=... python experiments/personalised.py` prints the mean and the 10th percentile of the clients'
accuracies over three seeds, and draws personalised.png. Results of a method and seed are kept below `--runs`:
stop it at any time, and the same command goes on. `--quick` takes a few rounds on few images.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from flax import linen as nn

import fedjax_core as fc
from fedjax_core.data.datasets import fashion_mnist
from fedjax_core.evaluation import Evaluation
from fedjax_core.models.base import accuracy, cross_entropy, images
from fedjax_core.types import Array

WIDTH = 32  # numbers of an image's features
HEAD, BODY = ["Dense_2"], ["Dense_0", "Dense_1"]


@dataclass
class Settings:
    """Of the study. Strengths are common ones and not tuned; the step size is one for all methods."""

    rounds: int = 100
    seeds: int = 3
    clients: int = 100
    cohort: int = 20
    alpha: float = 0.1  # of the Dirichlet distribution
    examples: int = 30_000  # of the training images, a quarter of which are clients' own test images
    batch_size: int = 20
    lr: float = 0.06
    fine_epochs: int = 5  # of fine-tuning
    methods: tuple[str, ...] = ()  # all where none is named
    runs: Path = Path("runs/personalised")
    picture: Path = field(default_factory=lambda: Path(__file__).with_name("personalised.png"))
    quick: bool = False  # a few rounds on few images


class Net(nn.Module):
    """784-64-32-10, with BatchNorm after the first two layers where `normal`."""

    normal: bool = False

    @nn.compact
    def represent(self, x: Array, train: bool = False) -> Array:
        """The features [B, 32] of images [B, 28, 28, 1]."""
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate((64, WIDTH)):
            x = nn.Dense(width, name=f"Dense_{i}")(x)
            if self.normal:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"BatchNorm_{i}")(x)
            x = nn.relu(x)
        return x

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits [B, 10]."""
        return nn.Dense(10, name=HEAD[0])(self.represent(x, train))


def task_of(statistics: Literal["personal"] | None = None) -> fc.Task:
    """The classifier; with BatchNorm, whose statistics are each client's own, where these are named."""
    example = {
        "x": jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32),
        "y": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    task = fc.models.from_flax(
        Net(normal=statistics is not None),
        example,
        loss=lambda logits, batch: cross_entropy(logits, batch["y"]),
        metrics=lambda logits, batch: {"accuracy": accuracy(logits, batch["y"])},
        inputs=lambda batch: images(batch["x"]),
        statistics=statistics,
        features=None if statistics else "represent",
    )
    return task._replace(classes=10)


def algorithms(task: fc.Task, lr: float) -> dict[str, fc.algorithms.Algorithm]:
    """The methods in which clients keep something, by name."""
    zoo, sgd = fc.algorithms, optax.sgd(lr)
    norms = [f"params/BatchNorm_{i}" for i in range(2)]
    return {
        "Ditto": zoo.ditto(task, 0.1, sgd),
        "APFL": zoo.apfl(task, lr, 0.5),
        "pFedMe": zoo.pfedme(task, lr, lam=5.0, inner_lr=lr, inner_steps=3),
        "FedPer": zoo.fedper(task, sgd, HEAD),
        "FedRep": zoo.fedrep(task, sgd, HEAD, head_epochs=2),
        "LG-FedAvg": zoo.lgfedavg(task, sgd, shared=HEAD),
        "FedBN": zoo.fedper(task_of("personal"), sgd, norms),
        "FedALA": zoo.fedala(task, sgd, HEAD),
        "FedProto": zoo.fedproto(task, 1.0, sgd, WIDTH),
    }


METHODS = (
    "local training",
    "FedAvg, global",
    "FedAvg, fine-tuned",
    "Ditto",
    "APFL",
    "pFedMe",
    "FedPer",
    "FedRep",
    "LG-FedAvg",
    "FedBN",
    "Per-FedAvg",
    "FedALA",
    "FedProto",
    "kNN-Per",
)


def dealt(seed: int, settings: Settings) -> tuple[fc.Clients, fc.Clients]:
    """(training images, test images) of the same clients."""
    columns = fashion_mnist().train.columns
    rows = np.random.default_rng(seed).permutation(len(columns["y"]))[: settings.examples]
    columns = {name: x[rows] for name, x in columns.items()}
    parts = fc.partition.dirichlet(
        columns["y"], clients=settings.clients, alpha=settings.alpha, seed=seed, min_size=8
    )
    return fc.Clients.from_parts(columns, parts).split(0.75, seed=seed)


def trained(algorithm: fc.algorithms.Algorithm, train: fc.Clients, seed: int, settings: Settings) -> tuple:
    """(the simulator, the state after all rounds)."""
    sim = fc.Simulator(
        fc.compose(algorithm), train, batch_size=settings.batch_size, epochs=1, seed=seed, lanes=2, mesh=None
    )
    sampler = fc.cohorts.uniform(len(train), size=settings.cohort, seed=seed)
    state = sim.init(jax.random.key(seed))
    step = min(10, settings.rounds)
    for start in range(0, settings.rounds, step):
        state, _ = sim.run_many(state, [sampler(r) for r in range(start, min(start + step, settings.rounds))])
    return sim, state


def measured(seed: int, names: tuple[str, ...], settings: Settings) -> dict[str, Callable[[], Evaluation]]:
    """For each of these methods the function that trains it and evaluates each client's own model on its own
    test images."""
    train, test = dealt(seed, settings)
    task, sgd, zoo = task_of(), optax.sgd(settings.lr), fc.algorithms
    globals_: dict[str, fc.types.Params] = {}

    def shared(name: str, algorithm: fc.algorithms.Algorithm) -> fc.types.Params:
        if name not in globals_:
            globals_[name] = trained(algorithm, train, seed, settings)[1].params
        return globals_[name]

    def adapted(params: fc.types.Params, epochs: int) -> Evaluation:
        own = fc.personalise(
            task, params, train, sgd, batch_size=settings.batch_size, epochs=epochs, seed=seed
        )
        return fc.evaluate(task, params, test, personal=own)

    def averaged() -> fc.types.Params:
        return shared("FedAvg", zoo.fedavg(task, sgd))

    def adaptable() -> fc.types.Params:
        return shared("Per-FedAvg", zoo.perfedavg(task, settings.lr, sgd))

    def kept(algorithm: fc.algorithms.Algorithm) -> Evaluation:
        sim, state = trained(algorithm, train, seed, settings)
        return sim.evaluate(state, test)

    alone = max(1, settings.rounds * settings.cohort // settings.clients)  # epochs, as many as others have
    found = {
        "local training": lambda: adapted(task.init(jax.random.key(seed)), alone),
        "FedAvg, global": lambda: fc.evaluate(task, averaged(), test),
        "FedAvg, fine-tuned": lambda: adapted(averaged(), settings.fine_epochs),
        "Per-FedAvg": lambda: adapted(adaptable(), 1),
        "kNN-Per": lambda: fc.knn_per(task, averaged(), train, test),
        **{
            name: lambda algorithm=algorithm: kept(algorithm)
            for name, algorithm in algorithms(task, settings.lr).items()
        },
    }
    return {name: found[name] for name in names}


def row(name: str, values: np.ndarray) -> str:
    """A line of the table, of accuracies [seeds, clients]: mean and 10th percentile of clients, over seeds."""
    mean, tenth = 100 * np.nanmean(values, axis=1), 100 * np.nanpercentile(values, 10, axis=1)
    return f"| {name} | {mean.mean():.1f} ± {mean.std():.1f} | {tenth.mean():.1f} ± {tenth.std():.1f} |"


def main(settings: Settings) -> None:
    """Prints the table and draws the accuracies of all clients."""
    if settings.quick:
        settings = replace(settings, rounds=2, seeds=1, clients=6, cohort=3, examples=400, fine_epochs=1)
    names = settings.methods or METHODS
    if unknown := sorted(set(names) - set(METHODS)):
        raise ValueError(f"there is no method {', '.join(unknown)}: there are {', '.join(METHODS)}")
    results: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for seed in range(settings.seeds):
        todo = None
        for name in names:
            path = settings.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
            if not path.exists():
                todo = measured(seed, names, settings) if todo is None else todo
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(todo[name]().clients["accuracy"].tolist()))
            results[name].append(np.array(json.loads(path.read_text()), float))
    print("| method | mean of clients | 10th percentile |\n|---|---:|---:|")
    for name in names:
        print(row(name, np.stack(results[name])), flush=True)
    draw({name: np.stack(values) for name, values in results.items()}, settings.picture)


def draw(results: dict[str, np.ndarray], path: Path) -> None:
    """The mean and the 10th percentile of each method, a dot for each seed."""
    _, axes = plt.subplots(figsize=(7, 4.8))
    for i, values in enumerate(results.values()):
        for colour, numbers, label in (
            ("#0072B2", np.nanmean(values, axis=1), "mean of clients"),
            ("#D55E00", np.nanpercentile(values, 10, axis=1), "10th percentile"),
        ):
            axes.plot(numbers, np.full(len(numbers), i), "o", color=colour, label=None if i else label)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set(xlabel="accuracy on clients' own test images")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    plt.savefig(path, dpi=110, bbox_inches="tight")
    plt.close()


if __name__ == "__main__":
    main(tyro.cli(Settings))
