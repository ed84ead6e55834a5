"""Statistics of the honest reports, for liars who know every report: number, mean and spread.

>>> mean, std = mean_and_std(jnp.array([[1.0], [3.0], [9.0]]), jnp.array([True, True, False]))
>>> mean.tolist(), std.tolist()
([2.0], [1.0])
"""

import jax.numpy as jnp

from fedjax_core.types import Array


def count(chosen: Array) -> Array:
    """The number of chosen clients, float32."""
    return jnp.sum(chosen, dtype=jnp.float32)


def mean_and_std(rows: Array, honest: Array) -> tuple[Array, Array]:
    """([P], [P]): mean and standard deviation, by n, of each coordinate of the honest reports."""
    number = jnp.maximum(jnp.sum(honest, dtype=rows.dtype), 1)
    mean = jnp.sum(jnp.where(honest[:, None], rows, 0), axis=0) / number
    squares = jnp.where(honest[:, None], jnp.square(rows - mean[None]), 0)
    return mean, jnp.sqrt(jnp.sum(squares, axis=0) / number)
