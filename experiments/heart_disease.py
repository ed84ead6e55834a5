"""Four hospitals, one model of heart disease: the published FLamby study again, number by number.

    python experiments/heart_disease.py                       own batches; the table beside the published one
    python experiments/heart_disease.py --exact               the published runs' own draws; their accuracies, cell by cell
    python experiments/heart_disease.py --replay FILE.npz     given weights and batch orders; every round's weights

Logistic regression on thirteen inputs, batches of 4, 15 rounds of 100 local updates, hospitals weighed by
their training patients. Exits non-zero where a replayed weight is off by more than 1e-5, or a federated mean
of sites by more than 0.03.

The records are downloaded once and checked, or read from $FEDJAX_CORE_DATA/heart_disease.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flamby_cells
import flamby_draws
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import fedjax_core as fc
from fedjax_core.algorithms import fedopt
from fedjax_core.data.datasets import heart_disease
from fedjax_core.data.datasets.base import DataError
from fedjax_core.data.datasets.heart_disease import FEATURES, HOSPITALS, HeartDisease

BATCH, STEPS, ROUNDS, EPOCHS = 4, 100, 15, 50
CLOSE_WEIGHTS = 1e-5  # largest absolute difference that a replay may show
CLOSE_MEAN = 0.03  # of the published mean of sites, for federated methods
SITES = len(HOSPITALS)

# Mean and standard deviation over seeds 42-46 of the accuracy at the four sites, their mean, and on the pooled
# test patients.
PUBLISHED = {
    "Pooled Training": (
        (0.7827, 0.7640, 0.7500, 0.6444, 0.7353, 0.7953),
        (0.011, 0.000, 0.000, 0.000, 0.003, 0.003),
    ),
    "Local 0": ((0.7462, 0.7596, 0.7250, 0.6578, 0.7221, 0.7843), (0.016, 0.006, 0.071, 0.020, 0.021, 0.007)),
    "Local 1": ((0.7462, 0.7461, 0.5250, 0.4978, 0.6287, 0.7268), (0.015, 0.006, 0.071, 0.012, 0.017, 0.013)),
    "Local 2": ((0.4808, 0.3910, 0.7250, 0.6711, 0.5670, 0.4827), (0.054, 0.042, 0.122, 0.064, 0.058, 0.045)),
    "Local 3": ((0.5769, 0.4674, 0.8000, 0.7022, 0.6366, 0.6110), (0.031, 0.013, 0.081, 0.051, 0.039, 0.039)),
    "FedAvg": ((0.7308, 0.7191, 0.6500, 0.6400, 0.6850, 0.7480), (0.022, 0.033, 0.114, 0.051, 0.028, 0.027)),
    "FedProx": ((0.7308, 0.7191, 0.6500, 0.6400, 0.6850, 0.7480), (0.022, 0.033, 0.114, 0.051, 0.028, 0.027)),
    "Scaffold": (
        (0.7269, 0.7191, 0.6500, 0.6400, 0.6840, 0.7480),
        (0.019, 0.033, 0.114, 0.051, 0.028, 0.027),
    ),
    "Cyclic": ((0.7577, 0.7618, 0.7125, 0.6400, 0.7180, 0.7850), (0.014, 0.015, 0.095, 0.019, 0.029, 0.012)),
    "FedAdagrad": (
        (0.7596, 0.7528, 0.7375, 0.6756, 0.7314, 0.7787),
        (0.018, 0.018, 0.028, 0.040, 0.013, 0.015),
    ),
    "FedAdam": ((0.7519, 0.7461, 0.7375, 0.6667, 0.7255, 0.7787), (0.017, 0.019, 0.028, 0.044, 0.014, 0.015)),
    "FedYogi": ((0.7596, 0.7528, 0.7375, 0.6756, 0.7314, 0.7787), (0.018, 0.018, 0.028, 0.040, 0.013, 0.015)),
}


@dataclass(frozen=True)
class Settings:
    """The four-hospital heart study."""

    replay: Path | None = None
    """Follow the trajectories stored in this .npz file (first weights, batch orders, weights after every
    round), and nothing else."""
    exact: bool = False
    """Draw first weights and batches as the published runs did, and compare with each of their results
    ($FEDJAX_CORE_DATA has them)."""
    first_weights: Literal["published", "own"] = "published"
    """Whose first weights a seed stands for. FedAvg's 1,500 small steps do not forget them, so own ones move
    a mean of five seeds by 0.04 whatever the engine does; the batches are our own in either case, but for
    --exact."""
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)


def strategies(task: fc.Task) -> dict[str, fc.algorithms.Algorithm]:
    """The six federated methods with the published settings."""
    fedavg, sgd = fc.algorithms.fedavg, optax.sgd
    return {
        "FedAvg": fedavg(task, local=sgd(0.001)),
        "FedProx": fc.algorithms.fedprox(task, mu=0.01, local=sgd(0.001)),
        "Scaffold": fc.algorithms.scaffold(
            task, lr=0.001, population=SITES, weighting=fc.algorithms.by_examples
        ),
        "FedAdagrad": fedavg(task, local=sgd(0.003162), server=fedopt.adagrad(0.316228)),
        "FedAdam": fedavg(task, local=sgd(0.01), server=fedopt.adam(0.01)),
        "FedYogi": fedavg(task, local=sgd(0.003162), server=fedopt.yogi(0.01)),
    }


def unflat(weights: np.ndarray) -> dict[str, jax.Array]:
    """Weights then intercept, [14], as the model's parameters."""
    return {"w": jnp.asarray(weights[:-1, None]), "b": jnp.asarray(weights[-1:])}


