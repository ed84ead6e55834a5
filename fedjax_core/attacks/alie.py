"""A little is enough (ALIE): liars report the honest mean, shifted by few enough standard deviations to hide
among the honest.

    lie = mean + z std        z = Phi^-1((n - f - s) / (n - f)),  s = floor(n / 2) + 1 - f

s honest reports lie further out than the lie in each coordinate, and with them the liars are a majority.
Baruch et al., "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019, algorithm
3.

>>> f"{float(deviations(20, 4)):.5f} {float(deviations(50, 10)):.5f} {float(deviations(100, 20)):.5f}"
'0.15731 0.25335 0.28584'
"""

import jax.numpy as jnp
from jax.scipy.stats import norm

from fedjax_core.attacks.base import Attack
from fedjax_core.attacks.honest import count, mean_and_std
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key


def deviations(n: Array | int, f: Array | int) -> Array:
    """The number of standard deviations by which `f` liars among `n` clients can be off."""
    n, f = jnp.asarray(n, jnp.float32), jnp.asarray(f, jnp.float32)
    s = jnp.floor(n / 2) + 1 - f
    return norm.ppf(jnp.clip((n - f - s) / jnp.maximum(n - f, 1), 1e-6, 1 - 1e-6))


@with_settings
def alie(z: float | None = None) -> Attack:
    """ALIE with `z` standard deviations; by default as many as the numbers of clients and liars allow."""

    def together(rows: Array, liars: Array, here: Array, key: Key) -> Array:
        mean, std = mean_and_std(rows, here & ~liars)
        off = deviations(count(here), count(liars)).astype(rows.dtype) if z is None else z
        return jnp.broadcast_to((mean + off * std)[None], rows.shape)

    return Attack("alie", together=together)
