"""The weighted mean of the reports, sum_i w_i u_i / sum_i w_i: an accumulator of one update's size.

>>> import jax.numpy as jnp
>>> from fedjax_core.aggregators.base import apply
>>> apply(mean(), jnp.array([[1.0], [4.0]]), weights=jnp.array([2.0, 1.0])).tolist()
[2.0]
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.aggregators.base import Aggregator, check_floating
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, Update


class Weighted(NamedTuple):
    """Sums of weight * update, and of the weights."""

    total: Update
    weight: Array


@with_settings
def mean() -> Aggregator:
    """Averages reports by their weight; zeros when nobody reported."""

    def zero(shapes: Update, cohort: int) -> Weighted:
        check_floating("mean", shapes)
        return Weighted(tree.zeros_like(shapes), jnp.float32(0))

    def add(acc: Weighted, updates: Update, weights: Array, positions: Array) -> Weighted:
        def meet(total: Array, rows: Array) -> Array:
            # not a product of matrices, which XLA would not fuse with the report's computation
            if len(rows) == 1:
                return total + weights[0].astype(rows.dtype) * rows[0]
            return total + jnp.tensordot(weights.astype(rows.dtype), rows, axes=1)

        return Weighted(jax.tree.map(meet, acc.total, updates), acc.weight + jnp.sum(weights))

    def value(acc: Weighted, state: Any, key: Key) -> tuple[Update, Any]:
        return tree.scale(
            jnp.where(acc.weight > 0, 1 / jnp.where(acc.weight > 0, acc.weight, 1), 0), acc.total
        ), state

    return Aggregator("mean", zero, add, value, keeps="sum", linear=True)
