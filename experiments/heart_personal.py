"""Whether a model of each hospital's own helps on the four heart hospitals, and what it costs where it does not.

    FEDJAX_CORE_DATA=... python experiments/heart_personal.py       prints a table

FLamby's split, first weights, batches of 4, and 15 rounds of 100 local updates, as in `heart_disease.py`; accuracy of
each hospital's test patients by the model that the hospital would use, over seeds 42-46.

    alone                a model of each hospital, as many updates
    FedAdam              one model, the best of the published methods by settings
    + local steps        FedAdam's model after so many steps on the hospital's own patients
    Ditto                a model of each hospital's own that is pulled towards the common one
"""

from collections.abc import Callable

import flamby_draws
import jax
import numpy as np
import optax
from heart_disease import BATCH, ROUNDS, SITES, STEPS, unflat

import fedjax_core as fc
from fedjax_core.algorithms import fedopt
from fedjax_core.data.datasets import heart_disease
from fedjax_core.data.datasets.heart_disease import FEATURES, HOSPITALS

SEEDS, LR = (42, 43, 44, 45, 46), 0.01


def trained(
    algorithm: fc.algorithms.Algorithm, clients: fc.Clients, seed: int
) -> tuple[fc.Simulator, fc.State]:
    """The state after all rounds, from the seed's first weights."""
    sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=BATCH, steps=STEPS, seed=seed)
    first = unflat(flamby_draws.first_weights(seed, len(FEATURES)))
    cohort = np.arange(len(clients))
    state, _ = sim.run_many(sim.init(jax.random.key(seed), params=first), [cohort] * ROUNDS)
    return sim, state


def accuracies(task: fc.Task, train: fc.Clients, test: fc.Clients, seed: int) -> dict[str, np.ndarray]:
    """{method: [4] accuracies of the hospitals' test patients}."""

    def alone() -> np.ndarray:
        parts = []
        for i in range(SITES):
            algorithm = fc.algorithms.fedavg(task, local=optax.sgd(LR))
            state = trained(algorithm, train.select([i]), seed)[1]
            parts.append(fc.evaluate(task, state.params, test.select([i])).clients["accuracy"][0])
        return np.array(parts)

    def ditto(lam: float) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            sim, state = trained(fc.algorithms.ditto(task, lam=lam, local=optax.sgd(LR)), train, seed)
            return sim.evaluate(state, test).clients["accuracy"]

        return run

    common = trained(fc.algorithms.fedavg(task, local=optax.sgd(LR), server=fedopt.adam(0.01)), train, seed)[
        1
    ]

    def adapted(steps: int) -> np.ndarray:
        own = None
        if steps:
            local = optax.sgd(LR)
            own = fc.personalise(task, common.params, train, local, batch_size=BATCH, steps=steps, seed=seed)
        return fc.evaluate(task, common.params, test, personal=own).clients["accuracy"]

    return {
        "alone": alone(),
        "FedAdam": adapted(0),
        **{f"FedAdam, {steps} local steps": adapted(steps) for steps in (10, 100, 1000)},
        **{f"Ditto, lambda {lam:g}": ditto(lam)() for lam in (0.1, 1.0)},
    }


def main() -> None:
    """Prints the table."""
    data = heart_disease()
    task = fc.models.logistic(features=len(FEATURES), classes=1)
    runs = [accuracies(task, data.train, data.test, seed) for seed in SEEDS]
    weights = data.test.sizes / data.test.sizes.sum()
    print(f"| method | {' | '.join(HOSPITALS)} | mean of sites | all test patients |")
    print("|---|" + "---:|" * (SITES + 2))
    for name in runs[0]:
        each = np.stack([run[name] for run in runs])  # [seeds, 4]
        columns = np.column_stack([each, each.mean(1), each @ weights])
        cells = [
            f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(columns.mean(0), columns.std(0, ddof=1), strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
