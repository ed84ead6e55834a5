"""MOON against `jax.grad` of its equation, client by client and step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from tests.zoo import SGD

MU, T, LR, SIZES = 2.0, 0.5, 0.1, (3, 5)


def features(params, batch, key):
    return jnp.tanh(batch["x"] @ params["body"])


def loss(params, batch, key):
    return jnp.square(features(params, batch, key) @ params["head"] - batch["y"])


def start(key):
    rng = np.random.default_rng(1)
    return {"body": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "head": jnp.ones(2)}


def clients():
    rng = np.random.default_rng(0)
    return fc.Clients.from_list(
        [
            {"x": rng.normal(size=(n, 3)).astype(np.float32), "y": rng.normal(size=n).astype(np.float32)}
            for n in SIZES
        ]
    )


def total(params, received, previous, x, y):
    """The loss of the paper on some examples, by log and exp."""
    batch = {"x": x, "y": y}
    z, z_glob, z_prev = (features(model, batch, None) for model in (params, received, previous))

    def similar(a, b):
        return jnp.exp(jnp.sum(a * b, 1) / jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(b, axis=1) / T)

    return jnp.mean(
        loss(params, batch, None)
        - MU * jnp.log(similar(z, z_glob) / (similar(z, z_glob) + similar(z, z_prev)))
    )


def plain_loop(data, cohorts):
    plan, x = fc.data.batches.Plan(2, epochs=2), start(None)
    previous = [x, x]
    for r, cohort in enumerate(cohorts):
        ends = []
        for i in cohort:
            y = x
            for places in plan.batches(np.array([i]), data.offsets, data.addresses, r)[0]:
                at = places[places >= 0]
                grads = jax.grad(total)(y, x, previous[i], data.columns["x"][at], data.columns["y"][at])
                y = jax.tree.map(lambda p, g: p - LR * g, y, grads)
            previous[i] = y
            ends.append((SIZES[i], y))
        whole = sum(n for n, _ in ends)
        x = jax.tree.map(lambda *leaves, ends=ends, whole=whole: sum(n * y for (n, _), y in zip(ends, leaves, strict=True)) / whole,
                         *[y for _, y in ends])  # fmt: skip
    return x, previous


@pytest.mark.proves("moon", by="independent implementation: jax.grad of the paper's equation")
def test_rounds_are_those_of_the_equation():
    task = fc.Task(start, loss, features=features)
    data, cohorts = clients(), ([0, 1], [1], [0, 1])
    sim = fc.Simulator(
        fc.compose(fc.algorithms.moon(task, MU, optax.sgd(LR), T)), data, batch_size=2, epochs=2, lanes=2
    )
    state = sim.init(jax.random.key(0))
    for cohort in cohorts:
        state, _ = sim.run(state, cohort)
    expected, previous = plain_loop(data, cohorts)
    for name in ("body", "head"):
        np.testing.assert_allclose(state.params[name], expected[name], atol=1e-5)
        np.testing.assert_allclose(
            state.clients.own[name], np.stack([one[name] for one in previous]), atol=1e-5
        )


def test_a_task_without_features_and_a_temperature_of_zero_are_refused():
    with pytest.raises(ValueError, match="the task has no features"):
        fc.algorithms.moon(fc.Task(start, loss), MU, SGD)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        fc.algorithms.moon(fc.Task(start, loss, features=features), MU, SGD, 0)
