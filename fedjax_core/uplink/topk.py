"""Top-k: sends the numbers of each leaf that are largest by size, with their places; all others count as
zero.

    error of a vector: at most (1 - k / d) |u|^2, and just that where all are of one size

Biased: wrap it in `feedback` to make what is dropped come back later.
Stich et al., "Sparsified SGD with Memory", NeurIPS 2018; Aji and Heafield, "Sparse Communication for
Distributed Gradient Descent", 2017.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import bits, roundtrip
>>> update = jnp.array([0.1, -3.0, 2.0, 0.2])
>>> roundtrip(topk(0.5), update, jax.random.key(0)).tolist(), bits(topk(0.5), update)
([0.0, -3.0, 2.0, 0.0], 72)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key
from fedjax_core.uplink.base import Stage
from fedjax_core.uplink.packed import leafwise, pack, share_of, unpack


class Largest(NamedTuple):
    """The message of a leaf."""

    values: Array  # [k]
    places: Array  # packed, log2(d) bits each


@with_settings
def topk(fraction: float) -> Stage:
    """Sends the `fraction` of each leaf's numbers that are largest by size, one at least. Biased; never grows
    the norm."""
    share_of("topk", fraction, 1)

    def encode(x: Array, key: Key) -> Largest:
        _, places = lax.top_k(jnp.abs(x), share_of("topk", fraction, x.size))
        return Largest(x[places], pack(places.astype(jnp.uint32), _room(x.size)))

    def decode(sent: Largest, shape: jax.ShapeDtypeStruct) -> Array:
        places = unpack(sent.places, _room(shape.size), len(sent.values))
        return jnp.zeros(shape.size, sent.values.dtype).at[places].set(sent.values)

    return leafwise("topk", encode, decode)


def _room(size: int) -> int:
    return int(2 ** max(1, (size - 1).bit_length()))
