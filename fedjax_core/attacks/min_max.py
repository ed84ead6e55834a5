"""Min-max and min-sum: liars go as far from the honest mean as they can without standing out by their
distances.

    lie = mean + gamma d,  the largest gamma with
    min_max    max_i |lie - u_i|        <= max_ij |u_i - u_j|          over the honest
    min_sum    sum_i |lie - u_i|^2      <= max_i sum_j |u_i - u_j|^2

    d = -mean / |mean| ("unit"), -std ("std") or -sign(mean) ("sign")

Both conditions hold for gamma up to some number and for none beyond, which is bisected.
Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, section IV.

>>> rows, liars = jnp.array([[1.0], [3.0], [7.0]]), jnp.array([False, False, True])
>>> min_max().together(rows, liars, jnp.ones(3, bool), None)[2].round(3).tolist()
[1.0]
"""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import lax

from fedjax_core.attacks.base import Attack
from fedjax_core.attacks.honest import mean_and_std
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key

Direction = Literal["unit", "std", "sign"]


@with_settings
def min_max(direction: Direction = "unit") -> Attack:
    """Min-max: the lie is no further from any honest report than two honest reports are from each other."""
    return _furthest("min_max", direction, jnp.max)


@with_settings
def min_sum(direction: Direction = "unit") -> Attack:
    """Min-sum: the lie's squared distances add up to no more than those of some honest client."""
    return _furthest("min_sum", direction, jnp.sum)


def _furthest(name: str, direction: Direction, add_up: Callable[..., Array]) -> Attack:
    if direction not in ("unit", "std", "sign"):
        raise ValueError(f"{name} goes along 'unit', 'std' or 'sign', got {direction!r}")

    def together(rows: Array, liars: Array, here: Array, key: Key) -> Array:
        honest = here & ~liars
        mean, std = mean_and_std(rows, honest)
        ways = {
            "unit": lambda: -mean / jnp.maximum(jnp.linalg.norm(mean), 1e-12),
            "std": lambda: -std,
            "sign": lambda: -jnp.sign(mean),
        }
        way = ways[direction]()
        apart = lax.map(lambda row: jnp.sum(jnp.square(rows - row[None]), axis=1), rows)
        pairs = honest[:, None] & honest[None]
        most = jnp.max(add_up(jnp.where(pairs, apart, 0), axis=1))

        def hidden(gamma: Array) -> Array:
            far = jnp.sum(jnp.square((mean + gamma * way)[None] - rows), axis=1)
            return add_up(jnp.where(honest, far, 0)) <= most

        first = jnp.ones((), rows.dtype)
        high = lax.while_loop(lambda g: hidden(g) & (g < 1e12), lambda g: 2 * g, first)

        def halve(i: int, between: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = between
            middle = (low + high) / 2
            fits = hidden(middle)
            return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

        gamma = lax.fori_loop(0, 60, halve, (jnp.zeros_like(first), high))[0]
        return jnp.broadcast_to((mean + gamma * way)[None], rows.shape)

    return Attack(name, together=together)
