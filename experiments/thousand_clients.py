"""How many examples a second a thousand simulated clients a round come to, on this machine.

python experiments/thousand_clients.py                  logistic regression on synthetic(1, 1), under 20
seconds on two cores"""

import statistics
import time
from dataclasses import dataclass

import jax
import numpy as np
import optax
import tyro

import fedjax_core as fc


@dataclass(frozen=True)
class Settings:
    """The speed of simulated clients."""

    cohort: int = 1000
    """Clients a round, of twice as many."""
    seed: int = 0


def simulate(cohort: int, seed: int, cores: jax.sharding.Mesh) -> str:
    """Trains on synthetic(1, 1) clients, `cohort` of them a round; one line on how fast that went."""
    # mean 60, a heavy tail
    sizes = np.maximum(10, np.random.default_rng(seed).lognormal(np.log(60) - 0.5, 1, 2 * cohort).astype(int))
    clients = fc.synthetic.synthetic(1, 1, clients=2 * cohort, seed=seed, sizes=sizes)
    algorithm = fc.algorithms.fedavg(fc.models.logistic(features=60, classes=10), local=optax.sgd(0.01))
    sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=10, epochs=1, mesh=cores)
    sample, state, speeds = (
        fc.cohorts.uniform(len(clients), size=cohort, seed=seed),
        sim.init(jax.random.key(seed)),
        [],
    )
    for start in range(0, 40, 5):  # five rounds a dispatch
        cohorts = [sample(round) for round in range(start, start + 5)]
        began = time.perf_counter()
        state, _ = jax.block_until_ready(sim.run_many(state, cohorts))
        seconds = time.perf_counter() - began
        if start:  # the first compiles
            speeds.append(sum(int(clients.sizes[each].sum()) for each in cohorts) / seconds)
    return (
        f"{cohort:,} simulated clients a round, logistic regression 60 x 10, batches of 10, {sim.lanes} lanes: "
        f"{statistics.median(speeds):,.0f} examples/s (median of {len(speeds)}, {min(speeds):,.0f} to {max(speeds):,.0f}; "
        f"{cores.size} x {jax.devices()[0].device_kind})"
    )


if __name__ == "__main__":
    settings = tyro.cli(Settings, description=__doc__)
    print(simulate(settings.cohort, settings.seed, fc.cores()))
