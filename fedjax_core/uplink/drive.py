"""DRIVE: one bit a number: the signs of the rotated update, and one scale a row.

    sent: sign(R u), scale        value = R^-1 (scale sign(R u))
    scale = |u|_2^2 / |R u|_1   unbiased, error (pi / 2 - 1) |u|^2 = 0.571 |u|^2, which the mean over n clients divides by n
            |R u|_1 / B         least error, (1 - 2 / pi) |u|^2 = 0.363 |u|^2, biased

Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", NeurIPS 2021.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import roundtrip
>>> [round(x, 4) for x in roundtrip(drive(rotate=False), jnp.array([1.0, -2.0, 3.0]), jax.random.key(0)).tolist()]
[2.3333, -2.3333, 2.3333]
"""

from typing import NamedTuple

import jax.numpy as jnp

from fedjax_core.settings import with_settings
from fedjax_core.types import Array
from fedjax_core.uplink.base import Stage
from fedjax_core.uplink.packed import pack, unpack
from fedjax_core.uplink.rotation import rowwise


class Signs(NamedTuple):
    """The message, besides the rotation's seed."""

    words: Array
    scale: Array  # [n], one a row


@with_settings
def drive(unbiased: bool = True, rotate: bool = True) -> Stage:
    """Sends one bit a number, 4 bytes for each 8192 of them, and 4 for the seed of the rotation, which each
    client draws itself."""

    def encode(rows: Array) -> Signs:
        sizes, squares = jnp.sum(jnp.abs(rows), axis=1), jnp.sum(jnp.square(rows), axis=1)
        scale = squares / jnp.where(sizes > 0, sizes, 1) if unbiased else sizes / rows.shape[1]
        return Signs(pack((rows >= 0).astype(jnp.uint32).reshape(-1), 2), scale)

    def decode(sent: Signs, form: tuple[int, int]) -> Array:
        signs = 2 * unpack(sent.words, 2, form[0] * form[1]).astype(sent.scale.dtype) - 1
        return signs.reshape(form) * sent.scale[:, None]

    return rowwise("drive", encode, decode, rotate)
