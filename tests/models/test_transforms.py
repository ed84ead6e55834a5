"""Remat, accumulation and bfloat16: the same numbers as the plain task, in less memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core import Batch, models
from tests.zoo import ZOO, Dropped, clients, cross_entropy, flax_task, round_of

KEY = jax.random.key(0)
DEEP = models.mlp(features=16, hidden=(64,) * 15, classes=3)


def batch(size, features=16, real=None):
    rng = np.random.default_rng(size)
    columns = {
        "x": rng.normal(size=(size, features)).astype(np.float32),
        "y": rng.integers(0, 3, size).astype(np.int32),
    }
    return Batch(
        jax.tree.map(jnp.asarray, columns), jnp.asarray(np.arange(size) < (real or size), jnp.float32)
    )


def gradient(task, data, params=None):
    """The compiled gradient of the mean loss, its value, and the bytes that it needs for a moment."""
    params = task.init(KEY) if params is None else params
    compiled = jax.jit(jax.grad(task.mean_loss)).lower(params, data, KEY).compile()
    return compiled(params, data, KEY), compiled.memory_analysis().temp_size_in_bytes


def assert_near(got, expected, rtol=1e-6):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        assert np.linalg.norm(x - y) <= rtol * max(np.linalg.norm(y), 1e-3)


@pytest.mark.parametrize(("segments", "share"), [(1, 1.01), (4, 0.5), (1000, 1.01)])
def test_remat_is_the_same_gradient_in_less_memory(segments, share):
    data = batch(256, real=200)
    plain, whole = gradient(DEEP, data)
    saved, less = gradient(models.remat(DEEP, segments), data)
    assert_near(saved, plain)
    assert less <= share * whole


@pytest.mark.parametrize("module", ["linen dropout", "linen convolution", "nnx dropout"])
def test_remat_of_a_flax_module_draws_the_same(module):
    task, data = round_of(module).algorithm.task, clients(ZOO[module].data)
    one = Batch(jax.tree.map(lambda x: jnp.asarray(x[:4]), data.columns), jnp.ones(4))
    params = task.init(KEY)
    assert_near(gradient(models.remat(task, 3), one, params)[0], gradient(task, one, params)[0])


@pytest.mark.parametrize(("size", "real"), [(12, 12), (12, 5), (11, 11), (2, 2)])
def test_parts_of_a_batch_are_the_whole(size, real):
    data, task = batch(size, real=real), models.accumulate(DEEP, parts=4)
    params = DEEP.init(KEY)
    np.testing.assert_allclose(task.loss(params, data, KEY), DEEP.loss(params, data, KEY), rtol=1e-6)
    assert_near(gradient(task, data)[0], gradient(DEEP, data)[0])


def test_parts_need_their_share_of_the_memory():
    data = batch(1024)
    assert gradient(models.accumulate(DEEP, parts=8), data)[1] < 0.25 * gradient(DEEP, data)[1]


def test_parts_draw_dropout_each_for_itself():
    task = flax_task(Dropped())
    data = Batch({"x": jnp.ones((8, 3)), "y": jnp.zeros(8, jnp.int32)}, jnp.ones(8))
    drawn = models.accumulate(task, parts=2).loss(task.init(KEY), data, KEY)
    assert not jnp.array_equal(drawn[:4], drawn[4:])


def test_a_loss_in_which_examples_meet_is_not_split():
    data = Batch({"x": jnp.ones((4, 2)), "time": jnp.arange(4.0), "event": jnp.ones(4)}, jnp.ones(4))
    task = models.cox(features=2)
    with pytest.raises(ValueError, match=r"accumulate\(\) cannot split a batch whose loss reads batch\.mask"):
        models.accumulate(task, 2).loss(task.init(KEY), data, KEY)


def test_a_jitted_loss_that_is_only_handed_the_mask_is_split():
    task = DEEP._replace(loss=jax.jit(DEEP.loss))
    assert_near(
        gradient(models.accumulate(models.accumulate(task, 2), 2), batch(8))[0], gradient(DEEP, batch(8))[0]
    )


def test_bfloat16_computes_in_sixteen_bits_and_answers_in_thirty_two():
    """1 + 2^-9 is 1 in bfloat16, and a target of 256.5 is not rounded: the loss is (1 - 256.5)^2, its
    gradient 2 (1 - 256.5)."""
    task = models.bfloat16(models.linear(features=1))
    params, data = (
        {"w": jnp.array([1 + 2.0**-9]), "b": jnp.array(0.0)},
        Batch({"x": jnp.ones((1, 1)), "y": jnp.array([256.5])}, jnp.ones(1)),
    )
    loss, grads = jax.value_and_grad(task.mean_loss)(params, data, KEY)
    assert loss.dtype == grads["w"].dtype == grads["b"].dtype == jnp.float32
    assert float(loss) == 255.5**2
    assert float(grads["b"]) == -512  # -511 in the 8 binary digits of bfloat16
    assert float(task.predict(params, data)[0]) == 1 + 2.0**-9  # evaluation stays in 32 bits


@pytest.mark.parametrize(
    "task",
    [DEEP, models.logistic(features=16, classes=3), flax_task(nn.Dense(3))],
    ids=["mlp", "logistic", "flax"],
)
def test_every_product_of_a_bfloat16_model_is_of_bfloat16(task):
    data = batch(4, features=3 if "kernel" in task.init(KEY) else 16)
    traced = jax.make_jaxpr(jax.grad(models.bfloat16(task).mean_loss))(task.init(KEY), data, KEY)
    products = [eqn for eqn in traced.eqns if eqn.primitive.name == "dot_general"]
    assert products
    assert {v.aval.dtype.name for eqn in products for v in eqn.invars} == {"bfloat16"}
    assert {v.aval.dtype.name for v in traced.jaxpr.outvars} == {"float32"}


def test_bytes_of_images_follow_into_bfloat16():
    module = nn.Sequential([nn.Conv(2, (3, 3)), lambda x: x.reshape(len(x), -1), nn.Dense(3)])
    task = models.from_flax(
        module, {"x": np.zeros((2, 6, 6, 1), np.uint8), "y": np.zeros(2, np.int32)}, loss=cross_entropy
    )
    data = Batch({"x": jnp.full((2, 6, 6, 1), 255, jnp.uint8), "y": jnp.zeros(2, jnp.int32)}, jnp.ones(2))
    traced = jax.make_jaxpr(models.bfloat16(task).loss)(task.init(KEY), data, KEY)
    used = {
        v.aval.dtype.name
        for eqn in traced.eqns
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
        for v in eqn.invars
    }
    assert used == {"bfloat16"}


def test_gradients_of_parts_add_up_in_thirty_two_bits():
    data, params = batch(64), DEEP.init(KEY)
    narrow = models.bfloat16(DEEP)
    parts = [
        Batch(jax.tree.map(lambda x, p=p: x[p : p + 8], data.columns), jnp.ones(8)) for p in range(0, 64, 8)
    ]
    each = [gradient(narrow, part, params)[0] for part in parts]
    expected = jax.tree.map(lambda *g: sum(x / 8 for x in g), *each)
    assert_near(gradient(models.accumulate(narrow, 8), data, params)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda: models.remat(DEEP, 0), lambda: models.accumulate(DEEP, 0)])
def test_at_least_one_part(make):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make()
