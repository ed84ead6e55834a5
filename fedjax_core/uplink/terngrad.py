"""TernGrad: each number as -1, 0 or 1 times the largest of its leaf, without bias.

    b = 1 with probability |u| / |u|_inf, else 0        E[|u|_inf sign(u) b] = u
    error of a vector: |u|_inf |u|_1 - |u|_2^2

Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning", NeurIPS 2017,
section 3.1.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import bits, roundtrip
>>> update = jnp.array([2.0, -2.0, 0.0])
>>> roundtrip(terngrad(), update, jax.random.key(0)).tolist(), bits(terngrad(), update)
([2.0, -2.0, 0.0], 64)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key
from fedjax_core.uplink.base import Stage
from fedjax_core.uplink.packed import leafwise, pack, unpack


class Ternary(NamedTuple):
    """The message of a leaf."""

    words: Array
    largest: Array


@with_settings
def terngrad() -> Stage:
    """Sends one of three values a number, twenty of them in 4 bytes, and 4 bytes a leaf. Unbiased."""

    def encode(x: Array, key: Key) -> Ternary:
        largest = jnp.max(jnp.abs(x), initial=0)
        there = jax.random.uniform(key, x.shape, x.dtype) * largest < jnp.abs(x)
        return Ternary(pack((jnp.where(there, jnp.sign(x), 0) + 1).astype(jnp.uint32), 3), largest)

    def decode(sent: Ternary, shape: jax.ShapeDtypeStruct) -> Array:
        return (unpack(sent.words, 3, shape.size).astype(sent.largest.dtype) - 1) * sent.largest

    return leafwise("terngrad", encode, decode)
