"""Rand-k: sends some numbers of each leaf, drawn at random and scaled up to be unbiased.

    value = d / k u in k random places, 0 elsewhere        error of a vector: exactly d / k - 1 times |u|^2, on average

The places are drawn from a seed that is sent instead of them. Konecny et al., "Federated Learning: Strategies
for Improving Communication Efficiency", 2016 (random masks). `unbiased=False` leaves the numbers as they are,
for `feedback` and `ef21`.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import bits, roundtrip
>>> update = jnp.ones(4)
>>> sorted(roundtrip(randk(0.5), update, jax.random.key(0)).tolist()), bits(randk(0.5), update)
([0.0, 0.0, 2.0, 2.0], 96)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key
from fedjax_core.uplink.base import Stage
from fedjax_core.uplink.packed import leafwise, seed_of, share_of


class Drawn(NamedTuple):
    """The message of a leaf."""

    values: Array  # [k]
    seed: Array


@with_settings
def randk(fraction: float, unbiased: bool = True, shared: bool = False) -> Stage:
    """Sends this `fraction` of each leaf's numbers, at least one, and 4 bytes.

    `shared`: all clients of a round send the same places, so that secure aggregation can add the numbers up.
    Without it each has its own, and the mean over many clients is more exact.
    """
    share_of("randk", fraction, 1)

    def places(seed: Array, size: int) -> Array:
        return jax.random.permutation(jax.random.key(seed), size)[: share_of("randk", fraction, size)]

    def encode(x: Array, key: Key) -> Drawn:
        seed = seed_of(key)
        values = x[places(seed, x.size)]
        return Drawn(values * (x.size / max(1, len(values))) if unbiased else values, seed)

    def decode(sent: Drawn, shape: jax.ShapeDtypeStruct) -> Array:
        return jnp.zeros(shape.size, sent.values.dtype).at[places(sent.seed, shape.size)].set(sent.values)

    return leafwise("randk", encode, decode, shared)
