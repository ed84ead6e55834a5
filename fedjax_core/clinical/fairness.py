"""Performance by subgroup, and the gaps between subgroups with intervals, from counts of each group.

A group with fewer than `minimum` people of an outcome is withheld, with the reason. The total less the shown
groups would reveal the withheld one. So the smallest of the others is withheld as well, until at least two
groups are withheld and together have enough people.

    equal opportunity   largest gap in sensitivity            (Hardt, Price and Srebro, NeurIPS 2016)
    equalised odds      that, and the gap in 1 - specificity
    parity              largest gap in the share who are positive
    discrimination      largest gap in AUROC

A gap is between the two groups that are furthest apart. Its interval is by Newcombe's method for shares
(Statistics in Medicine 17, 1998) and DeLong's for the AUROC, as if the two groups had been named beforehand:
with many groups a gap is expected by chance.

>>> from fedjax_core.clinical.ranks import counts, grid
>>> rng = np.random.default_rng(0)
>>> groups = {g: counts(rng.integers(0, 2, 80), rng.random(80), grid(10)) for g in ("women", "men")}
>>> sorted(gaps(groups, grid(10), 0.5))
['auroc', 'false positive rate', 'positive', 'sensitivity']
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from fedjax_core.clinical.intervals import delong, variance
from fedjax_core.clinical.performance import Estimate, wilson
from fedjax_core.clinical.ranks import AtThreshold, Counts, at_threshold


class Gap(NamedTuple):
    """The largest gap between two groups, the higher one's name first."""

    higher: str
    lower: str
    gap: Estimate


class Subgroups(NamedTuple):
    """The groups that may be shown, and why others may not."""

    shown: dict[str, Counts]
    withheld: dict[str, str]


def releasable(groups: Mapping[str, Counts], minimum: int) -> Subgroups:
    """Groups with at least `minimum` people with and without the outcome; no withheld group follows from the
    total of all."""
    small = {
        name: f"fewer than {minimum} people with or without the outcome"
        for name, each in groups.items()
        if min(each.ill.sum(), each.well.sum()) < minimum
    }
    why = "withheld so that groups that are too small cannot be had by subtraction"
    for name in sorted(groups, key=lambda name: (groups[name].ill.sum() + groups[name].well.sum(), name)):
        hidden = [groups[each] for each in small]
        few = hidden and min(sum(int(each[i].sum()) for each in hidden) for i in (0, 1)) < minimum
        if name not in small and (len(hidden) == 1 or few):
            small[name] = why
    return Subgroups({name: each for name, each in groups.items() if name not in small}, small)


def by_subgroup(
    groups: Mapping[str, Counts], edges: np.ndarray, threshold: float, *, minimum: int = 10
) -> dict[str, tuple[Estimate, AtThreshold] | str]:
    """AUROC with DeLong's interval and the rates at a threshold for each group, or the reason where it is
    withheld."""
    shown, withheld = releasable(groups, minimum)
    results: dict[str, tuple[Estimate, AtThreshold] | str] = dict(withheld)
    return results | {
        name: (delong(each), at_threshold(each, edges, threshold)) for name, each in shown.items()
    }


def gaps(
    groups: Mapping[str, Counts], edges: np.ndarray, threshold: float, *, minimum: int = 10
) -> dict[str, Gap]:
    """The largest gap between groups that may be shown, for each of four measures; raises ValueError for
    fewer than two."""
    shown, withheld = releasable(groups, minimum)
    if len(shown) < 2:
        raise ValueError(
            f"a gap needs two groups of at least {minimum} people of each outcome; withheld: {sorted(withheld)}"
        )
    place = int(np.argmin(np.abs(edges - threshold)))
    at_threshold(next(iter(shown.values())), edges, threshold)  # raises where it is no edge
    largest: dict[str, Gap] = {}
    for name, which in (("sensitivity", (0,)), ("false positive rate", (1,)), ("positive", (0, 1))):
        part = {group: sum(int(each[i][place:].sum()) for i in which) for group, each in shown.items()}
        whole = {group: sum(int(each[i].sum()) for i in which) for group, each in shown.items()}
        share = {group: part[group] / whole[group] for group in shown}
        high, low = _ends(share)
        largest[name] = Gap(high, low, _newcombe(share[high], whole[high], share[low], whole[low]))
    value = {group: delong(each).value for group, each in shown.items()}
    high, low = _ends(value)
    gap = value[high] - value[low]
    reach = norm.ppf(0.975) * np.sqrt(variance(shown[high]) + variance(shown[low]))
    return largest | {"auroc": Gap(high, low, Estimate(gap, float(gap - reach), float(gap + reach)))}


def _ends(values: Mapping[str, float]) -> tuple[str, str]:
    high = max(values, key=lambda name: values[name])
    return high, min((name for name in values if name != high), key=lambda name: values[name])


def _newcombe(first: float, n: int, second: float, m: int) -> Estimate:
    (low, high), (under, over) = (wilson(np.array(p), np.array(k)) for p, k in ((first, n), (second, m)))
    gap = first - second
    return Estimate(
        gap,
        float(gap - np.hypot(first - low, over - second)),
        float(gap + np.hypot(high - first, second - under)),
    )
