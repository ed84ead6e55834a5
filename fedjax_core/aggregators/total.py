"""The sum of the reports, whatever their weights: sum_i u_i.

Secure aggregation and differential privacy need it: a weight that a client chooses would break the bound on
its share, and whole numbers add up in their ring, 2^32 + 1 = 1 in 32 bits, so that masks cancel to the last
bit. Its user decides what to divide by.

>>> import jax.numpy as jnp
>>> from fedjax_core.aggregators.base import apply
>>> apply(total(), jnp.array([[1.0], [4.0]]), weights=jnp.array([2.0, 1.0])).tolist()
[5.0]
"""

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.aggregators.base import Aggregator
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Update


@with_settings
def total() -> Aggregator:
    """Adds reports, each once: a client of weight 0 not at all, and one that was drawn twice only once."""

    def add(acc: Update, updates: Update, weights: Array, positions: Array) -> Update:
        rows = tree.where(weights > 0, updates, tree.zeros_like(updates))
        return jax.tree.map(lambda sum, rows: sum + jnp.sum(rows, axis=0, dtype=rows.dtype), acc, rows)

    return Aggregator(
        "total",
        zero=lambda shapes, cohort: tree.zeros_like(shapes),
        add=add,
        value=lambda acc, state, key: (acc, state),
        keeps="sum",
        linear=True,
    )
