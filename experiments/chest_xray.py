"""Pneumonia on chest X-rays over six hospitals that differ in size, in case mix and in their scanners.

    FEDJAX_CORE_DATA=... python experiments/chest_xray.py           a small CNN; reads pneumoniamnist/*.npz there, draws chest_xray.png
    FEDJAX_CORE_DATA=... python experiments/chest_xray.py --model resnet18          hours on two cores: for a GPU

PneumoniaMNIST (Yang et al., Scientific Data 2023; CC BY 4.0), 4,708 training and 624 test images of 28x28, is
of one hospital, so the six are made up: from 41 % to 3 % of the images, from 25 % to 92 % with pneumonia,
each with contrast, brightness, sharpness and noise of a scanner of its own, at training and at test. Compared
are a model of each hospital alone, FedAvg, SCAFFOLD, FedBN and Ditto, and pooled training on the same images;
the AUROC is of all test images, each judged by the model that its hospital would use."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from flax import linen as nn
from scipy.ndimage import gaussian_filter

import fedjax_core as fc
from fedjax_core.clinical import intervals, performance, ranks
from fedjax_core.clinical.performance import Estimate, Predictions
from fedjax_core.models import accuracy, binary_cross_entropy
from fedjax_core.models.resnet import ResNet18

PUBLISHED = 0.944  # AUROC of ResNet-18 trained on all original images, by the authors of the data set
CLOSE = 0.02  # of pooled training, for a federated method
BATCH, LR, MOMENTUM, LAM = 32, 0.02, 0.9, 0.1


class Scanner(NamedTuple):
    """A made-up hospital: its share of the images, and what its scanner does to them."""

    share: float
    ill: float
    """The share of its training patients with pneumonia, as far as there are still such."""
    contrast: float
    brightness: float
    blur: float
    noise: float


HOSPITALS = {
    "centre": Scanner(0.40, 0.75, 1.0, 0.0, 0.0, 0.0),
    "university": Scanner(0.24, 0.85, 1.3, 0.05, 0.0, 0.02),
    "city": Scanner(0.15, 0.60, 0.7, -0.10, 0.4, 0.0),
    "county": Scanner(0.10, 0.92, 0.6, 0.25, 0.0, 0.05),
    "rural": Scanner(0.07, 0.70, 1.0, 0.15, 0.8, 0.02),
    "island": Scanner(0.04, 0.45, 0.5, -0.05, 0.4, 0.08),
}


@dataclass(frozen=True)
class Settings:
    """The study of chest X-rays."""

    rounds: int = 12
    """Rounds of one local epoch; alone and pooled train as many epochs."""
    model: Literal["cnn", "resnet18"] = "cnn"
    seed: int = 0
    """Deals the images, and draws weights and batches."""
    most: int | None = None
    """Training images, of all; None: every one."""
    figure: Path | None = None
    """Where the picture goes; beside this file where none is named."""


class Small(nn.Module):
    """Three convolutions of 16, 32, 64 channels, each halving the image and normalised, and their mean: [B,
    28, 28] to logits [B]."""

    norm: Literal["group", "batch"]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x, batch = x[..., None], self.norm == "batch"
        for channels in (16, 32, 64):
            x = nn.Conv(channels, (3, 3), strides=2, use_bias=False)(x)
            x = (
                nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
                if batch
                else nn.GroupNorm(num_groups=8)(x)
            )
            x = nn.relu(x)
        return nn.Dense(1)(x.mean((1, 2)))[:, 0]


class Large(nn.Module):
    """ResNet-18 with GroupNorm on one channel: images [B, 28, 28] to logits [B]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return ResNet18(1)(x[..., None])[:, 0]


def task_of(model: str, norm: Literal["group", "batch"]) -> fc.Task:
    """The network, with GroupNorm, or with BatchNorm whose statistics are each hospital's own."""
    module = Large() if model == "resnet18" else Small(norm)
    example = {"x": np.zeros((1, 28, 28), np.float32), "y": np.zeros(1, np.int32)}
    return fc.models.from_flax(
        module,
        example,
        loss=lambda logits, batch: binary_cross_entropy(logits, batch["y"]),
        metrics=lambda logits, batch: {"accuracy": accuracy(logits, batch["y"])},
        inputs=lambda batch: batch["x"],
        statistics="personal" if norm == "batch" and model == "cnn" else None,
    )


