"""Stochastic k-level quantisation: each number as one of k levels between the smallest and the largest of its
leaf, without bias.

    w = (max - min) / (k - 1)      q = floor((u - min) / w + r),  r ~ U[0, 1)      E[min + w q] = u
    error of a vector: w^2 sum_p p (1 - p), p the part of (u - min) / w after the point;  at most d |u|^2 / (2 (k - 1)^2)

Rotated before, the range is small and the error at most (2 ln d + 2) / (k - 1)^2: `rotated(k_level(2))`.
Suresh et al., "Distributed Mean Estimation with Limited Communication", ICML 2017, sections 2 and 3.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import bits, roundtrip
>>> update = jnp.array([0.0, 1.0, 3.0, 3.0])
>>> roundtrip(k_level(4), update, jax.random.key(0)).tolist(), bits(k_level(4), update)
([0.0, 1.0, 3.0, 3.0], 72)
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
    low: Array
    high: Array


@with_settings
def k_level(levels: int) -> Stage:
    """Sends each number as one of `levels` levels, 2 to 65536: log2(levels) bits, packed, and 8 bytes a leaf.
    Unbiased."""
    if not 2 <= levels <= 65536:
        raise ValueError(f"k_level needs 2 <= levels <= 65536, got {levels}")

    def encode(x: Array, key: Key) -> Levels:
        low, high = jnp.min(x, initial=jnp.inf), jnp.max(x, initial=-jnp.inf)
        width = (high - low) / (levels - 1)
        steps = jnp.floor(
            (x - low) / jnp.where(width > 0, width, 1) + jax.random.uniform(key, x.shape, x.dtype)
        )
        return Levels(pack(jnp.clip(steps, 0, levels - 1).astype(jnp.uint32), levels), low, high)

    def decode(sent: Levels, shape: jax.ShapeDtypeStruct) -> Array:
        width = (sent.high - sent.low) / (levels - 1)
        return sent.low + width * unpack(sent.words, levels, shape.size).astype(sent.low.dtype)

    return leafwise("k_level", encode, decode)
