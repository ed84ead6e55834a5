"""Privacy audits: lower bounds on a mechanism's epsilon from its outputs. A bound above the claimed epsilon
shows a broken promise.

    scores of members and of others        how well they are told apart bounds epsilon from below, at 95 %
    canaries in a run, `one_shot`          how far the model has moved along directions that only canaries sent

`epsilon_of_counts` bounds false alarms and misses from below by Clopper and Pearson; under (epsilon, delta)
they cannot both be few: 1 - misses <= exp(epsilon) false alarms + delta. `epsilon_one_run` uses one run with
many canaries, each in it or not by a coin: Steinke, Nasr and Jagielski, "Privacy Auditing with One (1)
Training Run", NeurIPS 2023, theorem 5.2. `one_shot` is no bound but an estimate: Andrew et al., "One-shot
Empirical Privacy Estimation for Federated Learning", ICLR 2024.

>>> rng = np.random.default_rng(0)
>>> members, others = rng.normal(1, 1, 2000), rng.normal(0, 1, 2000)
>>> round(auc(members, others), 2), epsilon_of_scores(others, rng.normal(0, 1, 2000), delta=1e-5)
(0.76, 0.0)
"""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm

_MOST = 50.0  # an epsilon that no audit finds
_SHARES = (0.1, 0.05, 0.02, 0.01)  # shares of scores that are taken for members', or for others'


def auc(members: Any, others: Any) -> float:
    """The probability that a member's score is above a non-member's; a half where scores carry no
    information."""
    members, others = np.sort(np.asarray(members, np.float64)), np.sort(np.asarray(others, np.float64))
    below, upto = np.searchsorted(others, members, "left"), np.searchsorted(others, members, "right")
    return float((below + upto).sum() / (2 * len(members) * len(others)))


def tpr_at(members: Any, others: Any, fpr: float = 0.01) -> float:
    """The share of members above the threshold that a share `fpr` of the others exceeds."""
    return float(
        np.mean(np.asarray(members) > np.quantile(np.asarray(others, np.float64), 1 - fpr, method="higher"))
    )


def epsilon_of_counts(
    hits: int, members: int, alarms: int, others: int, delta: float, confidence: float = 0.95
) -> float:
    """A lower bound on epsilon, from `hits` of the `members` and `alarms` of the `others` that were taken for
    members.

    Each share is bounded by Clopper and Pearson; both bounds hold together with this confidence.
    """
    each = (1 - confidence) / 2
    least_hits = beta.ppf(each, hits, members - hits + 1) if hits else 0.0
    most_alarms = beta.ppf(1 - each, alarms + 1, others - alarms) if alarms < others else 1.0
    return max(0.0, math.log((least_hits - delta) / most_alarms)) if least_hits > delta else 0.0


def epsilon_of_scores(members: Any, others: Any, delta: float, confidence: float = 0.95) -> float:
    """A lower bound on epsilon from scores that are higher for members than for others.

    It is the best of eight thresholds: a score above one means a member, or below one a non-member. The
    confidence of each bound is raised (Bonferroni) so that all hold together.
    """
    members, others = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if min(len(members), len(others)) < 10:
        raise ValueError(
            f"an audit needs ten scores of each kind, and better a thousand: got {len(members)} and {len(others)}"
        )
    every, each = np.concatenate([members, others]), 1 - (1 - confidence) / (2 * len(_SHARES))
    bound = 0.0
    for share in _SHARES:
        high, low = np.quantile(every, 1 - share), np.quantile(every, share)
        above = int(np.sum(members > high)), len(members), int(np.sum(others > high)), len(others)
        below = int(np.sum(others < low)), len(others), int(np.sum(members < low)), len(members)
        bound = max(bound, epsilon_of_counts(*above, delta, each), epsilon_of_counts(*below, delta, each))
    return bound


