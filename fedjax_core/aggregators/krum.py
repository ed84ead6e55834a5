"""Krum: the report that is nearest to its neighbours; Multi-Krum: the mean of the n - f nearest to theirs.

    score_i = sum of |u_i - u_j|^2 over the n - f - 2 nearest j      (`neighbours="paper"`)
                                       the n - f - 1 nearest j      (`neighbours="byzfl"`, as the package ByzFL counts)

The two may choose different reports. Both need n > 2f, and the paper's guarantee n > 2f + 2. Multi-Krum
weighs the reports that it keeps alike: weighting them by numbers of examples, which a client names itself,
would undo the defence. Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017, section 3.

>>> from fedjax_core.aggregators.base import apply
>>> reports = jnp.array([[1.0], [1.2], [1.5], [90.0], [0.9]])
>>> apply(krum(f=1), reports).tolist()
[1.0]
>>> f"{float(apply(multi_krum(f=1), reports)[0]):.2f}"
'1.15'
"""

from typing import Literal

import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator, Ruling, of_reports
from fedjax_core.aggregators.robust import average, check_liars, counts, distances, smallest, sum_of_smallest
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key

Neighbours = Literal["paper", "byzfl"]


@with_settings
def krum(f: int, neighbours: Neighbours = "paper") -> Aggregator:
    """The one report nearest to its neighbours, where `f` clients may lie; every client counts alike."""
    return _krum("krum", f, neighbours, one=True)


@with_settings
def multi_krum(f: int, neighbours: Neighbours = "paper") -> Aggregator:
    """The mean of the n - f reports with the lowest scores, where `f` clients may lie; every client counts
    alike."""
    return _krum("multi_krum", f, neighbours, one=False)


def _krum(name: str, f: int, neighbours: Neighbours, one: bool) -> Aggregator:
    check_liars(name, f)
    if neighbours not in ("paper", "byzfl"):
        raise ValueError(
            f"{name} counts neighbours as 'paper' (n - f - 2) or 'byzfl' (n - f - 1), got {neighbours!r}"
        )
    fewer = 2 if neighbours == "paper" else 1

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Ruling:
        n, suspected = counts(here, weights, f)
        near = jnp.maximum(n - suspected - fewer, jnp.minimum(n - 1, 1))
        scores = jnp.where(here, sum_of_smallest(distances(rows, here), near), jnp.inf)
        kept = smallest(scores, jnp.int32(1) if one else n - suspected) & here
        return Ruling(average(rows, kept), kept)

    return of_reports(name, rule, tells=True, alike=True, at_least=2 * f + 1)
