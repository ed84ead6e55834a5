"""Each client's own model against FedAvg of that client alone, whose model after one round is the
client's."""

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc

SIZES, LOCAL = (5, 0, 3), optax.sgd(0.1, momentum=0.9)


def clients():
    rng = np.random.default_rng(0)
    data = [
        {"x": rng.normal(size=(n, 2)).astype(np.float32), "y": rng.normal(size=n).astype(np.float32)}
        for n in SIZES
    ]
    return fc.Clients.from_list(data)


@pytest.mark.proves("finetune", by="identity: FedAvg of that client alone")
def test_each_client_has_the_model_that_a_round_of_it_alone_comes_to():
    task = fc.models.linear(features=2)
    start = {"w": np.array([1.0, -1.0], np.float32), "b": np.float32(0.5)}
    own = fc.personalise(task, start, clients(), LOCAL, batch_size=2, epochs=3)
    sim = fc.Simulator(
        fc.compose(fc.algorithms.fedavg(task, LOCAL)), clients(), batch_size=2, epochs=3, lanes=1
    )
    begun = sim.init(jax.random.key(0), start)
    for i in range(len(SIZES)):
        alone = sim.run(begun, [i])[0].params
        for name in start:
            np.testing.assert_allclose(own[name][i], alone[name], atol=1e-6)
    np.testing.assert_array_equal(own["w"][1], start["w"])
    assert not np.allclose(own["w"][0], own["w"][2])


def test_one_full_step_is_that_of_gradient_descent_by_hand():
    """w - 0.1 * 2 mean (w x + b - y) x, with w = b = 0."""
    data, task = clients(), fc.models.linear(features=2)
    zeros = jax.tree.map(np.zeros_like, task.init(jax.random.key(0)))
    own = fc.personalise(task, zeros, data, optax.sgd(0.1), batch_size=8, steps=1)
    for i, (first, last) in enumerate(zip(data.offsets[:-1], data.offsets[1:], strict=True)):
        x, y = data.columns["x"][first:last].astype(float), data.columns["y"][first:last].astype(float)
        expected = 0.2 * (y[:, None] * x).sum(axis=0) / max(1, len(y))
        np.testing.assert_allclose(own["w"][i], expected, atol=1e-6)


def test_what_it_needs_is_said():
    task = fc.models.linear(features=2)
    with pytest.raises(TypeError, match="must be an optax optimiser"):
        fc.personalise(task, task.init(jax.random.key(0)), clients(), 0.1, batch_size=2, epochs=1)