def flat(params: Mapping[str, jax.Array]) -> np.ndarray:
    """The model's parameters as weights then intercept, [14]."""
    return np.concatenate([np.ravel(params["w"]), np.ravel(params["b"])])


def replay(file: Path) -> int:
    """Follows the stored trajectories of one file; prints the largest difference of each strategy, and
    returns the exit code."""
    with np.load(file) as stored:
        golden = {name: stored[name] for name in stored.files}
    if "order" not in golden or "init" not in golden:
        raise SystemExit(
            f"{file} holds no heart trajectories: init or order is missing, it has {', '.join(golden)[:80]}..."
        )
    columns = [
        {"x": golden[f"x_train_{i}"], "y": golden[f"y_train_{i}"][:, 0].astype(np.int32)}
        for i in range(SITES)
    ]
    clients = fc.Clients.from_list(columns, ids=HOSPITALS)
    task, worst = fc.models.logistic(features=len(FEATURES), classes=1), 0.0
    print(
        f"{'strategy':<12}{'largest absolute difference':>28}  in {ROUNDS} rounds of {STEPS} updates, {jax.devices()[0].device_kind}"
    )
    for name, algorithm in strategies(task).items():
        expected = golden[f"traj_{name}"]
        sim = fc.Simulator(
            fc.compose(algorithm), clients, batch_size=BATCH, steps=STEPS, order=golden["order"]
        )
        state = sim.init(jax.random.key(0), params=unflat(golden["init"]))
        difference = 0.0
        for after in expected[1:]:
            state, _ = sim.run(state, np.arange(SITES))
            difference = max(difference, float(np.abs(flat(state.params) - after).max()))
        print(f"{name:<12}{difference:>28.2e}")
        worst = max(worst, difference)
    close = worst <= CLOSE_WEIGHTS  # a NaN is not close
    print(f"{'all within' if close else 'NOT within'} {CLOSE_WEIGHTS:g}")
    return 0 if close else 1


