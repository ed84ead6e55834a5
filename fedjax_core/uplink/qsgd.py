"""QSGD: each number as its sign and a multiple of 1/s of the leaf's norm, rounded up or down at random,
without bias.

    q = floor(s |u| / |u|_2 + r),  r ~ U[0, 1)        E[|u|_2 sign(u) q / s] = u
    error of a vector: |u|_2^2 / s^2 sum_p p (1 - p), p the part of s |u| / |u|_2 after the point;  at most min(d / s^2, sqrt(d) / s) |u|^2

Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017,
section 3.1. Instead of its Elias code, whose length depends on the numbers, each takes log2(2 s + 1) bits.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import bits, roundtrip
>>> update = jnp.array([0.0, -5.0, 0.0])
>>> roundtrip(qsgd(4), update, jax.random.key(0)).tolist(), bits(qsgd(4), update)
([0.0, -5.0, 0.0], 64)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key
from fedjax_core.uplink.base import Stage
from fedjax_core.uplink.packed import leafwise, pack, unpack


class Levels(NamedTuple):
    """The message of a leaf."""

    words: Array
    norm: Array


@with_settings
def qsgd(levels: int) -> Stage:
    """Sends `levels` levels, 1 to 32767, between 0 and the leaf's norm, on both sides of 0, and 4 bytes a
    leaf. Unbiased."""
    if not 1 <= levels <= 32767:
        raise ValueError(f"qsgd needs 1 <= levels <= 32767, got {levels}")

    def encode(x: Array, key: Key) -> Levels:
        norm = jnp.linalg.norm(x)
        steps = jnp.floor(
            jnp.abs(x) * (levels / jnp.where(norm > 0, norm, 1)) + jax.random.uniform(key, x.shape, x.dtype)
        )
        signed = jnp.sign(x) * jnp.minimum(steps, levels) + levels
        return Levels(pack(signed.astype(jnp.uint32), 2 * levels + 1), norm)

    def decode(sent: Levels, shape: jax.ShapeDtypeStruct) -> Array:
        steps = unpack(sent.words, 2 * levels + 1, shape.size).astype(sent.norm.dtype) - levels
        return steps * (sent.norm / levels)

    return leafwise("qsgd", encode, decode)
