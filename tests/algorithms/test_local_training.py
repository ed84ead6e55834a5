"""The shared local loop: short algorithms, another gradient, another objective, and what each is told."""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.algorithms import At, local_training, server_step
from tests import gradients
from tests.conftest import REPOSITORY

SIZES, BATCH, LR = (3, 5), 2, 0.1


def code_lines(path):
    """How many lines of a file are code: no docstrings, comments, imports or blank lines."""
    text = path.read_text()
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(
        1 for i, line in lines if i not in left_out and line.strip() and not line.strip().startswith("#")
    )


@pytest.mark.parametrize(("name", "most"), [("fedavg", 25), ("fedprox", 25), ("scaffold", 40)])
def test_an_algorithm_is_its_difference_from_the_shared_loop(name, most):
    assert code_lines(REPOSITORY / "fedjax_core" / "algorithms" / f"{name}.py") <= most


def regression():
    """Clients of 3 and 5 examples, and half the squared error of w on them."""
    rng = np.random.default_rng(0)
    data = [
        {"x": rng.normal(size=(n, 3)).astype(np.float32), "y": rng.normal(size=n).astype(np.float32)}
        for n in SIZES
    ]
    task = fc.Task(lambda key: jnp.ones(3), lambda w, batch, key: jnp.square(batch["x"] @ w - batch["y"]) / 2)
    return task, fc.Clients.from_list(data)


def one_by_one(clients, gradient):
    """FedAvg's model after a round, in float64 numpy: `gradient(w, x, y)` of each batch in the order of the
    engine."""
    plan, ends = fc.data.batches.Plan(BATCH, epochs=2), []
    for i, size in enumerate(SIZES):
        w = np.ones(3)
        rows, _ = plan.batches(np.array([i]), clients.offsets, clients.addresses, 0)
        for places in rows:
            places = places[places >= 0]
            w = w - LR * gradient(
                w, clients.columns["x"][places].astype(float), clients.columns["y"][places].astype(float)
            )
        ends.append(size * w)
    return sum(ends) / sum(SIZES)


def trained(task, clients, gradient, rounds=1):
    algorithm = fc.algorithms.fedavg(task, optax.sgd(LR), gradient=gradient)
    sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=BATCH, epochs=2, lanes=2)
    state, metrics = sim.init(jax.random.key(0)), None
    for _ in range(rounds):
        state, metrics = sim.run(state, [0, 1])
    return np.asarray(state.params), metrics


def plain(w, x, y):
    return x.T @ (x @ w - y) / len(y)


def test_the_plain_gradient_is_the_one_of_the_loop():
    task, clients = regression()
    assert np.allclose(
        trained(task, clients, fc.algorithms.gradient)[0], one_by_one(clients, plain), atol=1e-6
    )


def test_fedsam_goes_down_the_gradient_of_the_worst_point_near_by():
    task, clients = regression()

    def worst(w, x, y):
        uphill = plain(w, x, y)
        return plain(w + 0.3 * uphill / np.linalg.norm(uphill), x, y)

    expected = one_by_one(clients, worst)
    assert np.allclose(trained(task, clients, gradients.sharpness_aware(0.3))[0], expected, atol=1e-6)
    assert not np.allclose(expected, one_by_one(clients, plain), atol=1e-3)


def test_dp_sgd_clips_each_example_and_divides_by_the_batch_that_was_asked_for():
    task, clients = regression()
    clipped = []

    def private(w, x, y):
        each = [(x[i] @ w - y[i]) * x[i] for i in range(len(y))]
        clipped.extend(np.linalg.norm(g) > 0.5 for g in each)
        return sum(g * min(1, 0.5 / np.linalg.norm(g)) for g in each) / BATCH

    expected = one_by_one(clients, private)
    found, metrics = trained(task, clients, gradients.private(0.5, 0.0, BATCH))
    assert np.allclose(found, expected, atol=1e-6) and any(clipped) and not all(clipped)
    assert float(metrics["loss"].weight) == 2 * sum(SIZES)  # padding is in no sum


def test_the_noise_of_dp_sgd_has_its_size_and_a_key_of_its_own_in_every_step():
    flat = fc.Task(lambda key: jnp.zeros(2000), lambda w, batch, key: 0 * batch["x"] * w.sum())
    clients = fc.Clients.from_list([{"x": np.ones(8, np.float32)}])
    algorithm = fc.algorithms.fedavg(flat, optax.sgd(1.0), gradient=gradients.private(2.0, 1.5, 4))
    sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=4, epochs=1, lanes=1)
    state, _ = sim.run(sim.init(jax.random.key(0)), [0])  # two steps, each of deviation 1.5 * 2 / 4
    assert np.std(np.asarray(state.params)) == pytest.approx(0.75 * 2**0.5, rel=0.05)


def test_an_objective_is_of_the_message_and_of_what_the_client_keeps():
    task, _ = regression()
    batch = fc.Batch({"x": jnp.ones((2, 3)), "y": jnp.zeros(2)}, mask=jnp.array([1.0, 0.0]))
    begin, step = local_training(
        task,
        optax.sgd(LR),
        start=lambda message, own: message["model"],
        objective=lambda message, own: (
            lambda w, batch, key: task.loss(w, batch, key) + own * w @ message["pull"]
        ),
    )
    message, own = {"model": jnp.ones(3), "pull": jnp.array([1.0, 2.0, 3.0])}, jnp.float32(2)
    after, seen = step(message, begin(message, own, jax.random.key(0)), batch, jax.random.key(1))
    assert np.allclose(after.params, 1 - LR * (3 + 2 * np.array([1, 2, 3])))
    assert float(seen["loss"].total) == pytest.approx(4.5 + 2 * 6)


def test_a_correction_is_told_where_the_step_is_taken():
    task, _ = regression()
    batch, key = fc.Batch({"x": jnp.ones((2, 3)), "y": jnp.zeros(2)}, mask=jnp.ones(2)), jax.random.key(1)
    told = []
    begin, step = local_training(task, optax.sgd(LR), correct=lambda grads, at: told.append(at) or grads)
    step(jnp.ones(3), begin(jnp.ones(3), "kept", key), batch, key)
    (at,) = told
    assert isinstance(at, At) and at.own == "kept" and at.batch is batch and at.key is key
    assert np.array_equal(at.params, np.ones(3)) and np.array_equal(at.message, np.ones(3))


def test_a_server_step_takes_the_change_for_the_negative_of_a_gradient():
    step = server_step(optax.sgd(0.5, momentum=0.9))
    opt, x, trace = optax.sgd(0.5, momentum=0.9).init(jnp.zeros(1)), jnp.zeros(1), 0.0
    expected = 0.0
    for change in (1.0, -3.0):
        x, opt = step(x, opt, jnp.full(1, change))
        trace = change + 0.9 * trace
        expected += 0.5 * trace
    assert float(x[0]) == pytest.approx(expected)
