"""Minimum-diameter averaging: the mean of the n - f reports with the smallest largest distance between two of
them.

    value = mean of S,    S = argmin over |S| = n - f of max_{i, j in S} |u_i - u_j|

It tries all n! / (f! (n - f)!) subsets, so it is for small cohorts. Of equally good subsets it takes the
first. Every client counts alike. Needs n > 2f. El Mhamdi et al., "Genuinely Distributed Byzantine Machine
Learning", PODC 2020, section 3 (after Rousseeuw, 1985).

>>> from fedjax_core.aggregators.base import apply
>>> apply(mda(f=1), jnp.array([[1.0], [2.0], [3.0], [90.0]])).tolist()
[2.0]
"""

from itertools import combinations
from math import comb

import jax.numpy as jnp
import numpy as np

from fedjax_core.aggregators.base import Aggregator, Ruling, of_reports
from fedjax_core.aggregators.robust import average, check_liars, counts, distances
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key

_MOST = 200_000  # subsets


@with_settings
def mda(f: int) -> Aggregator:
    """Minimum-diameter averaging where `f` clients may lie; raises where a cohort has too many subsets."""
    check_liars("mda", f)

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Ruling:
        K = len(rows)
        if (many := sum(comb(K, left) for left in range(min(f, K - 1) + 1))) > _MOST:
            raise ValueError(
                f"mda(f={f}) looks at {many:,} subsets of {K} reports, more than {_MOST:,}: use krum, or nnm with another rule"
            )
        sets = [
            inside for number in range(min(f, K - 1) + 1) for inside in combinations(range(K), K - number)
        ]
        without = np.ones((len(sets), K), bool)
        for row, inside in enumerate(sets):
            without[row, list(inside)] = False
        n, suspected = counts(here, weights, f)
        subset = ~jnp.asarray(without) & here[None]  # [subsets, K]
        apart = jnp.where(jnp.isfinite(d := distances(rows, here)), d, 0)
        wide = jnp.max(jnp.where(subset[:, :, None] & subset[:, None, :], apart[None], 0), axis=(1, 2))
        # A subset leaves out present clients only, so that each subset is looked at once.
        right = (jnp.sum(subset, axis=1, dtype=jnp.int32) == n - suspected) & jnp.all(
            here[None] | ~jnp.asarray(without), axis=1
        )
        kept = subset[jnp.argmin(jnp.where(right, wide, jnp.inf))]
        return Ruling(average(rows, kept), kept)

    return of_reports("mda", rule, tells=True, alike=True, at_least=2 * f + 1)
