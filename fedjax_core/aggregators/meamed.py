"""Mean around the median: the mean of each coordinate's n - f values nearest to their median.

    value[p] = mean of the n - f of u_1[p], ..., u_n[p] with the smallest |u_i[p] - median_p|

Every client counts alike. Needs n > 2f.
Xie et al., "Generalized Byzantine-tolerant SGD", 2018, definition 4.

>>> import jax.numpy as jnp
>>> from fedjax_core.aggregators.base import apply
>>> apply(meamed(f=1), jnp.array([[1.0], [2.0], [3.0], [90.0]])).tolist()
[2.0]
"""

from fedjax_core.aggregators.base import Aggregator, of_reports
from fedjax_core.aggregators.robust import check_liars, counts, nearest_average
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key


@with_settings
def meamed(f: int) -> Aggregator:
    """The mean around the median where `f` clients may lie."""
    check_liars("meamed", f)

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Array:
        n, suspected = counts(here, weights, f)
        return nearest_average(rows, here, n - suspected)

    return of_reports("meamed", rule, alike=True, at_least=2 * f + 1)
