"""Coordinate-wise trimmed mean and median: they leave out the largest and the smallest of the clients' values
of each coordinate.

    value[p] = mean of the K - 2t middle ones of u_1[p], ..., u_K[p],    t = f or floor(fraction * K)

With `weighted`, t / K of the total weight is left out at each end, if need be a part of a report, and half of
the weight is on each side of the median.

Without it all reports count alike, as a weight that a client names itself is no defence. The rules withstand
t clients that report anything. Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", ICML 2018, definitions 1 and 2.

>>> import jax.numpy as jnp
>>> from fedjax_core.aggregators.base import apply
>>> reports = jnp.array([[1.0], [3.0], [2.0], [1000.0]])
>>> apply(trimmed_mean(f=1), reports).tolist(), apply(median(), reports[:3]).tolist()
([2.5], [2.0])
>>> apply(median(weighted=True), reports[:3], weights=[5.0, 1.0, 1.0]).tolist()
[1.0]
"""

from typing import Any

import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator, of_reports
from fedjax_core.aggregators.robust import average, check_liars, counts, middle
from fedjax_core.settings import Settings
from fedjax_core.types import Array, Key, known


def trimmed_mean(
    fraction: float | None = None, *, f: int | None = None, weighted: bool = False
) -> Aggregator:
    """Leaves out the `f` largest and `f` smallest of each coordinate, or that `fraction` of them below a
    half, and averages the rest.

    Every client counts alike, so that nobody gains by a large weight; `compose` refuses an algorithm with
    weights, such as `fedavg` by default, and says the ways out. A report of weight 0 is absent. `weighted`
    uses the weights, with `f` as the same share of them."""
    if (fraction is None) == (f is None):
        raise ValueError(
            f"trimmed_mean needs fraction= or f=, one of the two, got fraction={fraction!r} and f={f!r}"
        )
    if fraction is not None and known(fraction) and not 0 <= fraction < 0.5:
        raise ValueError(
            f"trimmed_mean needs 0 <= fraction < 0.5 (it trims that share at both ends), got {fraction}"
        )
    if f is not None:
        check_liars("trimmed_mean", f)

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Array:
        # The small addition keeps floor(0.1 * 10) at 1 when float32 holds the product as 0.99999994.
        share = (
            0
            if fraction is None
            else jnp.floor(fraction * jnp.sum(weights > 0, dtype=jnp.float32) + 1e-4).astype(jnp.int32)
        )
        n, trimmed = counts(here, weights, share if f is None else f)
        ordered, part = _ordered(rows, here, weights if weighted else None)
        if not weighted:
            rank = jnp.arange(len(rows), dtype=jnp.int32)[:, None]
            return average(ordered, (rank >= trimmed) & (rank < n - trimmed))
        cut = trimmed.astype(rows.dtype) / jnp.maximum(n, 1).astype(rows.dtype)
        until = jnp.cumsum(part, axis=0)
        inside = jnp.clip(jnp.minimum(until, 1 - cut) - jnp.maximum(until - part, cut), 0, None)
        return jnp.sum(jnp.where(part > 0, ordered, 0) * inside, axis=0) / jnp.sum(inside, axis=0)

    made = of_reports("trimmed_mean", rule, alike=not weighted, at_least=1 if f is None else 2 * f + 1)
    return made._replace(settings=_given(fraction=fraction, f=f, weighted=weighted or None))


def median(*, weighted: bool = False) -> Aggregator:
    """The median of each coordinate, the mean of the two in the middle of an even number; every client counts
    alike, or by its weight."""

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Array:
        if not weighted:
            return middle(rows, here)
        ordered, share = _ordered(rows, here, weights)
        until = jnp.cumsum(share, axis=0)
        close = 1e-6  # a sum of shares that should be a half is one to float32's digits
        low, high = jnp.argmax(until >= 0.5 - close, axis=0), jnp.argmax(until > 0.5 + close, axis=0)
        one, other = (jnp.take_along_axis(ordered, index[None], axis=0)[0] for index in (low, high))
        return one + (other - one) / 2

    return of_reports("median", rule, alike=not weighted)._replace(settings=_given(weighted=weighted or None))


def _ordered(rows: Array, here: Array, weights: Array | None) -> tuple[Array, Array]:
    """(each column sorted, absent clients last as infinity; each entry's share of the weight)."""
    values = jnp.where(here[:, None], rows, jnp.inf)
    if weights is None:
        return jnp.sort(values, axis=0), rows
    counted = jnp.where(here, weights, 0).astype(rows.dtype)
    order = jnp.argsort(values, axis=0, stable=True)
    share = counted / jnp.sum(counted)
    return jnp.take_along_axis(values, order, axis=0), share[order]


def _given(**settings: Any) -> Settings:
    return Settings(**{name: value for name, value in settings.items() if value is not None})
