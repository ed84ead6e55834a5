"""Clients that pull a matrix in opposite directions: Muon's directions cancel, though the gradients do
not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import fedjax_core as fc

# gradients 3 I and -I, in three dimensions: their mean is I, and the mean of their directions is zero
PULLS = (
    3.0,
    -1.0,
)
TASK = fc.Task(lambda key: {"w": jnp.zeros((3, 3))}, lambda p, batch, key: batch["pull"] * jnp.trace(p["w"]))
CLIENTS = fc.Clients.from_list([{"pull": np.full(1, pull, np.float32)} for pull in PULLS])


def moved(algorithm, rounds=2):
    loops = fc.Loops(fc.compose(algorithm), CLIENTS, batch_size=1, epochs=2)
    state = loops.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = loops.run(state, [0, 1])
    return np.asarray(state.params["w"])


@pytest.mark.proves(
    "fedmuon", by="closed form: it moves where Local Muon stalls, at a point that is no optimum"
)
@jax.numpy_dtype_promotion("standard")  # optax counts steps in whole numbers
def test_local_muon_stalls_and_the_corrected_rule_moves():
    muon = optax.contrib.muon(0.1, nesterov=False)
    assert np.abs(moved(fc.algorithms.fedavg(TASK, muon, weighting=fc.algorithms.uniform))).max() < 1e-6
    first, second = (moved(fc.algorithms.fedmuon(TASK, muon, 2), rounds) for rounds in (1, 2))
    assert np.abs(first).max() < 1e-6  # nothing is known of the others yet
    # along -I, down the mean loss
    assert second[0, 0] < -0.1 and second == pytest.approx(second[0, 0] * np.eye(3), abs=1e-5)


@pytest.mark.proves("fedmuon_aligned", by="closed form: what all did last, and Muon of a diagonal matrix")
@jax.numpy_dtype_promotion("standard")
def test_the_aligned_rule_goes_by_the_last_step_of_all():
    """Both pull alike, so that the first step is along -I, whatever their sizes; with gamma = 1 the others repeat it."""
    data = fc.Clients.from_list([{"pull": np.full(1, pull, np.float32)} for pull in (3.0, 1.0)])
    muon, steps = optax.contrib.muon(0.1, nesterov=False), []
    for gamma in (0.0, 0.5, 1.0):
        loops = fc.Loops(
            fc.compose(fc.algorithms.fedmuon_aligned(TASK, muon, gamma)), data, batch_size=1, epochs=2
        )
        state = loops.init(jax.random.key(0), {"w": jnp.zeros((3, 3))})
        begun = state.server._replace(direction={"w": -0.2 * jnp.eye(3)})
        state, _ = loops.run(state._replace(server=begun), [0, 1])
        steps.append(np.asarray(state.params["w"]))
    np.testing.assert_allclose(steps[0], steps[0][0, 0] * np.eye(3), atol=1e-5)
    assert -0.25 < steps[0][0, 0] < -0.13  # two steps of 0.1 times a singular value near 1, by Newton-Schulz
    np.testing.assert_allclose(steps[2], -0.4 * np.eye(3), atol=1e-6)
    np.testing.assert_allclose(steps[1], (steps[0] + steps[2]) / 2, atol=1e-5)
