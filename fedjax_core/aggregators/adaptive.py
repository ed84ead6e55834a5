"""Zeroing or clipping of reports at a bound that follows a quantile of their sizes from round to round,
before another rule.

    C <- C exp(-rate (share of reports of size <= C  -  quantile))        the bound is factor C + offset

`zeroing` leaves out larger reports (size: the largest coordinate), `adaptive_clip` shortens them (size: the
l2 norm). The server keeps C. The defaults are those of TensorFlow Federated's robust aggregator. Andrew et
al., "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, section 2.2, without its noise.

>>> from fedjax_core.aggregators.base import apply
>>> from fedjax_core.aggregators.mean import mean
>>> reports = jnp.array([[1.0], [3.0], [900.0]])
>>> apply(zeroing(then=mean()), reports).tolist(), apply(adaptive_clip(then=mean()), reports).tolist()
([2.0], [1.0])
"""

import math

import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.robust import before, shortened
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, known


@with_settings
def zeroing(
    then: Aggregator,
    quantile: float = 0.98,
    start: float = 10.0,
    rate: float = math.log(10),
    factor: float = 2.0,
    offset: float = 1.0,
) -> Aggregator:
    """`then` on the reports without a coordinate beyond the bound; the others do not count at all."""
    _check("zeroing", quantile, start)

    def step(rows: Array, here: Array, weights: Array, key: Key, bound: Array) -> tuple[Array, Array, Array]:
        sizes = jnp.max(jnp.abs(rows), axis=1, initial=0).astype(jnp.float32)
        fine = here & (sizes <= factor * bound + offset)
        return (
            jnp.where(fine[:, None], rows, 0),
            jnp.where(fine, weights, 0),
            _followed(bound, sizes, here, quantile, rate),
        )

    return before("zeroing", then, step, init=lambda shapes: jnp.float32(start))._replace(
        name=f"zeroing({then.name})"
    )


@with_settings
def adaptive_clip(
    then: Aggregator, quantile: float = 0.8, start: float = 1.0, rate: float = 0.2
) -> Aggregator:
    """`then` on reports of norm at most the bound."""
    _check("adaptive_clip", quantile, start)

    def step(rows: Array, here: Array, weights: Array, key: Key, bound: Array) -> tuple[Array, Array, Array]:
        sizes = jnp.linalg.norm(rows, axis=1).astype(jnp.float32)
        moved = _followed(bound, sizes, here, quantile, rate)
        return shortened(rows, bound.astype(rows.dtype)), jnp.where(here, weights, 0), moved

    return before("adaptive_clip", then, step, init=lambda shapes: jnp.float32(start))._replace(
        name=f"adaptive_clip({then.name})"
    )


def _followed(bound: Array, sizes: Array, here: Array, quantile: float, rate: float) -> Array:
    """The bound after these sizes."""
    below = jnp.sum(here & (sizes <= bound), dtype=jnp.float32) / jnp.maximum(
        jnp.sum(here, dtype=jnp.float32), 1
    )
    return (bound * jnp.exp(-rate * (below - quantile))).astype(jnp.float32)


def _check(name: str, quantile: float, start: float) -> None:
    if known(quantile) and not 0 < quantile < 1:
        raise ValueError(f"{name} follows a quantile between 0 and 1, got {quantile}")
    if known(start) and not start > 0:
        raise ValueError(f"{name} needs a start > 0 for its bound, got {start}")
