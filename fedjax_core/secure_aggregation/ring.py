"""The ring of whole numbers modulo 2^32 for reports: sums are exact, and a mask hides everything.

    step = 2 C / (2^b - 2)                                  2^b - 1 values from -C to C; 0 is one of them
    q_i  = floor(x_i / step + u),  u uniform in [0, 1)      stochastic rounding: E q_i = x_i / step
    sent = w_i q_i  and  w_i,  modulo 2^32                  whole weights
    mean = step * (sum w_i q_i) / (sum w_i)

A sum of weights up to W does not wrap if `b + ceil(log2 W) <= 32`; another ring is refused when it is made.
The mean of n reports of equal weight has a standard deviation of at most `step / (2 sqrt(n))` about the mean
of the exact reports.

>>> import jax, jax.numpy as jnp
>>> exact = ring(bound=1.0, bits=16, weights=2**16)
>>> q = quantize(exact, jnp.array([-1.0, 0.0, 1.0], jnp.float32), jnp.uint32(3), jax.random.key(0))
>>> q.astype(jnp.int32).tolist(), dequantize(exact, q, jnp.uint32(3)).tolist()
([-98301, 0, 98301], [-1.0, 0.0, 1.0])
>>> ring(bound=1.0, bits=17, weights=2**16)
Traceback (most recent call last):
ValueError: numbers of 17 bits with weights of 65536 in sum need 33 bits, and the ring has 32: take bits=16, or smaller weights
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core.types import Array, Key, known


@dataclass(frozen=True, eq=False)
class Ring:
    """The settings by which numbers become whole numbers. Make it with `ring`, which checks that no sum
    wraps. Like `Settings`, it equals only itself."""

    bound: float  # of the absolute value of a number
    bits: int  # of a number
    weights: int  # the largest sum of weights

    @property
    def step(self) -> float:
        """The distance between two neighbouring values."""
        return self.bound / (2 ** (self.bits - 1) - 1)


class Weighted(NamedTuple):
    """An update in whole numbers times its weight, and the weight."""

    update: Any
    weight: Array


class Masked(NamedTuple):
    """A report as it crosses the wire."""

    ring: Weighted  # uint32, masked
    fits: Array  # float32: 0 where the report fits the ring, else NaN, so that it is refused


def ring(bound: float, bits: int, weights: int) -> Ring:
    """The ring for numbers from -`bound` to `bound` in `bits` bits, whose weights add up to at most
    `weights`.

    Raises ValueError where a sum could wrap: `bits + ceil(log2(weights))` is above 32.
    """
    if known(bound) and not 0 < bound < float("inf"):
        raise ValueError(f"the ring needs a bound > 0 of the numbers in a report, got {bound}")
    for name, value, least in (("bits", bits, 2), ("weights", weights, 1)):
        if type(value) is not int or value < least:
            raise ValueError(f"the ring's {name} must be a whole number from {least} on, got {value!r}")
    needed = bits + (weights - 1).bit_length()  # (W - 1).bit_length() is ceil(log2 W)
    if needed > 32:
        way = (
            f"take bits={32 - needed + bits}, or smaller weights"
            if 32 - needed + bits >= 2
            else "take smaller weights"
        )
        raise ValueError(
            f"numbers of {bits} bits with weights of {weights} in sum need {needed} bits, and the ring has 32: {way}"
        )
    return Ring(bound, bits, weights)


def quantize(ring: Ring, x: Array, weight: Array, key: Key) -> Array:
    """Numbers x in [-bound, bound], rounded at random by `key` and times a whole weight: uint32, of the shape
    of x."""
    steps = x.astype(jnp.float32) / ring.step
    whole = jnp.floor(steps)
    # an exact difference, also of large numbers
    up = jax.random.uniform(key, x.shape, jnp.float32) < steps - whole
    return (whole.astype(jnp.int32) + up.astype(jnp.int32)).astype(jnp.uint32) * weight.astype(jnp.uint32)


def dequantize(ring: Ring, total: Array, weight: Array) -> Array:
    """The mean by weight, float32, of a sum in the ring and of the sum of weights; 0 where nobody has a
    weight."""
    signed = jax.lax.bitcast_convert_type(total, jnp.int32).astype(jnp.float32)
    per = jnp.where(weight > 0, 1 / jnp.maximum(weight, 1).astype(jnp.float32), 0)
    return signed * ring.step * per
