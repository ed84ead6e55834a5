"""Coordinate-wise trimmed mean: of the clients' values of each coordinate, the largest and the smallest are left out.

    value[p] = mean of the K - 2t middle ones of u_1[p], ..., u_K[p],    t = floor(fraction * K)

All reports count alike (a weight that a client names itself is no defence). Withstands t clients that report anything at all.
Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, definition 2.

>>> import jax.numpy as jnp
>>> robust = trimmed_mean(0.25)
>>> reports = jnp.array([[1.0], [3.0], [2.0], [1000.0]])
>>> robust.value(robust.add(robust.zero(jnp.zeros(1), 4), reports, jnp.ones(4), jnp.arange(4))).tolist()
[2.5]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.aggregators.base import Aggregator, check_floating
from fedjax_core.types import Array, Update, known


class Reports(NamedTuple):
    """Every report in its client's place in the cohort."""

    updates: Update  # each leaf [K, ...]; zeros where nobody reported
    here: Array  # [K] float32: 1 where somebody did


def trimmed_mean(fraction: float) -> Aggregator:
    """Leaves out the `fraction` largest and the `fraction` smallest of each coordinate, 0 <= fraction < 0.5, and averages the rest.

    Every client counts alike, whatever its weight: the weights by examples that `fedavg` gives are dropped, so that nobody gains by a
    large one. Only a weight of 0 matters: such a report is not there.
    """
    if known(fraction) and not 0 <= fraction < 0.5:
        raise ValueError(f"trimmed_mean needs 0 <= fraction < 0.5 (it trims that share at both ends), got {fraction}")

    def zero(shapes: Update, cohort: int) -> Reports:
        check_floating("trimmed_mean", shapes)
        return Reports(jax.tree.map(lambda x: jnp.zeros((cohort, *x.shape), x.dtype), shapes), jnp.zeros(cohort))

    def add(acc: Reports, updates: Update, weights: Array, positions: Array) -> Reports:
        return tree.put(acc, positions, Reports(updates, (weights > 0).astype(jnp.float32)))

    def value(acc: Reports) -> Update:
        clients = jnp.sum(acc.here)
        # The small addition keeps floor(0.1 * 10) at 1 when float32 holds the product as 0.99999994.
        trimmed = jnp.floor(fraction * clients + 1e-4)

        def middle(rows: Array) -> Array:
            here = acc.here.reshape((-1,) + (1,) * (rows.ndim - 1)) > 0
            ordered = jnp.sort(jnp.where(here, rows, jnp.inf), axis=0)  # those who did not report come last
            rank = jnp.arange(rows.shape[0], dtype=jnp.float32).reshape(here.shape)
            kept = (rank >= trimmed) & (rank < clients - trimmed)
            total = jnp.sum(jnp.where(kept, ordered, 0), axis=0)
            return total / jnp.maximum(clients - 2 * trimmed, 1).astype(rows.dtype)

        return jax.tree.map(middle, acc.updates)

    return Aggregator("trimmed_mean", zero, add, value, additive=False)
