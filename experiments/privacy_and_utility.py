"""What does an epsilon of 8, 3 or 1 cost in accuracy, and what do audits find of it?

    python experiments/privacy_and_utility.py             1,000 simulated clients (client level), four heart hospitals (example level),
                                                          and experiments/privacy_and_utility.png

Beside each claim stand what an attacker finds: AUC of losses (members against others), the epsilon that this
proves at least (95 %, Clopper and Pearson), and, of clients, the one-shot estimate of 40 canary clients,
which is no bound. Client level of four hospitals is refused: "with or without one of them" drowns all that
four can learn. The heart records are read from $FEDJAX_CORE_DATA/heart_disease."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import fedjax_core as fc
from fedjax_core.data.datasets.heart_disease import FEATURES, heart_disease
from fedjax_core.privacy import audit, canaries

EPSILONS = (None, 8.0, 3.0, 1.0)
SEEDS = (0, 1, 2)
CLIENTS, CANARIES, OTHERS, COHORT, ROUNDS, DELTA = 1000, 40, 1000, 100, 60, 1e-5
HEART_ROUNDS, HEART_STEPS, HEART_BATCH, HEART_DELTA = 15, 20, 8, 1e-4


def people(count: int, seed: int) -> fc.Clients:
    """Clients of 20 examples each, whose inputs lie about a place of their own; one rule of five classes for
    all, and 10 % wrong labels."""
    rule = np.random.default_rng(99).normal(size=(20, 5))
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(count, 1, 20)) * 0.5 + rng.normal(size=(count, 20, 20))).astype(np.float32)
    y = np.argmax(x @ rule, axis=-1)
    y = np.where(rng.uniform(size=y.shape) < 0.1, rng.integers(0, 5, y.shape), y).astype(np.int32)
    return fc.Clients.from_arrays(
        {"x": x.reshape(-1, 20), "y": y.reshape(-1)}, offsets=np.arange(0, 20 * count + 1, 20)
    )


def client_level(epsilon: float | None) -> list[Any]:
    """A row of the table."""
    everyone = CLIENTS + CANARIES
    members, others = people(everyone, 0), people(OTHERS, 1)
    task = fc.models.logistic(features=20, classes=5)
    algorithm = canaries.planted(fc.algorithms.fedavg(task, optax.sgd(0.1), weighting=fc.algorithms.uniform))
    if epsilon is None:
        private = None
        composed = fc.compose(algorithm, uplink=fc.uplink.clip(0.5))
        cohorts: Any = fc.cohorts.uniform(everyone, COHORT)
    else:
        private = fc.privacy.client_level(
            population=everyone, cohort=COHORT, rounds=ROUNDS, clip=0.5, epsilon=epsilon, delta=DELTA
        )
        composed = fc.compose(algorithm, uplink=private.uplink, aggregator=private.aggregator)
        cohorts = private.cohorts
    simulator = fc.Simulator(composed, members, batch_size=10, epochs=2)
    found = []
    for seed in SEEDS:
        start = canaries.marked(simulator.init(jax.random.key(seed)), range(CLIENTS, everyone))
        state, _ = simulator.run_many(start, [cohorts(round + 1000 * seed) for round in range(ROUNDS)])
        way = np.asarray(ravel_pytree(state.params)[0] - ravel_pytree(start.params)[0])
        losses = [fc.evaluate(task, state.params, of).clients["loss"] for of in (members, others)]
        found.append(
            (
                fc.evaluate(task, state.params, others).pooled["accuracy"],
                audit.auc(-losses[0][:CLIENTS], -losses[1]),
                audit.epsilon_of_scores(-losses[0][:CLIENTS], -losses[1], DELTA),
                audit.one_shot(canaries.directions(CANARIES, start.params), way, DELTA).epsilon,
            )
        )
    return [epsilon, 0.0 if private is None else private.noise, *np.array(found).T]


def example_level(epsilon: float | None) -> list[Any]:
    """A row of the table."""
    data = heart_disease()
    task = fc.models.logistic(features=len(FEATURES), classes=1)
    sizes = tuple(data.train.sizes.tolist())
    told = {"noise": 0.0} if epsilon is None else {"epsilon": epsilon}
    private = fc.privacy.example_level(
        clip=1.0,
        batch_size=HEART_BATCH,
        rounds=HEART_ROUNDS,
        steps=HEART_STEPS,
        sampling="poisson",
        sizes=sizes,
        delta=HEART_DELTA,
        **told,
    )
    algorithm = fc.algorithms.fedavg(task, optax.sgd(0.05), gradient=private.gradient)
    simulator = fc.Simulator(fc.compose(algorithm), data.train, **private.plan)
    found = []
    for seed in SEEDS:
        state, _ = simulator.run_many(simulator.init(jax.random.key(seed)), [np.arange(4)] * HEART_ROUNDS)
        members, others = (losses(task, state.params, of) for of in (data.train, data.test))
        accuracy = fc.evaluate(task, state.params, data.test).pooled["accuracy"]
        found.append(
            (accuracy, audit.auc(-members, -others), audit.epsilon_of_scores(-members, -others, HEART_DELTA))
        )
    claims = [private.epsilon(examples=n) for n in sizes] if epsilon is not None else []
    return [epsilon, private.noise, *np.array(found).T, claims]


def losses(task: fc.Task, params: Any, clients: fc.Clients) -> np.ndarray:
    """Of each example."""
    rows = fc.Batch(jax.tree.map(np.asarray, clients.columns), np.ones(clients.examples, np.float32))
    return np.asarray(task.loss(params, rows, jax.random.key(0)))


def clients_table() -> list[list[Any]]:
    """Prints the table of the simulated clients, and gives its rows."""
    print(
        f"client level: {CLIENTS} clients and {CANARIES} canaries, {COHORT} a round, {ROUNDS} rounds, delta {DELTA:g}, {len(SEEDS)} seeds"
    )
    print(
        "| epsilon | noise | accuracy | AUC | proven at least | one-shot estimate |\n|---|---:|---:|---:|---:|---:|"
    )
    rows = []
    for epsilon in EPSILONS:
        claim, noise, accuracy, area, least, guess = row = client_level(epsilon)
        guesses = f"{np.mean(guess):.2f} ({np.min(guess):.2f} to {np.max(guess):.2f})"
        print(
            f"| {claim or 'none'} | {noise:.2f} | {cell(accuracy)} | {np.mean(area):.3f} | {np.max(least):.2f} | {guesses} |",
            flush=True,
        )
        rows.append(row)
    return rows


def hospitals_table() -> list[list[Any]]:
    """Prints the table of the hospitals, and gives its rows."""
    print(
        f"\nexample level: {HEART_ROUNDS} rounds of {HEART_STEPS} Poisson batches of {HEART_BATCH}, delta {HEART_DELTA:g}"
    )
    print(
        "| epsilon of the smallest hospital | of all four | noise | accuracy | AUC | proven at least |\n|---|---|---:|---:|---:|---:|"
    )
    rows = []
    for epsilon in EPSILONS:
        claim, noise, accuracy, area, least, claims = row = example_level(epsilon)
        each = ", ".join(f"{one:.2f}" for one in claims) or "none"
        print(
            f"| {claim or 'none'} | {each} | {noise:.2f} | {cell(accuracy)} | {np.mean(area):.3f} | {np.max(least):.2f} |",
            flush=True,
        )
        rows.append(row)
    return rows


def draw(clients: list[list[Any]], hospitals: list[list[Any]], path: Path) -> None:
    """Accuracy and what audits find, over the epsilon that is claimed; the runs without noise as lines
    across."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    parts = (
        ("1,000 clients, client level", clients, "tab:blue", "s"),
        ("heart hospitals, example level", hospitals, "tab:orange", "x"),
    )
    for label, (none, *private), colour, marker in parts:
        at = [row[0] for row in private]
        accuracy, spread = (
            [100 * of(row[2]) for row in private] for of in (np.mean, lambda x: np.std(x, ddof=1))
        )
        left.axhline(100 * np.mean(none[2]), color=colour, linestyle=":")
        left.errorbar(at, accuracy, spread, marker="o", capsize=3, color=colour, label=label)
        right.plot(
            at,
            [np.max(row[4]) for row in private],
            marker=marker,
            linestyle="",
            color=colour,
            label=f"proven at least: {label}",
        )
    at = [row[0] for row in clients[1:]]
    guesses = [np.mean(row[5]) for row in clients[1:]]
    right.plot(
        at,
        guesses,
        marker="^",
        linestyle="",
        color="tab:green",
        label="one-shot estimate, no bound: 1,000 clients",
    )
    right.plot([0, max(at)], [0, max(at)], color="black", linestyle="--", label="claimed")
    left.set(xlabel="epsilon claimed", ylabel="accuracy, % (dotted: without noise)", xscale="log")
    right.set(xlabel="epsilon claimed", ylabel="epsilon that an audit finds")
    for axes in (left, right):
        axes.set_xticks(at, [f"{one:g}" for one in at])
        axes.minorticks_off()
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Both tables and the figure."""
    clients = clients_table()
    hospitals = hospitals_table()
    draw(clients, hospitals, Path(__file__).with_suffix(".png"))


def cell(values: np.ndarray) -> str:
    """Mean and spread over seeds, in per cent."""
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


if __name__ == "__main__":
    main()
