"""Nearest-neighbour mixing: each report is replaced by the mean of the n - f nearest to it, itself among
them; then another rule.

    y_i = mean of the n - f reports nearest to u_i        value = rule(y_1, ..., y_n)

It brings honest reports closer together, so that rules are as good under heterogeneous data as theory allows.
Needs n > 2f. Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity",
AISTATS 2023.

>>> from fedjax_core.aggregators.base import apply
>>> from fedjax_core.aggregators.trimmed import trimmed_mean
>>> apply(nnm(f=1, then=trimmed_mean(f=1)), jnp.array([[1.0], [2.0], [3.0], [90.0]])).tolist()
[2.0]
"""

from typing import Any

import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.robust import before, check_liars, counts, distances, smallest
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key


@with_settings
def nnm(f: int, then: Aggregator) -> Aggregator:
    """`then` on mixed reports, where `f` clients may lie."""
    check_liars("nnm", f)

    def step(rows: Array, here: Array, weights: Array, key: Key, memory: Any) -> tuple[Array, Array, Any]:
        n, suspected = counts(here, weights, f)
        apart = jnp.where(jnp.eye(len(rows), dtype=bool), 0, distances(rows, here))
        apart = jnp.where(here[None], apart, jnp.inf)
        near = smallest(apart.T, n - suspected).T & here[None]
        mixed = near.astype(rows.dtype) @ rows / jnp.maximum(n - suspected, 1).astype(rows.dtype)
        return jnp.where(here[:, None], mixed, 0), jnp.where(here, weights, 0), memory

    return before("nnm", then, step, at_least=2 * f + 1)._replace(name=f"nnm({then.name})")