def study(data: HeartDisease, settings: Settings) -> dict[str, np.ndarray]:
    """Accuracy of every method under every seed, {method: [seeds, 5]}: the four sites, then the pooled test
    patients.

    One simulator a method serves all seeds: hospital i under seed s is a client of its own, so its shuffles
    are too."""
    task = fc.models.logistic(features=len(FEATURES), classes=1)
    sizes = data.train.sizes.tolist()
    found: dict[str, np.ndarray] = {}

    alone = {
        "Pooled Training": data.pooled_train,
        **{f"Local {i}": data.train.select([i]) for i in range(SITES)},
    }
    for name, one in alone.items():
        work: dict[str, Any] = {"epochs": EPOCHS}
        if settings.exact:
            work = {
                "order": np.concatenate(
                    [flamby_draws.epochs_order(seed, one.examples, EPOCHS, BATCH) for seed in settings.seeds]
                )
            }
        # Adam's moments last for a round, so the whole training is one round.
        training = fc.compose(fc.algorithms.fedavg(task, local=optax.adam(1e-3)))
        sim = fc.Simulator(training, copies(one, settings.seeds), batch_size=BATCH, **work)
        found[name] = np.stack(
            [
                accuracies(sim, data, seed, [s], rounds=1, settings=settings)
                for s, seed in enumerate(settings.seeds)
            ]
        )

    for name, algorithm in strategies(task).items():
        # SCAFFOLD counts its clients, so that copies of them for other seeds would be too many.
        groups = [(seed,) for seed in settings.seeds] if name == "Scaffold" else [settings.seeds]
        found[name] = np.concatenate([federated(algorithm, data, group, sizes, settings) for group in groups])
    if settings.exact:
        found["Cyclic"] = np.stack([cyclic(data, seed, sizes, settings) for seed in settings.seeds])
    return found


def federated(
    algorithm: fc.algorithms.Algorithm,
    data: HeartDisease,
    seeds: tuple[int, ...],
    sizes: list[int],
    settings: Settings,
) -> np.ndarray:
    """[seeds, 5] accuracies of a federated method, by one simulator."""
    work: dict[str, Any] = {"steps": STEPS}
    if settings.exact:
        work["order"] = np.concatenate(
            [flamby_draws.federated_orders(seed, sizes, ROUNDS * STEPS, STEPS, BATCH) for seed in seeds]
        )
    sim = fc.Simulator(fc.compose(algorithm), copies(data.train, seeds), batch_size=BATCH, **work)
    cohorts = [np.arange(s * SITES, (s + 1) * SITES) for s in range(len(seeds))]
    runs = zip(seeds, cohorts, strict=True)
    return np.stack(
        [accuracies(sim, data, seed, cohort, rounds=ROUNDS, settings=settings) for seed, cohort in runs]
    )


def cyclic(data: HeartDisease, seed: int, sizes: list[int], settings: Settings) -> np.ndarray:
    """[5] accuracies of what is published as "Cyclic": the first hospital's own copy, which no other sees,
    after the turns that it had."""
    order, worked = flamby_draws.cyclic_order(seed, sizes, ROUNDS, STEPS, BATCH)
    task = fc.models.logistic(features=len(FEATURES), classes=1)
    training = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.01)))
    sim = fc.Simulator(training, data.train.select([0]), batch_size=BATCH, steps=STEPS, order=order[:1])
    return accuracies(sim, data, seed, [0], rounds=worked[0], settings=settings)


def copies(clients: fc.Clients, seeds: tuple[int, ...]) -> fc.Clients:
    """The clients once for each seed, under names of their own."""
    names = [f"{id}, seed {seed}" for seed in seeds for id in clients.ids]
    return fc.Clients.from_list([columns for _ in seeds for columns in clients], ids=names)


def accuracies(
    sim: fc.Simulator, data: HeartDisease, seed: int, cohort: Any, *, rounds: int, settings: Settings
) -> np.ndarray:
    """Trains from the seed's first weights; the accuracy at each site and on the pooled test patients,
    [5]."""
    if settings.exact or settings.first_weights == "published":
        first = flamby_draws.first_weights(seed, len(FEATURES))
    else:
        bound = len(FEATURES) ** -0.5
        first = np.asarray(
            jax.random.uniform(jax.random.key(seed), (len(FEATURES) + 1,), minval=-bound, maxval=bound)
        )
    state, _ = sim.run_many(sim.init(jax.random.key(seed), params=unflat(first)), [cohort] * rounds)
    task = sim.round.algorithm.task
    sites, pooled = (
        fc.evaluate(task, state.params, data.test),
        fc.evaluate(task, state.params, data.pooled_test),
    )
    return np.append(sites.clients["accuracy"], pooled.pooled["accuracy"])


