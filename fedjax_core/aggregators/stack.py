"""Stacks every report in its client's place, for an algorithm whose server needs more than one value of them.

    value = (u_1, ..., u_K), zeros for clients who did not report

Server distillation, clustering of clients and scores of what each contributes need all models, not their
mean. Such an algorithm says so (`Exchange(reports="all")`), and reads weights and positions in
`Aggregate.each`.

>>> import jax.numpy as jnp
>>> from fedjax_core.aggregators.base import apply
>>> apply(stack(), jnp.array([[1.0], [4.0], [9.0]]), here=[True, False, True]).tolist()
[[1.0], [0.0], [9.0]]
"""

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.aggregators.base import Aggregator, Reports
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Update


@with_settings
def stack() -> Aggregator:
    """All reports, leaves [K, ...], in the backend's order of the cohort, with empty places."""

    def zero(shapes: Update, cohort: int) -> Reports:
        rows = jax.tree.map(lambda x: jnp.zeros((cohort, *x.shape), x.dtype), shapes)
        return Reports(rows, jnp.zeros(cohort, jnp.float32))

    def add(acc: Reports, updates: Update, weights: Array, positions: Array) -> Reports:
        return tree.put(acc, positions, Reports(updates, weights.astype(jnp.float32)))

    return Aggregator(
        "stack", zero, add, lambda acc, state, key: (acc.updates, state), keeps="reports", gives="reports"
    )
