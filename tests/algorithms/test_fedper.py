"""FedPer against a plain loop: the shared layers are averaged, the personal ones stay, and nothing of them is
sent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc

SIZES, LR = (3, 5, 2), 0.1
TASK = fc.Task(
    lambda key: {"body": jnp.ones(2), "head": {"w": jnp.float32(1), "b": jnp.float32(0)}},
    lambda p, batch, key: (
        jnp.square((batch["x"] @ p["body"]) * p["head"]["w"] + p["head"]["b"] - batch["y"]) / 2
    ),
)


def clients():
    rng = np.random.default_rng(3)
    return fc.Clients.from_list(
        [
            {"x": rng.normal(size=(n, 2)).astype(np.float32), "y": rng.normal(size=n).astype(np.float32)}
            for n in SIZES
        ]
    )


def plain_loop(data, cohorts, epochs=2):
    """(body, heads [N, 2]) in float64, by gradients written out."""
    body, heads = np.ones(2), np.tile([1.0, 0.0], (3, 1))
    for cohort in cohorts:
        ends = []
        for i in cohort:
            x, y = (data[i][name].astype(float) for name in "xy")
            v, (w, b) = body, heads[i]
            for _ in range(epochs):
                error = x @ v * w + b - y
                v, w, b = (
                    v - LR * (error * w) @ x / len(y),
                    w - LR * (error * (x @ v)).mean(),
                    b - LR * error.mean(),
                )
            heads[i] = w, b
            ends.append((SIZES[i], v))
        body = body + sum(n * (v - body) for n, v in ends) / sum(n for n, _ in ends)
    return body, heads


@pytest.mark.proves("fedper", by="independent implementation: the paper's rounds in NumPy")
def test_layers_are_shared_or_personal_as_in_a_plain_loop():
    data, cohorts = clients(), ([0, 1], [0, 1, 2])
    sim = fc.Simulator(
        fc.compose(fc.algorithms.fedper(TASK, optax.sgd(LR), ["head"])), data, batch_size=5, epochs=2, lanes=2
    )
    state = sim.init(jax.random.key(0))
    for cohort in cohorts:
        state, _ = sim.run(state, cohort)
    body, heads = plain_loop(data, cohorts)
    assert np.allclose(state.params["body"], body, atol=1e-5)
    own = state.clients.own["head"]
    assert np.allclose(np.stack([own["w"], own["b"]], axis=1), heads, atol=1e-5)
    assert state.params["head"] == {"w": None, "b": None} and state.clients.own["body"] is None
    found = sim.evaluate(state)
    for i in range(3):
        x, y = data[i]["x"], data[i]["y"]
        loss = np.square(x @ body * heads[i][0] + heads[i][1] - y).mean() / 2
        assert float(found.clients["loss"][i]) == pytest.approx(loss, rel=1e-4)


def test_a_name_of_no_leaf_is_refused():
    with pytest.raises(
        ValueError, match=r"there is no leaf under 'tail': the leaves are 'body', 'head/b', 'head/w'"
    ):
        fc.compose(fc.algorithms.fedper(TASK, optax.sgd(LR), ["tail"]))
