"""Whole numbers in place of reports: what wraps is refused, rounding has no bias, and its error is the one
that is promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core.secure_aggregation.ring import dequantize, quantize, ring


@pytest.mark.parametrize(
    ("bits", "weights"), [(28, 10), (25, 100), (22, 1000), (18, 10_000), (31, 2), (32, 1), (2, 2**30)]
)
def test_thirty_two_bits_pass_and_thirty_three_are_refused(bits, weights):
    exact = ring(1.0, bits, weights)
    for more_bits, more_weights in ((bits + 1, weights), (bits, 2 ** (weights - 1).bit_length() + 1)):
        with pytest.raises(ValueError, match="need 33 bits, and the ring has 32"):
            ring(1.0, more_bits, more_weights)
    largest = 2 ** (bits - 1) - 1  # the sum at the ends stays a number with its sign
    assert weights * largest < 2**31
    if bits <= 24:  # a float32 has no more
        for sign in (1, -1):
            q = quantize(exact, jnp.full(1, sign, jnp.float32), jnp.uint32(weights), jax.random.key(0))
            assert q.astype(jnp.int32).item() == sign * weights * largest
            np.testing.assert_allclose(dequantize(exact, q, jnp.uint32(weights)), sign, rtol=3e-7)


@pytest.mark.parametrize(
    ("bound", "bits", "weights"),
    [(0, 8, 1), (np.nan, 8, 1), (np.inf, 8, 1), (1.0, 1, 1), (1.0, 8.0, 1), (1.0, 8, 0)],
)
def test_bad_settings(bound, bits, weights):
    with pytest.raises(ValueError, match=r"the ring"):
        ring(bound, bits, weights)


@pytest.mark.parametrize("n", [1, 4, 16])
def test_the_error_of_a_mean_is_at_most_half_a_step_by_the_root_of_n_and_without_bias(n):
    """Over 20,000 numbers at the worst place, half way between two values, and as many at any place."""
    exact, count = ring(1.0, 8, 2**10), 20_000
    rng = np.random.default_rng(0)
    half = (rng.integers(-100, 100, (n, count)) + 0.5) * exact.step
    for x, least in ((half, 0.95), (rng.uniform(-1, 1, (n, count)), 0)):
        x = x.astype(np.float32)
        keys = jax.random.split(jax.random.key(n), n)
        q = jax.vmap(lambda x, key: quantize(exact, x, jnp.uint32(3), key))(x, keys)
        error = np.asarray(dequantize(exact, q.sum(0, jnp.uint32), jnp.uint32(3 * n)), np.float64) - x.mean(
            0, dtype=np.float64
        )
        promised = exact.step / (2 * np.sqrt(n))
        assert least * promised < error.std() <= 1.05 * promised
        assert abs(error.mean()) < 4 * promised / np.sqrt(count)


def test_values_of_the_ring_stay_and_zero_is_one():
    exact = ring(0.7, 12, 2**4)
    values = np.arange(-2047, 2048)
    x = (values * exact.step).astype(np.float32)
    q = np.asarray(quantize(exact, jnp.asarray(x), jnp.uint32(1), jax.random.key(0))).astype(np.int32)
    assert np.abs(q - values).max() <= 1 and np.mean(q == values) > 0.99 and q[2047] == 0
    assert not np.asarray(
        quantize(exact, jnp.zeros(1000, jnp.float32), jnp.uint32(9), jax.random.key(1))
    ).any()


def test_nobody_with_a_weight_gives_zeros():
    assert dequantize(ring(1.0, 8, 4), jnp.zeros(3, jnp.uint32), jnp.uint32(0)).tolist() == [0, 0, 0]
