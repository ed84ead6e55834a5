"""Scaled sign: one bit a number, and the mean size of a leaf's numbers.

    C(u) = |u|_1 / d sign(u)        |C(u) - u|^2 = (1 - |u|_1^2 / (d |u|_2^2)) |u|_2^2

It is biased, and may not converge by itself; inside `feedback` what is lost comes back later. Karimireddy et
al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019, section 4.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import bits, roundtrip
>>> update = jnp.array([1.0, -2.0, 3.0])
>>> roundtrip(sign(), update, jax.random.key(0)).tolist(), bits(sign(), update)
([2.0, -2.0, 2.0], 40)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key
from fedjax_core.uplink.base import Stage
from fedjax_core.uplink.packed import leafwise, pack, unpack


class Signs(NamedTuple):
    """The message of a leaf."""

    words: Array
    size: Array


@with_settings
def sign() -> Stage:
    """Sends one bit a number, and 4 bytes a leaf. Biased; never grows the norm."""

    def encode(x: Array, key: Key) -> Signs:
        return Signs(pack((x >= 0).astype(jnp.uint32), 2), jnp.sum(jnp.abs(x)) / max(1, x.size))

    def decode(sent: Signs, shape: jax.ShapeDtypeStruct) -> Array:
        return (2 * unpack(sent.words, 2, shape.size).astype(sent.size.dtype) - 1) * sent.size

    return leafwise("sign", encode, decode)
