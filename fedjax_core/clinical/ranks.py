"""Discrimination of risks from counts of sites: AUROC, average precision, sensitivity and specificity, and
the decision curve.

The site half, `counts`, is two histograms of the risk on a public grid: people with the outcome, and people
without. They add over sites. The centre half is everything else here. With a_b people with and c_b without
the outcome in bin b,

    AUROC = sum_b a_b (c_below(b) + c_b / 2) / (a c)          wrong by at most  sum_b a_b c_b / (2 a c)

because only the order of people in one bin is not known. Average precision is scikit-learn's, with bounds of
its own. Where every distinct risk is a bin of its own (`levels`, if the sites may send them), people in a bin
are tied and both are exact. Sensitivity, specificity and net benefit are exact at the edges of the grid.

Vickers and Elkin, "Decision curve analysis", Medical Decision Making 26, 2006.

>>> edges = grid(4)
>>> found = counts(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9]), edges)
>>> auroc(found)
Bounded(value=0.75, low=0.75, high=0.75)
>>> at_threshold(found, edges, 0.5).sensitivity.value
0.5
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import digamma

from fedjax_core.checks import at_least
from fedjax_core.clinical.performance import Estimate, check, wilson


class Counts(NamedTuple):
    """People in each bin of a public grid of risk. One more bin for each edge but the last."""

    ill: np.ndarray  # [G] with the outcome
    well: np.ndarray  # [G] without it


class Bounded(NamedTuple):
    """A number from a grid, with bounds on the number that the exact risks give."""

    value: float
    low: float
    high: float


class AtThreshold(NamedTuple):
    """Rates of the rule "positive from this risk on", each with Wilson's 95 % interval."""

    sensitivity: Estimate
    specificity: Estimate
    positive_predictive_value: Estimate
    negative_predictive_value: Estimate


class DecisionCurve(NamedTuple):
    """Net benefit: true positives less weighted false positives, for each person."""

    threshold: np.ndarray  # [T] risk from which one would treat
    model: np.ndarray  # [T] treat by the model
    everybody: np.ndarray  # [T] treat all; treating nobody is 0


def grid(bins: int = 1000) -> np.ndarray:
    """Edges [bins + 1] of bins of equal width between 0 and 1; a bin has its left edge, and the last one 1 as
    well."""
    at_least(1, bins=bins)
    return np.arange(bins + 1) / bins  # 3 / 10 is the float64 nearest 0.3, which linspace does not give


def levels(risks: Iterable[np.ndarray]) -> np.ndarray:
    """Edges with one bin for each distinct risk of all sites: exact, for sites that may send each person's
    risk."""
    distinct = np.unique(np.concatenate([np.asarray(risk, float) for risk in risks]))
    return np.append(distinct, max(1.0, np.nextafter(distinct[-1], 2.0)))


def bins_of(risk: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin [n] of each risk: edges[b] <= risk < edges[b + 1]."""
    return np.clip(np.searchsorted(edges, risk, side="right") - 1, 0, len(edges) - 2)


def counts(outcome: np.ndarray, risk: np.ndarray, edges: np.ndarray) -> Counts:
    """The site half: how many people with and without the outcome have a risk in each bin."""
    outcome, risk = np.asarray(outcome, float), np.asarray(risk, float)
    check(outcome, risk)
    where = bins_of(risk, edges)
    ill = outcome == 1
    return Counts(*(np.bincount(where[these], minlength=len(edges) - 1) for these in (ill, ~ill)))


def auroc(counts: Counts, *, exact: bool = False) -> Bounded:
    """The AUROC with its bounds; `exact` means that all people in a bin have the same risk, so that ties
    count half and nothing is unknown.

    NaN where all people have the same outcome.
    """
    ill, well = (np.asarray(each, float) for each in counts)
    pairs = ill.sum() * well.sum()
    if pairs == 0:
        return Bounded(np.nan, np.nan, np.nan)
    value = float(ill @ (np.cumsum(well) - well / 2) / pairs)
    error = 0.0 if exact else float(ill @ well / pairs / 2)
    return Bounded(value, value - error, value + error)


def average_precision(counts: Counts, *, exact: bool = False) -> Bounded:
    """The area under precision and recall as scikit-learn has it (`average_precision_score`); NaN where
    nobody has the outcome.

    A bin has a people with and c without the outcome; A and C of them have a higher risk. It adds least if
    those without come first, and most if those with are tied and come first: sum_{j <= a} (A + j) /
    (A + j + C + c) and a (A + a) / (A + a + C)."""
    ill, well = (np.asarray(each, float)[::-1] for each in counts)  # from the highest risk
    people = ill.sum()
    if people == 0:
        return Bounded(np.nan, np.nan, np.nan)
    upto, others = np.cumsum(ill), np.cumsum(well)
    tied = _share(ill * upto, upto + others)
    value = float(tied.sum() / people)
    if exact:
        return Bounded(value, value, value)
    least = ill - others * (digamma(upto + others + 1) - digamma(upto - ill + others + 1))
    most = _share(ill * upto, upto + others - well)
    return Bounded(value, float(least.sum() / people), float(most.sum() / people))


def at_threshold(counts: Counts, edges: np.ndarray, threshold: float) -> AtThreshold:
    """Sensitivity, specificity and predictive values of "positive where risk >= threshold", exact; the
    threshold must be an edge of the grid."""
    place = int(np.searchsorted(edges, threshold - 1e-12))
    if place >= len(edges) or abs(edges[place] - threshold) > 1e-12:
        raise ValueError(
            f"threshold {threshold} is not an edge of the grid, where counts are exact: take one of {len(edges)} edges"
        )
    true_positive, false_positive = (int(each[place:].sum()) for each in counts)
    false_negative, true_negative = (int(each[:place].sum()) for each in counts)
    return AtThreshold(
        _proportion(true_positive, true_positive + false_negative),
        _proportion(true_negative, true_negative + false_positive),
        _proportion(true_positive, true_positive + false_positive),
        _proportion(true_negative, true_negative + false_negative),
    )


def decision_curve(counts: Counts, edges: np.ndarray) -> DecisionCurve:
    """Net benefit at every inner edge of the grid: TP / n - FP / n * t / (1 - t)."""
    threshold = np.asarray(edges[1:-1], float)
    people = counts.ill.sum() + counts.well.sum()
    if people == 0:
        raise ValueError("a decision curve needs people, got none")
    positive = [np.cumsum(each[::-1])[::-1][1:] for each in counts]
    odds = threshold / (1 - threshold)
    model = (positive[0] - positive[1] * odds) / people
    return DecisionCurve(threshold, model, (counts.ill.sum() - counts.well.sum() * odds) / people)


def _proportion(part: int, whole: int) -> Estimate:
    if whole == 0:
        return Estimate(np.nan, np.nan, np.nan, "nobody to count")
    low, high = wilson(np.array(part / whole), np.array(whole))
    return Estimate(part / whole, float(low), float(high))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