def show(found: Mapping[str, np.ndarray], console: Console) -> bool:
    """Prints the table beside the published one; whether every federated mean of sites is within the band."""
    table = Table(title="accuracy, mean ± sd over seeds", title_justify="left")
    for i, head in enumerate(["method", "", *HOSPITALS, "mean of sites", "pooled test"]):
        table.add_column(head, justify="left" if i < 2 else "right", no_wrap=True)
    good = True
    for name, values in found.items():
        with_mean = np.column_stack([values[:, :SITES], values[:, :SITES].mean(axis=1), values[:, SITES:]])
        mean, sd = (
            with_mean.mean(axis=0),
            with_mean.std(axis=0, ddof=1) if len(values) > 1 else np.full(SITES + 2, np.nan),
        )
        theirs, their_sd = (np.array(row) for row in PUBLISHED[name])
        table.add_row(name, "here", *(f"{m:.4f} ± {s:.3f}" for m, s in zip(mean, sd, strict=True)))
        table.add_row("", "published", *(f"{m:.4f} ± {s:.3f}" for m, s in zip(theirs, their_sd, strict=True)))
        table.add_row(
            "", "difference", *(f"{d + 0.0:+.4f}        " for d in (mean - theirs).round(4)), end_section=True
        )
        federated = name.startswith(("Fed", "Scaffold"))
        good &= not federated or bool(abs(mean[SITES] - theirs[SITES]) <= CLOSE_MEAN)
    console.print(table)
    print(
        f"mean of sites of every federated method within {CLOSE_MEAN} of the published one: {'yes' if good else 'NO'}"
    )
    return good


def anchors(data: HeartDisease) -> None:
    """Prints where full-batch FedAvg ends, which is known: the optimum of the union of hospitals, and of the
    pooled patients."""
    task = fc.models.logistic(features=len(FEATURES), classes=1)
    rounds = 1000
    for name, train, test, known in (
        ("four hospitals", data.train, data.test, (0.486692917, 184 / 254)),
        ("pooled patients", data.pooled_train, data.pooled_test, (0.418041737, 201 / 254)),
    ):
        averaging = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(1.0)))
        sim = fc.Simulator(averaging, train, batch_size=int(train.sizes.max()), epochs=1)
        state, _ = sim.run_many(sim.init(jax.random.key(0)), [np.arange(len(train))] * rounds)
        loss, accuracy = (
            fc.evaluate(task, state.params, train).pooled["loss"],
            fc.evaluate(task, state.params, test).pooled["accuracy"],
        )
        print(
            f"FedAvg, one full-batch step, {rounds} rounds, {name}: train loss {loss:.9f} (known {known[0]:.9f}), "
            f"test accuracy {accuracy:.6f} (known {known[1]:.6f})"
        )


def main(settings: Settings) -> int:
    if settings.replay is not None:
        return replay(settings.replay)
    try:
        data = heart_disease()
    except DataError as error:
        raise SystemExit(str(error)) from None
    print(
        f"training patients {data.train.sizes.tolist()}, test patients {data.test.sizes.tolist()}, {jax.devices()[0].device_kind}"
    )
    anchors(data)
    found = study(data, settings)
    good = show(found, Console(width=140))
    if settings.exact:
        flamby_cells.compare(found, "heart", settings.seeds)
        label = "accuracy of all 254 test patients, a dot for each seed"
        flamby_cells.draw(
            found, "heart", settings.seeds, label, Path(__file__).with_name("heart_disease.png")
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
