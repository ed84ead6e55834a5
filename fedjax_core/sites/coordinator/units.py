"""Warns of sites whose means or categories suggest another unit, spelling or column.

    moments of each site's columns     ─►  is a site's mean far from all others'?          ─►  a warning by name
    categories of each site's columns  ─►  does a site have one in common with the others? ─►  a warning by name

Hospitals differ, but not by several of their standard deviations, as Fahrenheit for Celsius or micromol/l for
mg/dl do. It is known if the study standardises, fills or codes its columns, as sites then send their means
and categories. Training goes on, since only the sites can tell which is right.

>>> from fedjax_core.data.preprocess import Standardise
>>> means = (37.0, 0.6), (36.8, 0.7), (98.6, 1.0)
>>> sums = [{"count": np.array(50), "mean": np.array(mean), "m2": np.array(50 * scale**2)} for mean, scale in means]
>>> far([Standardise("temperature")], ["charite", "mayo", "oslo"], [[one] for one in sums], {})
["oslo has a mean of 'temperature' far from that of the other sites: is it in another unit, or another column?"]
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from fedjax_core.data.preprocess import Step, Sums, categories_in
from fedjax_core.sites.coordinator.outlying import LEAST

_LEAST = 5  # least examples behind a compared mean
_ABSURD = 1e6


def far(
    steps: Sequence[Step],
    sites: Sequence[str],
    site_sums: Sequence[Sequence[Sums]],
    features: Mapping[str, Sequence[str]],
) -> list[str]:
    """A warning for each site and column; `site_sums`: the sums of each site, an entry a step; `features`:
    names of a row's numbers."""
    warnings = []
    for i, step in enumerate(steps):
        if not step.releases or len(sites) < 2:
            continue
        for position, site in enumerate(sites):
            own, others = (
                site_sums[position][i],
                reduce(step.merge, [one[i] for j, one in enumerate(site_sums) if j != position]),
            )
            if "categories" in step.releases and _foreign(own, others):
                warnings.append(
                    f"{site} has no category of {step.column!r} in common with the other sites: does it spell or number them otherwise, "
                    "or is it another column?"
                )
            if "moments" not in step.releases:
                continue
            odd = np.flatnonzero(_apart(own, others)).tolist()
            if odd:
                which = _in_words(
                    step.column, odd, features.get(step.column, ()), alone=np.ndim(own["mean"]) == 0
                )
                warnings.append(
                    f"{site} has a mean of {which} far from that of the other sites: is it in another unit, or another column?"
                )
    return warnings


def _foreign(own: Sums, others: Sums) -> bool:
    """Whether both sites have categories, and none in common."""
    ours, theirs = categories_in(own), categories_in(others)
    return (
        len(ours) > 0
        and len(theirs) > 0
        and (ours.dtype.kind != theirs.dtype.kind or not np.isin(ours, theirs).any())
    )


def absurd(steps: Sequence[Step], site_sums: Sequence[Sequence[Sums]]) -> dict[int, str]:
    """{position of a site: why its sums are refused}, where among three sites or more its numbers are a
    million times the others'.

    Such numbers alone would scale the columns of all other sites to nothing.
    """
    reasons = dict[int, str]()
    for i, step in enumerate(steps):
        largest = [_largest(one[i]) for one in site_sums]
        if len(largest) < LEAST or any(one is None for one in largest):
            continue
        # [sites, numbers of a row]; NaN where a site has no such number.
        sizes = np.stack([np.ravel(one) for one in largest if one is not None])
        here = (~np.isnan(sizes)).sum(axis=0) >= LEAST
        middle = np.take_along_axis(
            np.sort(sizes, axis=0), ((~np.isnan(sizes)).sum(axis=0, keepdims=True) - 1) // 2, axis=0
        )[0]
        odd = here & (middle > 0) & (sizes > _ABSURD * middle)
        reasons |= {
            position: f"its sums for {type(step).__name__}({step.column!r}) are of numbers a million times the others', which would vanish"
            for position in np.flatnonzero(odd.any(axis=1)).tolist()
        }
    return reasons


def _largest(sums: Sums) -> np.ndarray | None:
    """The size of a site's numbers by its sums, NaN where it has none; None for categories."""
    parts = [np.abs(sums[name]) for name in ("mean", "low", "high") if name in sums]
    if not parts:
        return None
    if "m2" in sums:
        parts.append(np.sqrt(sums["m2"] / np.maximum(sums["count"], 1)))
    return np.where(sums["count"] > 0, np.max(parts, axis=0), np.nan)


def _in_words(column: str, odd: list[int], names: Sequence[str], alone: bool) -> str:
    """The names of the first three odd numbers of a row, in words."""
    if alone:
        return repr(column)
    which = ", ".join(repr(names[place]) if place < len(names) else f"number {place}" for place in odd[:3])
    return f"{which}{f' and {len(odd) - 3} more' if len(odd) > 3 else ''} in {column!r}"


def _apart(own: Sums, others: Sums) -> np.ndarray:
    """Whether the two means are further apart than those of hospitals usually are."""
    each = [np.sqrt(one["m2"] / np.maximum(one["count"], 1)) for one in (own, others)]
    narrow, broad = np.minimum(*each), np.maximum(*each)
    means = np.abs(own["mean"]), np.abs(others["mean"])
    distance = np.abs(own["mean"] - others["mean"])
    times = np.maximum(*means) >= 5 * np.minimum(*means)  # a factor, as between units
    enough = (own["count"] >= _LEAST) & (others["count"] >= _LEAST) & (broad > 0)
    return np.asarray(
        enough & ((distance > 5 * broad) | (times & (distance > 2 * broad) & (distance > 5 * narrow)))
    )
