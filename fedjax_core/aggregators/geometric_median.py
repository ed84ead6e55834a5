"""Geometric median: the point whose distances to all reports add up to the least, by Weiszfeld's steps.

    z <- sum_i w_i u_i / max(floor, |u_i - z|) / sum_i w_i / max(floor, |u_i - z|)

`geometric_median` iterates until it converges, with every client alike. `rfa` takes a few steps from the
weighted mean, and uses the weights. With start="zero", steps=3 and floor=0.1 it equals the package ByzFL. It
withstands liars with less than half of the weight. Pillutla et al., "Robust Aggregation for Federated
Learning", IEEE TSP 2022, algorithm 2.

>>> from fedjax_core.aggregators.base import apply
>>> reports = jnp.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [900.0, 900.0]])
>>> [round(x, 3) for x in apply(geometric_median(), reports).tolist()]
[1.0, 1.0]
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_core.aggregators.base import Aggregator, of_reports
from fedjax_core.aggregators.robust import middle
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, known

_MOST = 1000  # steps of `geometric_median`
_SMALL = 1e-30  # so that nothing is divided by zero


@with_settings
def geometric_median(tolerance: float = 1e-10) -> Aggregator:
    """The geometric median, every client alike, to `tolerance` > 0: the length of one more step relative to
    the reports' distances; no finer than 32 bits allow."""
    if known(tolerance) and not tolerance > 0:
        raise ValueError(f"geometric_median needs a tolerance > 0, got {tolerance}")

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Array:
        alike, digits = here.astype(rows.dtype), 2 * float(np.finfo(rows.dtype).eps)

        def going(state: tuple[Array, Array, Array]) -> Array:
            z, last, t = state
            scale = jnp.sum(alike * jnp.linalg.norm(rows - z[None], axis=1)) / jnp.maximum(jnp.sum(alike), 1)
            return (t < _MOST) & (jnp.linalg.norm(z - last) > jnp.maximum(tolerance, digits) * scale)

        def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            z, _, t = state
            return _step(rows, alike, z, _SMALL), z, t + 1

        start = middle(rows, here)  # near the result even where many reports are far off
        first = _step(rows, alike, start, _SMALL)
        return lax.while_loop(going, step, (first, start, jnp.int32(0)))[0]

    return of_reports("geometric_median", rule, alike=True)


@with_settings
def rfa(steps: int = 3, floor: float = 1e-6, start: Literal["mean", "zero"] = "mean") -> Aggregator:
    """The result of `steps` smoothed Weiszfeld steps, by weight; no report counts as nearer than `floor` >
    0."""
    if not steps >= 1:
        raise ValueError(f"rfa needs steps >= 1, got {steps}")
    if known(floor) and not floor > 0:
        raise ValueError(f"rfa needs a floor > 0 under distances, got {floor}")
    if start not in ("mean", "zero"):
        raise ValueError(f"rfa starts from 'mean' or 'zero', got {start!r}")

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Array:
        counted = jnp.where(here, weights, 0).astype(rows.dtype)
        first = jnp.zeros_like(rows[0])
        if start == "mean":
            first = jnp.sum(counted[:, None] * rows, axis=0) / jnp.maximum(jnp.sum(counted), _SMALL)
        return lax.fori_loop(0, steps, lambda t, z: _step(rows, counted, z, floor), first)

    return of_reports("rfa", rule)


def _step(rows: Array, weights: Array, z: Array, floor: float) -> Array:
    pull = weights / jnp.maximum(jnp.linalg.norm(rows - z[None], axis=1), floor)
    # Divides by the largest first: for reports that are all at z, the pulls would overflow a sum.
    pull = pull / jnp.maximum(jnp.max(pull), _SMALL)
    return z + jnp.sum(pull[:, None] * (rows - z[None]), axis=0) / jnp.maximum(jnp.sum(pull), _SMALL)
