"""Bulyan: Krum chooses n - 2f reports one after another; then each coordinate's n - 4f values nearest to
their median are averaged.

    S <- S + {krum of those left},  n - 2f times        value[p] = mean of the n - 4f values of S nearest to median(S)[p]

Krum alone can be misled in one coordinate of many, which the second half prevents. Needs n >= 4f + 3. Every
client counts alike. With n near that bound, two reports that are each other's nearest have the same score,
and the first is chosen. El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium",
ICML 2018, section 4.

>>> from fedjax_core.aggregators.base import apply
>>> reports = jnp.array([[1.0], [1.1], [1.2], [0.9], [0.8], [1.0], [55.0]])
>>> bool(0.8 <= apply(bulyan(f=1), reports)[0] <= 1.2)
True
"""

import jax.numpy as jnp
from jax import lax

from fedjax_core.aggregators.base import Aggregator, Ruling, of_reports
from fedjax_core.aggregators.robust import check_liars, counts, distances, nearest_average, sum_of_smallest
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key


@with_settings
def bulyan(f: int) -> Aggregator:
    """Bulyan where `f` clients may lie; raises for a cohort of fewer than 4f + 3."""
    check_liars("bulyan", f)

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Ruling:
        n, suspected = counts(here, weights, f, most=lambda n: (n - 3) // 4)
        apart = distances(rows, here)

        def choose(t: int, chosen: Array) -> Array:
            left = here & ~chosen
            near = jnp.maximum(n - t - suspected - 2, 1)
            scores = sum_of_smallest(jnp.where(left[None], apart, jnp.inf), near)
            best = jnp.argmin(jnp.where(left, scores, jnp.inf))
            return chosen.at[best].set(chosen[best] | (t < n - 2 * suspected))

        chosen = lax.fori_loop(0, len(rows), choose, jnp.zeros_like(here)) & here
        return Ruling(nearest_average(rows, chosen, n - 4 * suspected), chosen)

    return of_reports("bulyan", rule, tells=True, alike=True, at_least=4 * f + 3 if f else 1)
