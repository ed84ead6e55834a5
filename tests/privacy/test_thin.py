"""Gradients of single examples as thin factors: the norms and sums of the gradients that are made whole, and
only where these are outer products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_core import tree
from fedjax_core.privacy import clipping, thin

RNG = np.random.default_rng(3)
COUNTS = jnp.array([1.0, 0, 1, 1, 1, 0])


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def perceptron(params, x):
    hidden = jax.nn.relu(x[None] @ params["w"] + params["b"][None])
    return jnp.sum(jnp.tanh(hidden @ params["v"]))


class Network(nn.Module):
    """A convolution, a dense layer, one that sees a sequence, and one more."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (2, 2))(x.reshape(1, 4, 4, 1)))
        x = nn.Dense(5)(x.reshape(1, -1))
        x = nn.Dense(4)(x[..., None]).reshape(1, -1)
        return jnp.sum(jnp.tanh(nn.Dense(2)(jnp.tanh(x))))


def whole(gradient, examples):
    """Each example's gradient by itself, stacked."""
    each = [gradient(x) for x in examples]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def check(gradient, examples, expected_thin):
    of_each = thin.one_by_one(gradient, examples[0])
    rows, plain = jax.jit(of_each)(examples), whole(gradient, examples)
    leaves = jax.tree.leaves(rows, is_leaf=lambda leaf: isinstance(leaf, thin.Thin))
    names = [n for n, leaf in zip(tree.names(plain), leaves, strict=True) if isinstance(leaf, thin.Thin)]
    assert names == expected_thin
    np.testing.assert_allclose(thin.norms(rows), thin.norms(plain), rtol=1e-5)
    for bound in (0.1, 1e6):
        got, expected = (clipping.clipped_sum(of, COUNTS, bound) for of in (rows, plain))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), got, expected)


def test_a_perceptrons_matrices_are_thin_and_its_biases_whole():
    params = {"w": normal(7, 4), "b": normal(4), "v": normal(4, 3)}
    check(lambda x: jax.grad(perceptron)(params, x), normal(6, 7), ["v", "w"])


def test_of_a_flax_network_only_outer_products_are_thin():
    """Not the kernel of a convolution, nor of the layer that sees a sequence: their gradients are sums of
    several products."""
    module = Network()
    params = module.init(jax.random.key(0), jnp.ones(16))["params"]
    check(
        lambda x: jax.grad(lambda p: module.apply({"params": p}, x))(params),
        normal(6, 16),
        ["Dense_0/kernel", "Dense_2/kernel"],
    )


def test_weights_that_are_used_twice_are_whole():
    w = normal(5, 5)
    check(lambda x: {"w": jax.grad(lambda w: jnp.sum(jnp.tanh(x[None] @ w) @ w))(w)}, normal(6, 5), [])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (1, 0, 2)])
def test_axes_stand_as_they_are_to(order):
    def gradient(x):
        return jnp.transpose(jnp.einsum("ta,tbc->abc", x[None, :2], x[None].reshape(1, 3, 4)), order)

    check(lambda x: {"w": gradient(x)}, normal(6, 12), ["w"])


def test_norms_hold_where_squares_vanish_or_overflow():
    """Else an example's gradient could be longer than the clip: 1e-22 times 1e21 is 0.1, and has squares 0
    and infinity."""
    rows = thin.Thin(jnp.full((6, 4), 1e-22), jnp.full((6, 9), 1e21), (4, 9), (0, 1))
    np.testing.assert_allclose(rows.norms(), 0.6, rtol=1e-5)
    short = clipping.clipped_sum({"w": rows}, jnp.eye(6)[0], 0.3)
    assert float(tree.norm(short)) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_an_example_that_is_not_finite_adds_nothing(value):
    x = normal(6, 4)
    bad = thin.Thin(x.at[2].set(value), normal(6, 9).at[2].set(value), (4, 9), (0, 1))
    without = thin.Thin(x, bad.y.at[2].set(0), (4, 9), (0, 1))
    got, expected = (clipping.clipped_sum({"w": of}, COUNTS, 0.5)["w"] for of in (bad, without))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, atol=1e-6)
