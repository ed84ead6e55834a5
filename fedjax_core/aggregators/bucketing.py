"""Bucketing: groups reports at random by `size`, and applies another rule to the groups' means.

    value = rule(mean of bucket 1, ..., mean of bucket ceil(n / size))

A liar spoils one bucket, and honest buckets differ less than honest clients, which helps rules under
heterogeneous data. The grouping depends on the clients' order in the cohort. The rule's `f` counts buckets;
buckets count alike, and the last may be smaller. Karimireddy et al., "Byzantine-Robust Learning on
Heterogeneous Datasets via Bucketing", ICLR 2022, algorithm 1.

>>> from fedjax_core.aggregators.base import apply
>>> from fedjax_core.aggregators.mean import mean
>>> apply(bucketing(size=2, then=mean()), jnp.array([[1.0], [2.0], [3.0], [6.0]])).tolist()
[3.0]
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.robust import before
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key


@with_settings
def bucketing(size: int, then: Aggregator) -> Aggregator:
    """`then` on the means of random groups of `size` >= 1 reports."""
    if not size >= 1:
        raise ValueError(f"bucketing needs a size >= 1, how many reports a bucket takes, got {size}")

    def step(rows: Array, here: Array, weights: Array, key: Key, memory: Any) -> tuple[Array, Array, Any]:
        K, buckets = len(rows), -(-len(rows) // size)
        # absent members of the cohort do not change the grouping
        number = jnp.cumsum(here.astype(jnp.int32)) - 1
        lots = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(jnp.maximum(number, 0))
        order = jnp.argsort(jnp.where(here, lots, jnp.inf), stable=True)
        room = buckets * size - K
        members = jnp.pad(here[order].astype(rows.dtype), (0, room)).reshape(buckets, size)
        sums = jnp.sum(
            jnp.pad(rows[order], ((0, room), (0, 0))).reshape(buckets, size, -1) * members[:, :, None], axis=1
        )
        filled = jnp.sum(members, axis=1)
        return sums / jnp.maximum(filled, 1)[:, None], (filled > 0).astype(jnp.float32), memory

    def places(K: int) -> int:
        return -(-K // size)

    made = before("bucketing", then, step, places=places)
    least = size * (then.at_least - 1) + 1
    return made._replace(name=f"bucketing({then.name})", alike=True, at_least=least, kept=None)
