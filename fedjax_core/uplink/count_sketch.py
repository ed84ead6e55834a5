"""Count sketch: each number is added, under a random sign, to one of a few buckets in each of several rows.

    S[r, h_r(p)] += s_r(p) u[p]        estimate of u[p]: the median (or mean) over r of s_r(p) S[r, h_r(p)]

A row's estimate is unbiased, with variance at most |u|^2 / width: good for updates with few large numbers. It
is linear, and hashes are the same for all clients of a round, so sketches add up to that of the sum. Charikar
et al., "Finding Frequent Items in Data Streams", 2002; Rothchild et al., "FetchSGD", ICML 2020.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import bits, roundtrip
>>> update = jnp.zeros(1000).at[7].set(5.0)
>>> float(roundtrip(count_sketch(rows=3, width=50), update, jax.random.key(0))[7]), bits(count_sketch(rows=3, width=50), update)
(5.0, 4832)
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_core import tree
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Message, Own, Update
from fedjax_core.uplink.base import Sender, Stage, stage
from fedjax_core.uplink.packed import guarded, seed_of


class Sketch(NamedTuple):
    """The message: a table, and the seed of the hashes."""

    table: Array  # [rows, width]
    seed: Array


@with_settings
def count_sketch(rows: int, width: int, estimate: Literal["median", "mean"] = "median") -> Stage:
    """Sketches the update's numbers, all leaves together, in `rows` times `width` buckets. `estimate`: "mean"
    is unbiased, "median" has the smaller error."""
    if not rows >= 1 or not width >= 1:
        raise ValueError(f"count_sketch needs rows >= 1 and width >= 1, got {rows} and {width}")
    if estimate not in ("median", "mean"):
        raise ValueError(f"count_sketch estimates by 'median' or 'mean', got {estimate!r}")

    def hashes(seed: Array, size: int, dtype: Any) -> tuple[Array, Array]:
        """([rows, size] int32 buckets, [rows, size] signs)."""
        one, other = jax.random.split(jax.random.key(seed))
        return jax.random.randint(one, (rows, size), 0, width, jnp.int32), jax.random.rademacher(
            other, (rows, size), dtype
        )

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        seed, flat = seed_of(sender.shared), ravel_pytree(tree.wide(update))[0]

        def table(x: Array) -> Array:
            buckets, signs = hashes(seed, x.size, x.dtype)
            return jax.vmap(lambda bucket, signed: jnp.zeros(width, x.dtype).at[bucket].add(signed))(
                buckets, signs * x[None]
            )

        return Sketch(guarded(table, flat), seed), own

    def expand(state: Any, message: Sketch, shapes: Update) -> Update:
        zeros = tree.zeros_like(tree.wide(tree.shapes(shapes)))
        flat, unravel = ravel_pytree(zeros)
        buckets, signs = hashes(message.seed, flat.size, message.table.dtype)
        estimates = signs * jnp.take_along_axis(message.table, buckets, axis=1)
        return unravel(jnp.median(estimates, axis=0) if estimate == "median" else jnp.mean(estimates, axis=0))

    return stage("count_sketch", encode=encode, expand=expand, measurable=True, linear=True)
