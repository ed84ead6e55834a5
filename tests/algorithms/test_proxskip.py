import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core import Clients, Simulator, Task, algorithms, compose, keys

LR, P, STEPS = 0.1, 0.3, 12
STEEP, TARGET = np.array([1.0, 5.0]), np.array([0.0, 1.0])
TASK = Task(lambda key: jnp.zeros(1), lambda w, batch, key: 0.5 * batch["a"] * jnp.square(batch["x"] - w[0]))
CLIENTS = Clients.from_list(
    [
        {"a": np.full(1, a, np.float32), "x": np.full(1, t, np.float32)}
        for a, t in zip(STEEP, TARGET, strict=True)
    ]
)


def simulated(rounds):
    """The states before and after each round, of two clients of unequal steepness."""
    sim = Simulator(compose(algorithms.proxskip(TASK, LR, P)), CLIENTS, batch_size=1, steps=STEPS)
    states = [sim.init(jax.random.key(0))]
    for _ in range(rounds):
        states.append(sim.run(states[-1], [0, 1])[0])
    return states


@pytest.mark.proves("proxskip", by="independent implementation: the paper's rounds in NumPy")
def test_rounds_of_the_paper_flip_by_flip():
    """Algorithm 2 as it is printed: a coin after each step, which fails T - 1 times."""
    states = simulated(6)
    x, h = np.zeros(2), np.zeros(2)
    for before, after in itertools.pairwise(states):
        flips = [False] * (min(int(before.server.steps), STEPS) - 1) + [True]
        for meets in flips:
            moved = x - LR * (STEEP * (x - TARGET) - h)
            x = np.full(2, moved.mean()) if meets else moved
            h = h + P / LR * (x - moved)
        assert float(after.params[0]) == pytest.approx(x[0], abs=1e-6)


def test_the_server_draws_by_the_address_of_its_round():
    states = simulated(3)
    for before, after in itertools.pairwise(states):
        key = keys.update(before.key, before.round, 0)
        assert int(after.server.steps) == int(jax.random.geometric(key, P))
        assert not bool(
            jnp.all(jax.random.key_data(key) == jax.random.key_data(keys.server(before.key, before.round, 0)))
        )


def test_it_reaches_the_optimum_that_fedavg_misses():
    optimum = (STEEP * TARGET).sum() / STEEP.sum()
    assert float(simulated(200)[-1].params[0]) == pytest.approx(optimum, abs=1e-4)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"lr > 0 and 0 < probability <= 1, got lr=0.1, probability=0"):
        algorithms.proxskip(TASK, 0.1, 0)
