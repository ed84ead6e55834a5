import jax
import numpy as np
import pytest

from fedjax_core import Clients, Simulator, algorithms, compose, uplink
from tests.quadratic import START, TASK, descend

MEANS, SIZES, LR = np.array([2.0, 5.0, 1.0]), np.array([2, 1, 3]), 0.1
# Each client's examples are alike, so the order of its batches of one does not matter.
CLIENTS = Clients.from_list(
    [{"x": np.full(n, mean, np.float32)} for mean, n in zip(MEANS, SIZES, strict=True)]
)


def simulated(rounds, **pieces):
    """The model after some rounds in which clients take 4, 2 and 6 steps."""
    sim = Simulator(compose(algorithms.fednova(TASK, LR), **pieces), CLIENTS, batch_size=1, epochs=2)
    state = sim.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = sim.run(state, [0, 1, 2])
    return float(state.params[0])


@pytest.mark.proves("fednova", by="independent implementation: the paper's rounds in NumPy")
def test_rounds_of_the_paper_worked_by_hand():
    x, share, steps = START, SIZES / SIZES.sum(), 2 * SIZES
    for _ in range(3):
        ends = np.array([descend(x, mean, LR, int(n)) for mean, n in zip(MEANS, steps, strict=True)])
        x += (share @ steps) * (share @ ((ends - x) / steps))
    assert simulated(3) == pytest.approx(x, abs=1e-6)


def test_a_clip_above_every_norm_changes_nothing():
    """The numbers of steps are not in the update, of which a clip would make something else."""
    assert simulated(3, uplink=uplink.clip(2.0)) == pytest.approx(simulated(3), abs=1e-6)
