"""Whose numbers lie far from everybody else's: another unit, or a column that means something else.

    moments of each site's columns  ─►  a site's mean against those of all others  ─►  a warning that names site and feature

Hospitals differ, but not by several of their standard deviations: Fahrenheit for Celsius, micromol/l for mg/dl do. It is known where the
study standardises or fills its columns, as sites then tell their means; training goes on, since who is right only the sites can tell.

>>> from fedjax_core.data.preprocess import Standardise
>>> means = (37.0, 0.6), (36.8, 0.7), (98.6, 1.0)
>>> said = [{"count": np.array(50), "mean": np.array(mean), "m2": np.array(50 * scale**2)} for mean, scale in means]
>>> far([Standardise("temperature")], ["charite", "mayo", "oslo"], [[one] for one in said], {})
["oslo has a mean of 'temperature' far from that of the other sites: is it in another unit, or another column?"]
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from fedjax_core.data.preprocess import Step, Sums

_LEAST = 5  # examples behind a mean that is compared


def far(steps: Sequence[Step], sites: Sequence[str], said: Sequence[Sequence[Sums]], features: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each site and column. `said` has the sums of each site, an entry a step; `features` the names of a row's numbers."""
    found = []
    for i, step in enumerate(steps):
        if "moments" not in step.leaving or len(sites) < 2:
            continue
        for at, site in enumerate(sites):
            own, others = said[at][i], reduce(step.merge, [one[i] for j, one in enumerate(said) if j != at])
            odd = np.flatnonzero(_apart(own, others)).tolist()
            if odd:
                which = _in_words(step.column, odd, features.get(step.column, ()), alone=np.ndim(own["mean"]) == 0)
                found.append(f"{site} has a mean of {which} far from that of the other sites: is it in another unit, or another column?")
    return found


def _in_words(column: str, odd: list[int], names: Sequence[str], alone: bool) -> str:
    """Which numbers of a row, the first three of them."""
    if alone:
        return repr(column)
    which = ", ".join(repr(names[place]) if place < len(names) else f"number {place}" for place in odd[:3])
    return f"{which}{f' and {len(odd) - 3} more' if len(odd) > 3 else ''} in {column!r}"


def _apart(own: Sums, others: Sums) -> np.ndarray:
    """Whether the two means are further from each other than hospitals are."""
    each = [np.sqrt(one["m2"] / np.maximum(one["count"], 1)) for one in (own, others)]
    narrow, broad = np.minimum(*each), np.maximum(*each)
    means = np.abs(own["mean"]), np.abs(others["mean"])
    distance = np.abs(own["mean"] - others["mean"])
    times = np.maximum(*means) >= 5 * np.minimum(*means)  # a factor, as between units
    enough = (own["count"] >= _LEAST) & (others["count"] >= _LEAST) & (broad > 0)
    return np.asarray(enough & ((distance > 5 * broad) | (times & (distance > 2 * broad) & (distance > 5 * narrow))))
