"""Per-FedAvg against the gradient written out, on quadratics, where the Hessian is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc

ALPHA, LR = 0.3, 0.1


@pytest.mark.proves(
    "perfedavg",
    by="closed form: the gradient through a step on quadratics, exactly, by differences, and without Hessian",
)
@pytest.mark.parametrize("hessian", ["exact", "difference", "none"])
def test_a_step_goes_down_the_loss_after_a_step(hessian):
    """f(w; rows) = mean (x w - y)^2 / 2, so grad F = (1 - alpha mean x_A^2) (mean x_B (x_B u - y_B)) at u = w
    - alpha grad f(w; A)."""
    task = fc.Task(
        lambda key: jnp.ones(1), lambda w, batch, key: jnp.square(batch["x"] * w[0] - batch["y"]) / 2
    )
    rng = np.random.default_rng(0)
    data = [
        {"x": rng.normal(size=n).astype(np.float32), "y": rng.normal(size=n).astype(np.float32)}
        for n in (4, 7)
    ]
    clients, ends = fc.Clients.from_list(data), []
    plan = fc.data.batches.Plan(4, epochs=2)
    for i in range(2):
        w = 1.0
        rows, _ = plan.batches(np.array([i]), clients.offsets, clients.addresses, 0)
        for places in rows:
            at = places[places >= 0]
            x, y = (clients.columns[name][at].astype(float) for name in "xy")
            (xa, ya), (xb, yb) = (x[::2], y[::2]), (x[1::2], y[1::2])
            u = w - ALPHA * (xa * (xa * w - ya)).mean()
            w -= LR * (1 - ALPHA * (xa**2).mean() * (hessian != "none")) * (xb * (xb * u - yb)).mean()
        ends.append(w)
    algorithm = fc.algorithms.perfedavg(task, ALPHA, optax.sgd(LR), hessian=hessian)
    sim = fc.Loops(fc.compose(algorithm), clients, batch_size=4, epochs=2)
    state, _ = sim.run(sim.init(jax.random.key(0)), [0, 1])
    assert float(state.params[0]) == pytest.approx((4 * ends[0] + 7 * ends[1]) / 11, abs=1e-6)


def test_a_client_with_one_example_moves_nothing():
    task = fc.Task(lambda key: jnp.ones(1), lambda w, batch, key: jnp.square(batch["x"] * w[0]))
    clients = fc.Clients.from_list([{"x": np.ones(1, np.float32)}])
    sim = fc.Simulator(
        fc.compose(fc.algorithms.perfedavg(task, ALPHA, optax.sgd(LR))),
        clients,
        batch_size=4,
        epochs=1,
        lanes=1,
    )
    state, metrics = sim.run(sim.init(jax.random.key(0)), [0])
    assert float(state.params[0]) == 1.0 and float(metrics["loss"].weight) == 0


def test_a_batch_splits_into_no_more_parts_than_it_has_rows():
    with pytest.raises(ValueError, match="a batch of 2 rows splits into 1 to as many parts, got 3"):
        fc.Batch({"x": jnp.ones(2)}, jnp.ones(2)).split(3)
