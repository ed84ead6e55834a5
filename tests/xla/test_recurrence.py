import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core

from fedjax_core.xla import recurrence
from fedjax_core.xla.rewrite import rewrite

T, B, H = 9, 2, 6


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(recurrence, "_LEAST", 1)
    monkeypatch.setattr(recurrence, "_MOST_KEPT", 1000)


def gradient_step(loss):
    return lambda params, x: jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, x))


def late(step, *args):
    """How many gradients are taken after their loop."""

    def count(jaxpr):
        return sum(
            len(recurrence.late_products(e)) + sum(map(count, core.jaxprs_in_params(e.params)))
            for e in jaxpr.eqns
        )

    return count(jax.make_jaxpr(step)(*args).jaxpr)


def check(step, params, x, products):
    assert late(step, params, x) == products
    expected = jax.jit(step)(params, x)
    got = jax.jit(rewrite(step, 1))(params, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    lanes = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 0.5 * p]), params)
    over = jax.vmap(rewrite(step, 3), in_axes=(0, None))
    in_loop = jax.jit(lambda lanes, x: jax.lax.fori_loop(0, 2, lambda i, p: over(p, x), lanes))(lanes, x)
    for j in range(3):
        alone = jax.tree.map(lambda p, j=j: p[j], lanes)
        for _ in range(2):
            alone = jax.jit(step)(alone, x)
        for a, b in zip(jax.tree.leaves(in_loop), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[j], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "products"),
    [
        (nn.GRUCell, 6),
        (nn.OptimizedLSTMCell, 8),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((nn.SimpleCell, 2), (nn.LSTMCell, 8))),
    ],
)
@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_flax_recurrent_layers(cell, products, reverse):
    model = nn.RNN(cell(H), reverse=reverse)
    x = jax.random.normal(jax.random.key(1), (B, T, 3))
    params = model.init(jax.random.key(0), x)

    def loss(params, x):
        return jnp.mean(jnp.square(model.apply(params, x)[:, -1] - 0.3))

    check(gradient_step(loss), params, x, products)


def test_an_nnx_layer():
    cell = nnx.RNN(nnx.GRUCell(3, H, rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(cell, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(1), (B, T, 3))

    def loss(params, x):
        return jnp.mean(jnp.square(nnx.merge(graph, params, jax.tree.map(lambda x: x, rest))(x)[:, -1]))

    step = gradient_step(loss)
    assert late(step, params, x) > 0
    for a, b in zip(
        jax.tree.leaves(jax.jit(rewrite(step, 1))(params, x)),
        jax.tree.leaves(jax.jit(step)(params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_is_more_than_a_sum_of_products_stays_in_the_loop():
    def decayed(w, xs):
        """The carry that w's gradient would be is also scaled in every step."""

        def step(c, x):
            return 0.9 * c + x.T @ x, None

        return jax.lax.scan(step, w, xs)[0]

    def read(w, xs):
        def step(c, x):
            c = c + x.T @ x
            return c, jnp.sum(c)

        return jax.lax.scan(step, w, xs)

    w, xs = jnp.ones((3, 3)), jnp.ones((T, B, 3))
    assert late(decayed, w, xs) == late(read, w, xs) == 0


def test_small_gradients_stay_in_the_loop(monkeypatch):
    monkeypatch.undo()

    def last(w, xs):
        return jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), None), xs[0], xs)[0].sum()

    assert late(jax.grad(last), jnp.ones((H, H)), jnp.ones((T, B, H))) == 0
    assert late(jax.grad(last), jnp.ones((128, 128)), jnp.ones((T, B, 128))) == 1
