"""Inner product manipulation: liars report the honest mean the other way round, so that the server's step
goes uphill.

    lie = -epsilon mean of the honest

A small epsilon (0.5) passes rules that look for what is far off, Krum among them; a large one beats the mean.
Xie et al., "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019.

>>> attack = ipm(0.5)
>>> rows, liars = jnp.array([[2.0], [4.0], [0.0]]), jnp.array([False, False, True])
>>> attack.together(rows, liars, jnp.ones(3, bool), None)[2].tolist()
[-1.5]
"""

import jax.numpy as jnp

from fedjax_core.attacks.base import Attack
from fedjax_core.attacks.honest import mean_and_std
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key


@with_settings
def ipm(epsilon: float = 0.5) -> Attack:
    """Reports `-epsilon` times the mean of the honest reports."""

    def together(rows: Array, liars: Array, here: Array, key: Key) -> Array:
        return jnp.broadcast_to((-epsilon * mean_and_std(rows, here & ~liars)[0])[None], rows.shape)

    return Attack("ipm", together=together)
