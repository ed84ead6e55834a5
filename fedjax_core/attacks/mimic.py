"""Mimic: all liars copy one honest client, which then counts once more for each of them.

No rule can tell them from clients with the same data; under heterogeneous data the model leans to that
client's. Karimireddy et al., "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022,
section 3.

>>> rows, liars = jnp.array([[2.0], [4.0], [9.0]]), jnp.array([True, False, False])
>>> mimic().together(rows, liars, jnp.ones(3, bool), None)[0].tolist()
[4.0]
"""

import jax.numpy as jnp

from fedjax_core.attacks.base import Attack
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key


@with_settings
def mimic() -> Attack:
    """Reports the same as the first honest client of the cohort."""

    def together(rows: Array, liars: Array, here: Array, key: Key) -> Array:
        return jnp.broadcast_to(rows[jnp.argmax(here & ~liars)][None], rows.shape)

    return Attack("mimic", together=together)
