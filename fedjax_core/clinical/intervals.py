"""Intervals for an AUROC, and for the gap between two models, in memory that does not grow with the number of
people.

`delong` and `bootstrap` need no more than the counts of `ranks`. A person's placement is the share of people
of the other outcome who are ranked on the right side; with placements V of the a people with and W of the c
people without the outcome,

    var(AUROC) = var(V) / a + var(W) / c

DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988. Two models on the same people need one more visit:
sites receive the `placements`, and send sums of their products (`paired_sums`). The bootstrap draws people
with replacement: how many of them fall into each bin is multinomial, so counts are drawn and not people.

>>> from fedjax_core.clinical.ranks import auroc, counts, grid
>>> found = counts(np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9, 0.8]), grid(10))
>>> f"{delong(found).value:.3f}", bootstrap(found, lambda drawn: auroc(drawn).value, resamples=100).low < 0.8
('0.833', True)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from fedjax_core.checks import at_least
from fedjax_core.clinical.performance import Estimate, check
from fedjax_core.clinical.ranks import Counts, bins_of


class Placements(NamedTuple):
    """For a person in each bin, the share of people of the other outcome who are ranked on the right side."""

    ill: np.ndarray  # [G]
    well: np.ndarray  # [G]


class PairedSums(NamedTuple):
    """What a site sends for a comparison: sums over its people's placements by M models."""

    people: np.ndarray  # [2] with the outcome, without
    sums: np.ndarray  # [2, M]
    products: np.ndarray  # [2, M, M]


class Comparison(NamedTuple):
    """The AUROC of M models on the same people."""

    auroc: np.ndarray  # [M]
    covariance: np.ndarray  # [M, M]

    def gap(self, first: int = 0, second: int = 1, level: float = 0.95) -> Estimate:
        """The first model's AUROC less the second's, with DeLong's interval; `note` has the two-sided p."""
        value = float(self.auroc[first] - self.auroc[second])
        way = np.zeros(len(self.auroc))
        way[first] += 1
        way[second] -= 1
        error = float(np.sqrt(max(0.0, way @ self.covariance @ way)))
        p = 2 * norm.sf(abs(value) / error) if error > 0 else float(value == 0)
        reach = norm.ppf(0.5 + level / 2) * error
        return Estimate(value, value - reach, value + reach, f"p = {p:.3g}")


def placements(counts: Counts) -> Placements:
    """The placement of a person in each bin, ties counted half; raises ValueError where all people have the
    same outcome."""
    ill, well = (np.asarray(each, float) for each in counts)
    if not ill.sum() or not well.sum():
        raise ValueError("an AUROC needs people with the outcome and people without it")
    below, above = np.cumsum(well) - well / 2, ill.sum() - np.cumsum(ill) + ill / 2
    return Placements(below / well.sum(), above / ill.sum())


def variance(counts: Counts) -> float:
    """DeLong's variance of the AUROC; NaN for fewer than two people of an outcome."""
    return float(
        sum(
            _variance(place, np.asarray(count, float))
            for place, count in zip(placements(counts), counts, strict=True)
        )
    )


def delong(counts: Counts, level: float = 0.95) -> Estimate:
    """The AUROC of the grid with DeLong's interval, cut at 0 and 1."""
    place = placements(counts)
    value = float(counts.ill @ place.ill / counts.ill.sum())
    reach = norm.ppf(0.5 + level / 2) * np.sqrt(variance(counts))
    if not np.isfinite(reach):
        return Estimate(value, np.nan, np.nan, "no interval: fewer than two people with one of the outcomes")
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach))


def paired_sums(
    outcome: np.ndarray, risks: np.ndarray, edges: np.ndarray, placements: list[Placements]
) -> PairedSums:
    """The site half of a comparison, from risks [M, n] of M models and each model's placements by all sites'
    counts."""
    outcome = np.asarray(outcome, float)
    for risk in risks:
        check(outcome, np.asarray(risk, float))
    bins = [bins_of(risk, edges) for risk in risks]
    people, sums, products = [], [], []
    for i, these in enumerate((outcome == 1, outcome == 0)):
        values = np.stack([place[i][where[these]] for place, where in zip(placements, bins, strict=True)])
        people.append(these.sum())
        sums.append(values.sum(axis=1))
        products.append(values @ values.T)
    return PairedSums(np.array(people), np.stack(sums), np.stack(products))


def compare(sums: PairedSums) -> Comparison:
    """The centre half of a comparison: the AUROC of each model, and DeLong's covariance of all."""
    if (sums.people < 2).any():
        raise ValueError(f"a comparison needs two people of each outcome, got {sums.people.tolist()}")
    n = sums.people[:, None, None].astype(float)
    mean = sums.sums / sums.people[:, None]
    covariance = (sums.products / n - mean[:, :, None] * mean[:, None, :]) / (n - 1)
    return Comparison(mean[0], covariance.sum(axis=0))


def bootstrap(
    counts: Counts,
    statistic: Callable[[Counts], float],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """A statistic of counts, with its middle 95 % over people drawn again with replacement.

    Drawn counts with a statistic of NaN (one outcome only) are left out.
    """
    at_least(1, resamples=resamples)
    cells = np.concatenate([counts.ill, counts.well])
    people, bins = int(cells.sum()), len(counts.ill)
    value = float(statistic(counts))
    if people == 0 or np.isnan(value):
        return Estimate(value, np.nan, np.nan, "not defined for these people")
    rng = np.random.default_rng(seed)
    here = np.flatnonzero(cells)  # empty bins stay empty
    drawn, values = np.zeros(2 * bins, np.int64), np.empty(resamples)
    for i in range(resamples):
        drawn[here] = rng.multinomial(people, cells[here] / people)
        values[i] = statistic(Counts(drawn[:bins], drawn[bins:]))
    low, high = np.nanpercentile(values, [50 * (1 - level), 50 * (1 + level)])
    return Estimate(value, float(low), float(high))


def _variance(place: np.ndarray, count: np.ndarray) -> float:
    people = count.sum()
    if people < 2:
        return np.nan
    mean = count @ place / people
    return float(count @ (place - mean) ** 2 / (people - 1) / people)
