"""Split conformal prediction from counts of sites: sets and intervals that hold the truth with a promised
chance.

A score says how badly a prediction fits the truth: 1 - probability of the true class, or |outcome -
prediction|. Of the n people that sites hold out, take the score of rank k = ceil((n + 1) (1 - alpha)) among
all of them pooled. A new person of the same kind has a score no larger with chance k / (n + 1) or more,
whatever the model (Vovk, Gammerman and Shafer 2005; Lei et al., JASA 113, 2018). Where n is too small for the
rank, the threshold is infinite: everything is in the set.

Sites send counts of scores on a public grid, which add. The threshold is the right end of the bin that has
the rank: coverage is kept, and exceeds that of the exact score by at most the share of people in the bin.
More `visits` refine that bin. A group's own rank gives the promise for that group (`thresholds`). Averaging
the sites' own quantiles is not valid: a site of many easy people and one of few hard ones give too small a
threshold, as a test of this module shows. The promise is for a person drawn from the pooled people, not for
each site: `coverage` shows how far sites differ.

>>> scores = [np.arange(1, 20) / 20, np.arange(1, 19) / 20]
>>> found = threshold(lambda edges: sum(score_counts(each, edges) for each in scores), alpha=0.1, low=0.0, high=1.0, bins=20)
>>> found.people, found.rank, round(found.value, 2), round(found.promised, 5)
(37, 35, 0.9, 0.92105)
"""

from collections.abc import Callable, Hashable, Iterable
from math import ceil, inf
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_core.checks import at_least


class Threshold(NamedTuple):
    """A conformal threshold: the score up to which an answer is in the set."""

    value: float
    below: float  # the score of the rank is above this
    people: int
    rank: int
    promised: float  # rank / (people + 1): the chance that a new person is covered is at least this


def score_counts(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The site half: how many scores are at most edges[0], in each (edges[b], edges[b + 1]], and above: [G +
    2]."""
    scores = np.asarray(scores, float)
    if np.isnan(scores).any():
        raise ValueError(
            "a score is not a number: leave out people for whom the model gives none, and say how many"
        )
    return np.bincount(np.searchsorted(edges, scores, side="left"), minlength=len(edges) + 1)


def threshold(
    visit: Callable[[np.ndarray], np.ndarray],
    *,
    alpha: float,
    low: float,
    high: float,
    bins: int = 1000,
    visits: int = 1,
) -> Threshold:
    """The pooled threshold: `visit` sends edges to all sites and returns the sum of their `score_counts`.

    Scores lie between `low` and `high`. Each further visit divides the bin that has the rank into `bins` once
    more. Its counts are of ever fewer people, so a site's minimum may stop it.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is the share of people who may be missed, between 0 and 1, got {alpha!r}")
    at_least(1, bins=bins, visits=visits)
    for _ in range(visits):
        edges = np.linspace(low, high, bins + 1)
        counts = np.asarray(visit(edges))
        people = int(counts.sum())
        rank = ceil((people + 1) * (1 - alpha) - 1e-9)  # rounding must not raise it: 20 * (1 - 0.05) is 19
        if rank > people:
            return Threshold(inf, -inf, people, people + 1, 1.0)
        place = int(np.searchsorted(np.cumsum(counts), rank))
        if place > bins:
            raise ValueError(
                f"the score of rank {rank} of {people} is above {high}, the end of the public grid: give a higher one"
            )
        if place == 0:
            return Threshold(low, -inf, people, rank, rank / (people + 1))
        low, high = float(edges[place - 1]), float(edges[place])
    return Threshold(high, low, people, rank, rank / (people + 1))


def thresholds(
    visit: Callable[[np.ndarray], dict[Hashable, np.ndarray]],
    *,
    alpha: float,
    low: float,
    high: float,
    bins: int = 1000,
) -> dict[Hashable, Threshold]:
    """A threshold for each group, with the promise for each: `visit` returns the summed counts of each
    group."""
    edges = np.linspace(low, high, bins + 1)
    counts = visit(edges)

    def one(group: Hashable) -> Threshold:
        return threshold(lambda _: counts[group], alpha=alpha, low=low, high=high, bins=bins)

    return {group: one(group) for group in counts}


def class_scores(probabilities: ArrayLike, outcome: ArrayLike) -> np.ndarray:
    """1 - the probability [n, classes] of the class that came true [n]."""
    probabilities, outcome = np.asarray(probabilities, float), np.asarray(outcome)
    return 1 - probabilities[np.arange(len(outcome)), outcome]


def sets(probabilities: ArrayLike, threshold: Threshold) -> np.ndarray:
    """[n, classes] bool: the classes in each person's set."""
    return 1 - np.asarray(probabilities, float) <= threshold.value


def intervals(predictions: ArrayLike, threshold: Threshold) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) [n] for scores that are |outcome - prediction|."""
    predictions = np.asarray(predictions, float)
    return predictions - threshold.value, predictions + threshold.value


def coverage(scores: Iterable[np.ndarray], threshold: Threshold) -> list[float]:
    """The share of each site's people whose truth is in their set; NaN for a site without people."""
    return [
        float((np.asarray(each) <= threshold.value).mean()) if len(each) else float("nan") for each in scores
    ]
