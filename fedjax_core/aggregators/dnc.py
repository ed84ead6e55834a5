"""Divide and conquer: leaves out the reports that stand out along the direction of largest variation, over
several random samples of coordinates.

    of `coordinates` drawn at random: s_i = <u_i - mean, v>^2, v the first right singular vector; keep the n - filter f with the smallest
    value = mean of those kept in every one of `samples` draws

Unlike coordinate-wise rules it looks at coordinates together. Every client counts alike. Needs n > 2f.
Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, algorithm 2.

>>> from fedjax_core.aggregators.base import apply
>>> [round(x, 3) for x in apply(dnc(f=1), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [50.0, 50.0]])).tolist()]
[0.667, 0.667]
"""

import jax
import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator, Ruling, of_reports
from fedjax_core.aggregators.robust import average, check_liars, counts, smallest
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, known


@with_settings
def dnc(f: int, samples: int = 1, coordinates: int = 10_000, filter: float = 1.0) -> Aggregator:
    """DnC where `f` clients may lie: leaves out `filter` f reports in each of `samples` draws of
    `coordinates` coordinates."""
    check_liars("dnc", f)
    if not samples >= 1 or not coordinates >= 1:
        raise ValueError(f"dnc needs samples >= 1 and coordinates >= 1, got {samples} and {coordinates}")
    if known(filter) and not filter >= 0:
        raise ValueError(f"dnc leaves out filter * f reports, filter >= 0, got {filter}")

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Ruling:
        n, suspected = counts(here, weights, f)
        out = jnp.minimum(jnp.floor(filter * suspected.astype(jnp.float32)).astype(jnp.int32), n - 1)

        def kept_by(key: Key) -> Array:
            some = rows
            if rows.shape[1] > coordinates:
                some = rows[:, jax.random.choice(key, rows.shape[1], (coordinates,), replace=False)]
            centred = jnp.where(here[:, None], some - average(some, here)[None], 0)
            # [K, K]: its last eigenvector times the singular value is <u_i - mean, v>
            _, vectors = jnp.linalg.eigh(centred @ centred.T)
            return smallest(jnp.where(here, jnp.square(vectors[:, -1]), jnp.inf), n - out) & here

        each = jax.vmap(kept_by)(jax.random.split(key, samples))
        kept = jnp.all(each, axis=0)
        # If no report was kept in all draws: those kept most often.
        kept = jnp.where(
            jnp.any(kept), kept, smallest(-jnp.sum(each, axis=0, dtype=jnp.int32), n - out) & here
        )
        return Ruling(average(rows, kept), kept)

    return of_reports("dnc", rule, tells=True, alike=True, at_least=2 * f + 1)