def epsilon_one_run(
    members: Any, others: Any, delta: float, confidence: float = 0.95, guesses: int | None = None
) -> float:
    """A lower bound on epsilon from one run with canaries, each of which was in it or not by a coin.

    Half of the `guesses` (by default a tenth of all) are that the highest scores are members', half that the
    lowest are not. Under (epsilon, 0) right guesses are at most binomial with probability exp(epsilon) / (1 +
    exp(epsilon)); a delta adds the term of theorem 5.2 to the probability of that many.
    """
    members, others = np.asarray(members, np.float64), np.asarray(others, np.float64)
    number = len(members) + len(others)
    each = max(1, number // 20) if guesses is None else guesses // 2
    scores = np.concatenate([members, others])
    of = np.concatenate([np.ones(len(members), bool), np.zeros(len(others), bool)])
    order = np.argsort(scores, kind="stable")
    right = int(np.sum(of[order[-each:]]) + np.sum(~of[order[:each]]))
    made = 2 * each

    def chance(epsilon: float) -> float:
        """An upper bound on the probability of that many right guesses under this epsilon."""
        p = 1 / (1 + math.exp(-epsilon))
        tail = binom.sf(right - 1, made, p)
        if delta == 0:
            return float(tail)
        i = np.arange(1, right + 1)
        sums = binom.cdf(right - 1, made, p) - binom.cdf(right - 1 - i, made, p)
        return float(tail + 2 * number * delta * max(0.0, np.max(sums / i)))

    wanted = 1 - confidence
    if chance(0.0) > wanted:
        return 0.0
    return (
        float(brentq(lambda epsilon: chance(epsilon) - wanted, 0.0, _MOST))
        if chance(_MOST) > wanted
        else _MOST
    )


class OneShot(NamedTuple):
    """The estimate of epsilon from the canaries of a run."""

    epsilon: float
    """An estimate, not a bound."""
    cosines: np.ndarray
    """[k] cosines of each canary's direction and the model's change."""
    mean: float
    spread: float


def one_shot(canaries: Any, way: Any, delta: float, fit_spread: bool = False) -> OneShot:
    """An estimate of the epsilon at `delta` from the cosines of canaries [k, d] and the change [d] of a
    model.

    Without a canary in the run its cosine is N(0, 1 / d). With it the cosine is taken as N(mean, spread^2),
    with the mean of those seen and a spread of 1 / sqrt(d), or with `fit_spread` theirs, which is far noisier
    with few canaries or if the mechanism changes the spread."""
    canaries, way = np.asarray(canaries, np.float64), np.asarray(way, np.float64)
    if canaries.ndim != 2 or canaries.shape[1:] != way.shape:
        raise ValueError(
            f"canaries are [k, d] and the way of the model is [d], got {list(canaries.shape)} and {list(way.shape)}"
        )
    lengths = np.linalg.norm(canaries, axis=1) * max(np.linalg.norm(way), 1e-300)
    cosines = canaries @ way / lengths
    usual = 1 / math.sqrt(canaries.shape[1])
    mean, spread = float(cosines.mean()), float(cosines.std(ddof=1)) if fit_spread else usual
    return OneShot(epsilon_between(0.0, usual, max(mean, 0.0), spread, delta), cosines, mean, spread)


def epsilon_between(mean: float, spread: float, other: float, other_spread: float, delta: float) -> float:
    """The epsilon at `delta` between two normal distributions: the least for which neither has more than
    delta above exp(epsilon) times the other."""

    def delta_of(epsilon: float) -> float:
        return max(
            _above(mean, spread, other, other_spread, epsilon),
            _above(other, other_spread, mean, spread, epsilon),
        )

    if delta_of(0.0) <= delta:
        return 0.0
    high = 1.0
    while delta_of(high) > delta:
        high *= 2
        if high > 1e5:
            return math.inf
    return float(brentq(lambda epsilon: delta_of(epsilon) - delta, 0.0, high))


def _above(m: float, s: float, n: float, t: float, epsilon: float) -> float:
    """P[S] - exp(epsilon) Q[S] for the S where P = N(m, s^2) has more than exp(epsilon) times Q = N(n, t^2):
    where a x^2 + b x + c > 0."""
    a = (1 / t**2 - 1 / s**2) / 2
    b = m / s**2 - n / t**2
    c = (n**2 / t**2 - m**2 / s**2) / 2 + math.log(t / s) - epsilon
    if abs(a) * max(s, t) ** 2 < 1e-9:
        if b == 0:
            return max(0.0, 1 - math.exp(epsilon)) if c > 0 else 0.0
        parts = [(-c / b, math.inf)] if b > 0 else [(-math.inf, -c / b)]
    else:
        root = b * b - 4 * a * c
        if root <= 0:
            parts = [(-math.inf, math.inf)] if a > 0 else []
        else:
            low, high = sorted(((-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)))
            parts = [(-math.inf, low), (high, math.inf)] if a > 0 else [(low, high)]
    total = 0.0
    for low, high in parts:
        p = _between((low - m) / s, (high - m) / s)
        q = _between((low - n) / t, (high - n) / t)
        total += p - (math.exp(epsilon + math.log(q)) if q > 0 else 0.0)
    return total


def _between(low: float, high: float) -> float:
    """The probability of N(0, 1) between these, with all digits in both tails."""
    return float(norm.cdf(high) - norm.cdf(low)) if high < 0 else float(norm.sf(low) - norm.sf(high))