def read(settings: Settings) -> tuple[fc.Clients, fc.Clients]:
    """(training, test) images of the six hospitals, as their scanners make them."""
    if "FEDJAX_CORE_DATA" not in os.environ:
        raise SystemExit("set FEDJAX_CORE_DATA to the folder that holds pneumoniamnist/pneumoniamnist.npz")
    draw = np.random.default_rng(settings.seed)
    with np.load(Path(os.environ["FEDJAX_CORE_DATA"]) / "pneumoniamnist" / "pneumoniamnist.npz") as stored:
        parts = {
            name: (stored[f"{name}_images"], stored[f"{name}_labels"][:, 0]) for name in ("train", "test")
        }
    keep = draw.permutation(len(parts["train"][0]))[: settings.most]
    x, y = (part[keep] for part in parts["train"])
    ill, well = ([i for i in draw.permutation(len(y)) if y[i] == label] for label in (1, 0))
    rows = []
    for one in HOSPITALS.values():  # as many of each as it wants, as long as there are some
        n = round(one.share * len(y))
        wanted = min(round(one.ill * n), len(ill)), min(n - round(one.ill * n), len(well))
        rows.append(np.array([*ill[: wanted[0]], *well[: wanted[1]]]))
        ill, well = ill[wanted[0] :], well[wanted[1] :]
    rows[0] = np.array([*rows[0], *ill, *well])
    test_x, test_y = parts["test"]
    where = draw.permutation(len(test_y)) % len(HOSPITALS)
    train = [
        {"x": scan(x[its], one, draw), "y": y[its].astype(np.int32)}
        for its, one in zip(rows, HOSPITALS.values(), strict=True)
    ]
    test = [
        {"x": scan(test_x[where == i], one, draw), "y": test_y[where == i].astype(np.int32)}
        for i, one in enumerate(HOSPITALS.values())
    ]
    return fc.Clients.from_list(train, ids=list(HOSPITALS)), fc.Clients.from_list(test, ids=list(HOSPITALS))


def scan(images: np.ndarray, one: Scanner, draw: np.random.Generator) -> np.ndarray:
    """Images [n, 28, 28] float32, about -1 to 1, as this scanner makes them."""
    x = gaussian_filter(images.astype(np.float32) / 255, (0, one.blur, one.blur))
    x = (x - 0.5) * one.contrast + 0.5 + one.brightness + draw.normal(0, one.noise, images.shape)
    return ((np.clip(x, 0, 1) - 0.5) / 0.5).astype(np.float32)


def trained(algorithm: fc.algorithms.Algorithm, clients: fc.Clients, settings: Settings) -> list[Any]:
    """The model that each client would use after all rounds: the same for all, unless the algorithm gives
    each one of its own."""
    sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=BATCH, epochs=1, seed=settings.seed)
    state = sim.init(jax.random.key(settings.seed))
    for _ in range(settings.rounds):
        state, metrics = sim.run(state, np.arange(len(clients)))
    print(
        f"  {algorithm.name}: {settings.rounds} rounds, training loss {float(metrics['loss']):.3f}",
        flush=True,
    )
    if algorithm.personal is None:
        return [state.params] * len(clients)
    return [
        algorithm.personal(state.server, jax.tree.map(lambda x, i=i: x[i], state.clients.own))
        for i in range(len(clients))
    ]


def alone(algorithm: fc.algorithms.Algorithm, clients: fc.Clients, settings: Settings) -> list[Any]:
    """The model of each client that trains by itself as long: where each ends in one long round, whose mean
    is not used."""
    sim = fc.Simulator(
        fc.compose(algorithm), clients, batch_size=BATCH, epochs=settings.rounds, seed=settings.seed
    )
    first = sim.init(jax.random.key(settings.seed))
    _, metrics, (visits,) = sim.inspect(first, np.arange(len(clients)), ("update",))
    print(
        f"  alone: {settings.rounds} epochs, training loss over all {float(metrics['loss']):.3f}", flush=True
    )
    return [
        jax.tree.map(lambda x, u, i=i: x + u[i], first.params, visits.update) for i in range(len(clients))
    ]


def judged(task: fc.Task, models: list[Any], test: fc.Clients) -> dict[str, Predictions]:
    """{hospital: outcome and risk of its test patients}, each by its hospital's model."""
    found: dict[str, Predictions] = {}
    for i, params in enumerate(models):
        found |= performance.predictions(task, params, test.select([i]))
    return found


