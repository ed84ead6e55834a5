"""Logistic regression, least squares and the MLP against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_core import models
from fedjax_core.task import Task, check_task
from fedjax_core.types import Batch

KEY = jax.random.key(0)


def make_batch(classes: int, features: int = 3, padding: int = 2) -> Batch:
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(6, features)).astype(np.float32)
    mask = jnp.array([1.0] * (6 - padding) + [0.0] * padding)
    return Batch({"x": jnp.array(x), "y": jnp.array(rng.integers(0, classes, 6), jnp.int32)}, mask)


def make_params(shape: tuple[int, ...], bias: tuple[int, ...]) -> dict[str, jax.Array]:
    rng = np.random.default_rng(7)
    return {
        "w": jnp.array(rng.normal(size=shape), jnp.float32),
        "b": jnp.array(rng.normal(size=bias), jnp.float32),
    }


def numpy_of(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    real = np.asarray(batch.mask) > 0
    return np.asarray(batch["x"], np.float64)[real], np.asarray(batch["y"])[real]


def test_logistic_gradient_is_x_times_probability_minus_label():
    batch, params = make_batch(4), make_params((3, 4), (4,))
    value, grads = jax.value_and_grad(models.logistic(features=3, classes=4).mean_loss)(params, batch, KEY)
    x, y = numpy_of(batch)
    exp = np.exp(x @ np.asarray(params["w"], np.float64) + np.asarray(params["b"]))
    probability, label = exp / exp.sum(1, keepdims=True), np.eye(4)[y]
    np.testing.assert_allclose(value, -np.log((probability * label).sum(1)).mean(), rtol=1e-6)
    np.testing.assert_allclose(grads["w"], x.T @ (probability - label) / len(x), atol=1e-6)
    np.testing.assert_allclose(grads["b"], (probability - label).mean(0), atol=1e-6)


def test_one_logit_gradient_is_x_times_sigmoid_minus_label():
    batch, params = make_batch(2), make_params((3, 1), (1,))
    value, grads = jax.value_and_grad(models.logistic(features=3, classes=1).mean_loss)(params, batch, KEY)
    x, y = numpy_of(batch)
    probability = 1 / (1 + np.exp(-(x @ np.asarray(params["w"], np.float64)[:, 0] + np.asarray(params["b"]))))
    np.testing.assert_allclose(
        value, -np.log(np.where(y == 1, probability, 1 - probability)).mean(), rtol=1e-6
    )
    np.testing.assert_allclose(grads["w"][:, 0], x.T @ (probability - y) / len(x), atol=1e-6)
    np.testing.assert_allclose(grads["b"], [(probability - y).mean()], atol=1e-6)


def test_linear_gradient_is_twice_x_times_residual():
    batch, params = make_batch(5), make_params((3,), ())
    value, grads = jax.value_and_grad(models.linear(features=3).mean_loss)(params, batch, KEY)
    x, y = numpy_of(batch)
    residual = x @ np.asarray(params["w"], np.float64) + np.asarray(params["b"]) - y
    np.testing.assert_allclose(value, (residual**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(grads["w"], 2 * x.T @ residual / len(x), rtol=1e-5)
    np.testing.assert_allclose(grads["b"], 2 * residual.mean(), rtol=1e-5)


def test_mlp_is_the_flax_one():
    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (5, 4):
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(3)(x)

    batch = make_batch(3)
    task = models.mlp(features=3, hidden=(5, 4), classes=3)
    params = task.init(KEY)
    variables = {
        "params": {f"Dense_{i}": {"kernel": layer["w"], "bias": layer["b"]} for i, layer in enumerate(params)}
    }
    np.testing.assert_allclose(task.predict(params, batch), MLP().apply(variables, batch["x"]), rtol=1e-6)


def test_parameters_counted():
    counts = {
        199_210: models.mlp(features=784, hidden=(200, 200), classes=10),
        1_206_590: models.cnn(shape=(28, 28, 1), classes=62),
        610: models.logistic(features=60, classes=10),
        14: models.logistic(features=13, classes=1),
        40: models.cox(features=39),
        4: models.linear(features=3),
    }
    assert {
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, KEY))): task
        for task in counts.values()
    } == counts


def test_accuracy_is_one_an_example_where_the_largest_logit_is_right():
    assert models.accuracy(jnp.array([[0.0, 1.0], [3.0, 1.0]]), jnp.array([1, 1])).tolist() == [1.0, 0.0]
    assert models.accuracy(jnp.array([-1.0, 2.0]), jnp.array([0.0, 0.0])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_labels_of_any_integer_dtype(dtype):
    logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    expected = -jax.nn.log_softmax(logits)[jnp.arange(2), jnp.array([2, 0])]
    np.testing.assert_allclose(models.cross_entropy(logits, jnp.array([2, 0], dtype)), expected, rtol=1e-6)


def test_a_label_out_of_range_is_not_a_number():
    assert np.isnan(models.cross_entropy(jnp.zeros((3, 2)), jnp.array([2, -1, 1]))).tolist() == [
        True,
        True,
        False,
    ]
    assert np.isnan(models.binary_cross_entropy(jnp.zeros(3), jnp.array([2, -1, 1]))).tolist() == [
        True,
        True,
        False,
    ]


def test_cross_entropy_of_huge_logits_is_finite():
    value, grad = jax.value_and_grad(lambda z: models.cross_entropy(z, jnp.array([1])).sum())(
        jnp.array([[1e4, -1e4]])
    )
    assert value == 2e4 and grad.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    "task",
    [
        models.logistic(features=4, classes=3),
        models.mlp(features=4, classes=3),
        models.logistic(features=4, classes=1),
    ],
)
def test_bytes_are_scaled_and_images_flattened(task: Task):
    params = jax.tree.map(
        lambda leaf: leaf + 0.5 * jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape), task.init(KEY)
    )
    pixels = jnp.array([[[0, 51], [102, 255]]], jnp.uint8)
    bytes_, floats = (
        Batch({"x": x, "y": jnp.zeros(1, jnp.uint8)}, jnp.ones(1))
        for x in (pixels, jnp.array([[0.0, 0.2, 0.4, 1.0]]))
    )
    np.testing.assert_allclose(task.predict(params, bytes_), task.predict(params, floats), rtol=1e-6)


def test_wrong_number_of_features_is_named():
    with pytest.raises(
        ValueError, match=r"built for 4 features, but batch\[\"x\"\] has 3 an example .* features=3"
    ):
        check_task(models.logistic(features=4, classes=2), make_batch(2).columns, 6)


@pytest.mark.parametrize(
    "task",
    [
        models.logistic(features=3, classes=2),
        models.mlp(features=3, hidden=(4,), classes=2),
        models.linear(features=3),
    ],
)
def test_vmap_over_parameters_inside_a_compiled_loop_is_eager(task: Task):
    batch, params = make_batch(2), task.init(KEY)
    gradient = jax.grad(task.mean_loss)

    def step(params, key):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params, batch, key))

    def loop(params, keys):
        return jax.lax.scan(lambda p, key: (jax.vmap(step, (0, None))(p, key), None), params, keys)[0]

    keys = jax.random.split(KEY, 3)
    looped = jax.jit(loop)(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params), keys)
    for key in keys:
        params = jax.jit(step)(params, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=2e-5, atol=1e-6), looped, params)
