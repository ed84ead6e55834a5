"""Norm bounding before another rule: no report is longer than a bound, which is fixed or set by the reports
themselves.

    norm_bound    u_i <- u_i min(1, bound / |u_i|)
    arc           the floor(2 f (n - f) / n) longest are brought to the length of the next one

Sun et al., "Can You Really Backdoor Federated Learning?", 2019. Allouah et al., "Adaptive Gradient Clipping
for Robust Federated Learning", ICLR 2025 (ARC), which keeps the guarantee of the rule that comes after, where
a fixed bound may lose it.

>>> from fedjax_core.aggregators.base import apply
>>> from fedjax_core.aggregators.mean import mean
>>> reports = jnp.array([[1.0], [2.0], [3.0], [90.0]])
>>> apply(norm_bound(2.0, then=mean()), reports).tolist(), apply(arc(f=1, then=mean()), reports).tolist()
([1.75], [2.25])
"""

from typing import Any

import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.robust import before, check_liars, counts, shortened
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, known


@with_settings
def norm_bound(bound: float, then: Aggregator) -> Aggregator:
    """`then` on reports clipped to norm `bound` > 0, in the unit of an update; weights are left to `then`."""
    if known(bound) and not bound > 0:
        raise ValueError(f"norm_bound needs a bound > 0 on the norm, got {bound}")

    def step(rows: Array, here: Array, weights: Array, key: Key, memory: Any) -> tuple[Array, Array, Any]:
        return shortened(rows, jnp.asarray(bound, rows.dtype)), jnp.where(here, weights, 0), memory

    return before("norm_bound", then, step)._replace(name=f"norm_bound({then.name})")


@with_settings
def arc(f: int, then: Aggregator) -> Aggregator:
    """`then` on the reports with the longest shortened, as many as `f` liars call for."""
    check_liars("arc", f)

    def step(rows: Array, here: Array, weights: Array, key: Key, memory: Any) -> tuple[Array, Array, Any]:
        n, suspected = counts(here, weights, f)
        longest = 2 * suspected * (n - suspected) // jnp.maximum(n, 1)
        # absent clients come last
        norms = jnp.sort(jnp.where(here, jnp.linalg.norm(rows, axis=1), jnp.inf))
        return (
            shortened(rows, norms[jnp.clip(n - longest - 1, 0, len(rows) - 1)]),
            jnp.where(here, weights, 0),
            memory,
        )

    return before("arc", then, step, at_least=2 * f + 1)._replace(name=f"arc({then.name})")