def auroc(found: Predictions) -> Estimate:
    """AUROC with DeLong's interval."""
    return intervals.delong(ranks.counts(found.outcome, found.risk, ranks.levels([found.risk])))


def study(train: fc.Clients, test: fc.Clients, settings: Settings) -> dict[str, dict[str, Predictions]]:
    """{method: {hospital: outcome and risk of its test patients}}."""
    local, task = optax.sgd(LR, momentum=MOMENTUM), task_of(settings.model, "group")
    fedavg = fc.algorithms.fedavg(task, local=local)
    pooled = fc.Clients.from_list([{name: np.asarray(x) for name, x in train.columns.items()}], ids=["all"])
    scaffold = fc.algorithms.scaffold(
        task, lr=LR / (1 - MOMENTUM), population=len(train), weighting=fc.algorithms.by_examples
    )
    methods: dict[str, Callable[[], list[Any]]] = {
        "alone": lambda: alone(fedavg, train, settings),
        "FedAvg": lambda: trained(fedavg, train, settings),
        "SCAFFOLD": lambda: trained(scaffold, train, settings),
        "Ditto": lambda: trained(fc.algorithms.ditto(task, lam=LAM, local=local), train, settings),
        "pooled": lambda: trained(fedavg, pooled, settings) * len(train),
    }
    found = {name: judged(task, make(), test) for name, make in methods.items()}
    if settings.model == "cnn":
        normal = task_of(settings.model, "batch")
        own = [f"params/BatchNorm_{i}" for i in range(3)]
        found["FedBN"] = judged(
            normal, trained(fc.algorithms.fedper(normal, local, personal=own), train, settings), test
        )
    order = ("alone", "FedAvg", "SCAFFOLD", "FedBN", "Ditto", "pooled")
    return {name: found[name] for name in order if name in found}


def draw_figure(train: fc.Clients, rows: dict[str, Estimate], path: Path) -> None:
    """An image of each scanner, and the AUROC of each method with its interval."""
    figure = plt.figure(figsize=(8, 4.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.7))
    for axes, (name, one) in zip(
        above.subplots(1, len(train)), zip(train.ids, train, strict=True), strict=True
    ):
        axes.imshow(one["x"][0], cmap="gray", vmin=-1, vmax=1)
        axes.set_title(f"{name}\n{len(one['y'])}, {one['y'].mean():.0%} ill", fontsize="small")
        axes.axis("off")
    axes = below.subplots()
    for row, found in enumerate(rows.values()):
        axes.plot([found.low, found.high], [row, row], color="#0072B2", linewidth=1.8)
        axes.plot(found.value, row, "o", color="#0072B2")
    axes.axvline(PUBLISHED, color="0.6", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(
        xlabel=f"AUROC of all test images, 95 % interval (dashed: {PUBLISHED}, published for one scanner)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(path, dpi=90)
    plt.close()


def main(settings: Settings) -> int:
    """Prints the table and draws it; 1 where the best federated AUROC is further than 0.02 below the pooled
    one."""
    train, test = read(settings)
    ill = ", ".join(f"{one['y'].mean():.0%}" for one in train)
    print(f"training images {train.sizes.tolist()}, with pneumonia {ill}; test images {test.sizes.tolist()}")
    found = study(train, test, settings)
    rows = {name: auroc(performance.joined(each)) for name, each in found.items()}
    print(
        "\n| method | all test images (95 %) | "
        + " | ".join(HOSPITALS)
        + " |\n|---|---:|"
        + "---:|" * len(HOSPITALS)
    )
    for name, each in found.items():
        cells = " | ".join(f"{auroc(one).value:.3f}" for one in each.values())
        print(
            f"| {name} | {rows[name].value:.3f} ({rows[name].low:.3f} to {rows[name].high:.3f}) | {cells} |"
        )
    draw_figure(train, rows, settings.figure or Path(__file__).with_name("chest_xray.png"))
    federated = {name: each.value for name, each in rows.items() if name not in ("alone", "pooled")}
    apart = rows["pooled"].value - max(federated.values())
    print(
        f"\nthe best of the federated ones is {apart:+.3f} below pooled training, {PUBLISHED} is published for one scanner"
    )
    return 0 if apart <= CLOSE else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
