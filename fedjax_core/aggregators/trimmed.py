"""Coordinate-wise trimmed mean and median: of the clients' values of each coordinate, the largest and the smallest are left out.

    value[p] = mean of the K - 2t middle ones of u_1[p], ..., u_K[p],    t = floor(fraction * K);    the median has t = ceil(K / 2) - 1

All reports count alike (a weight that a client names itself is no defence). Withstands t clients that report anything at all.
Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, definitions 1 and 2.

>>> import jax.numpy as jnp
>>> from fedjax_core.aggregators.base import apply
>>> reports = jnp.array([[1.0], [3.0], [2.0], [1000.0]])
>>> apply(trimmed_mean(0.25), reports).tolist(), apply(median(), reports[:3]).tolist()
([2.5], [2.0])
"""

import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator, of_reports
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, known


@with_settings
def trimmed_mean(fraction: float) -> Aggregator:
    """Leaves out the `fraction` largest and the `fraction` smallest of each coordinate, 0 <= fraction < 0.5, and averages the rest.

    Every client counts alike, whatever its weight: the weights by examples that `fedavg` gives are dropped, so that nobody gains by a
    large one. Only a weight of 0 matters: such a report is not there.
    """
    if known(fraction) and not 0 <= fraction < 0.5:
        raise ValueError(f"trimmed_mean needs 0 <= fraction < 0.5 (it trims that share at both ends), got {fraction}")

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Array:
        # The small addition keeps floor(0.1 * 10) at 1 when float32 holds the product as 0.99999994.
        return _middle(rows, here, jnp.floor(fraction * jnp.sum(here, dtype=jnp.float32) + 1e-4))

    return of_reports("trimmed_mean", rule)


@with_settings
def median() -> Aggregator:
    """The median of each coordinate, the mean of the two in the middle of an even number; every client counts alike."""
    return of_reports("median", lambda rows, here, weights, key: _middle(rows, here, jnp.ceil(jnp.sum(here, dtype=jnp.float32) / 2) - 1))


def _middle(rows: Array, here: Array, trimmed: Array) -> Array:
    """The mean of each column without its `trimmed` largest and smallest, of those who are here."""
    clients = jnp.sum(here, dtype=jnp.float32)
    ordered = jnp.sort(jnp.where(here[:, None], rows, jnp.inf), axis=0)  # those who did not report come last
    rank = jnp.arange(len(rows), dtype=jnp.float32)[:, None]
    kept = (rank >= trimmed) & (rank < clients - trimmed)
    return jnp.sum(jnp.where(kept, ordered, 0), axis=0) / jnp.maximum(clients - 2 * trimmed, 1).astype(rows.dtype)
