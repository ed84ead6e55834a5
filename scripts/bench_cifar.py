"""The public yardstick of simulators, CIFAR10-IID of pfl-research: how long do 1,500 rounds take?

    python scripts/bench_cifar.py                      on a GPU: a minute was wanted for one H200
    python scripts/bench_cifar.py --rounds 20          on a CPU: a second a round on two cores

1,000 clients of 50 images, 50 of them a round, one epoch in batches of 10 by SGD of 0.1, the mean of their
updates, and the model on 10,000 other images every 10 rounds. The network is two convolutions and two dense
layers with dropout, 1,626,442 parameters (Granqvist et al., "pfl-research: simulation framework for
accelerating research in private federated learning", NeurIPS 2024, and its benchmarks' settings). Images are
random: time does not depend on what is learnt. What is counted is all from the first round on, choosing lanes
and compiling too.
"""

import time
from dataclasses import dataclass

import bench_timing as timing
import jax
import numpy as np
import optax
import tyro
from rich.table import Table

import fedjax_core as fc

ROUNDS, SECONDS = 1500, 60.0


@dataclass(frozen=True)
class Settings:
    """How much of it, and on what."""

    rounds: int = ROUNDS
    """A multiple of 10."""
    clients: int = 1000
    images: int = 50
    """Of each client."""
    cohort: int = 50
    tested: int = 10_000
    """Images on which the model is evaluated."""
    every: int = 10
    """Rounds between two evaluations, and in a dispatch."""
    lanes: int = 0
    """0: chosen by the engine."""
    cores: int = 0
    """On a CPU, how many cores have lanes of their own; 0: all."""


def images(clients: int, each: int, seed: int) -> fc.Clients:
    """Random images with random labels, as bytes as CIFAR-10 has them."""
    rng, count = np.random.default_rng(seed), clients * each
    x = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return fc.Clients.from_arrays(
        {"x": x, "y": rng.integers(0, 10, count).astype(np.int32)}, offsets=np.arange(clients + 1) * each
    )


def simulator(settings: Settings) -> fc.Simulator:
    """The yardstick's clients, network and algorithm."""
    mesh = None if settings.cores == 1 else fc.cores(settings.cores or None)
    task = fc.models.cnn((32, 32, 3), classes=10, dropout=(0.25, 0.5))
    composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.1)))
    clients = images(settings.clients, settings.images, seed=0)
    return fc.Simulator(composed, clients, batch_size=10, epochs=1, lanes=settings.lanes or "auto", mesh=mesh)


def main(settings: Settings) -> None:
    """Runs it and prints the table."""
    if settings.rounds % settings.every or settings.rounds < 2 * settings.every:
        raise SystemExit(
            f"--rounds must be a multiple of {settings.every}, and at least {2 * settings.every}; got {settings.rounds}"
        )
    made, tested = simulator(settings), images(1, settings.tested, seed=1)
    print(timing.header())
    said = [time.perf_counter()]

    def evaluate(sim: fc.Simulator, state: fc.State) -> dict[str, float]:
        found = sim.evaluate(state, tested)
        said.append(time.perf_counter())
        timing.say(f"{(len(said) - 2) * settings.every} rounds: {said[-1] - said[0]:.1f} s")
        return found.pooled

    cohorts = fc.cohorts.uniform(settings.clients, settings.cohort)
    fc.fit(
        made,
        settings.rounds,
        cohorts,
        evaluate_every=settings.every,
        rounds_per_dispatch=settings.every,
        evaluate=evaluate,
        progress=False,
    )
    # The first two stops have compiling in them: of the evaluation, and of the rounds.
    each = np.diff(said)[2:] / settings.every
    total, steady = said[-1] - said[0], float(np.median(each)) if len(each) else float("nan")
    table = Table(
        "lanes", "rounds", "seconds in all", "ms a round", "spread", f"{ROUNDS} rounds at that, s", "target"
    )
    judged = (
        timing.verdict(total, most=SECONDS)
        if settings.rounds == ROUNDS and jax.default_backend() != "cpu"
        else ""
    )
    table.add_row(
        str(made.lanes),
        f"{settings.rounds:,}",
        f"{total:,.1f}",
        *timing.spread(each * 1e3, ",.1f"),
        f"{steady * ROUNDS:,.0f}",
        judged,
    )
    timing.show(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
