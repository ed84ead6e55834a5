"""Calibration of risks from sums of sites: Brier score, calibration curve, intercept, slope and the
integrated calibration index.

    in the large   y ~ logistic(a + logit p)            a = 0 where as many have the outcome as were expected
    slope          y ~ logistic(a + b logit p)          b < 1: risks are too extreme
    smooth         y ~ logistic(a + s(logit p))         s a natural cubic spline with public knots
    ICI            mean |smooth(p) - p| over people     (Austin and Steyerberg, Statistics in Medicine 38, 2019, by loess there)

Each fit is the pooled fit, by Newton's method: a visit takes coefficients to all sites, and each site sends a
gradient and an information matrix, which add (`recalibration_sums`). The same fit recalibrates a released
model (`recalibrated`).

>>> outcome, risk = np.array([0, 1, 0, 1, 1, 0]), np.array([0.2, 0.7, 0.4, 0.6, 0.3, 0.5])
>>> found = recalibrate(lambda told: recalibration_sums(outcome, risk, told, SLOPE), SLOPE)
>>> f"{found.coefficients[1]:.3f}"
'1.557'
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from fedjax_core.clinical.performance import Estimate, check
from fedjax_core.clinical.ranks import bins_of

INTERCEPT, SLOPE = "intercept", "slope"
Basis = str | tuple[float, ...]
"""`INTERCEPT`, `SLOPE`, or the knots of a natural cubic spline on the scale of log odds, at least three."""
_SMALLEST = 1e-12  # risks of 0 and 1 have no log odds


class ErrorSums(NamedTuple):
    """What a site sends for a Brier score."""

    people: int
    squares: float  # sum of (risk - outcome)^2
    fourth: float  # sum of (risk - outcome)^4


class BinSums(NamedTuple):
    """What a site sends for a calibration curve, for each bin."""

    people: np.ndarray  # [G]
    risk: np.ndarray  # [G] sum
    outcome: np.ndarray  # [G] sum


class RecalibrationSums(NamedTuple):
    """What a site sends at one visit of a fit with d coefficients."""

    gradient: np.ndarray  # [d]
    information: np.ndarray  # [d, d]


class DistanceSums(NamedTuple):
    """What a site sends for the integrated calibration index."""

    people: int
    distance: float


class Recalibration(NamedTuple):
    """A fit of outcomes on log odds of risk: coefficients [d], their covariance [d, d], and the basis."""

    coefficients: np.ndarray
    covariance: np.ndarray
    basis: Basis

    def interval(self, i: int, level: float = 0.95) -> Estimate:
        """Coefficient i with Wald's interval."""
        value, reach = (
            float(self.coefficients[i]),
            norm.ppf(0.5 + level / 2) * float(np.sqrt(self.covariance[i, i])),
        )
        return Estimate(value, value - reach, value + reach)


def error_sums(outcome: np.ndarray, risk: np.ndarray) -> ErrorSums:
    """The site half of `brier`."""
    check(np.asarray(outcome, float), np.asarray(risk, float))
    square = (np.asarray(risk, float) - outcome) ** 2
    return ErrorSums(len(square), float(square.sum()), float((square**2).sum()))


def brier(sums: ErrorSums, level: float = 0.95) -> Estimate:
    """The mean squared error of risks, with the normal interval of a mean."""
    value = sums.squares / sums.people if sums.people else np.nan
    if sums.people < 2:
        return Estimate(value, np.nan, np.nan, "no interval of fewer than two people")
    spread = max(0.0, sums.fourth / sums.people - value**2) / (sums.people - 1)
    reach = norm.ppf(0.5 + level / 2) * float(np.sqrt(spread))
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach))


def bin_sums(outcome: np.ndarray, risk: np.ndarray, edges: np.ndarray) -> BinSums:
    """The site half of `curve`."""
    outcome, risk = np.asarray(outcome, float), np.asarray(risk, float)
    check(outcome, risk)
    where, bins = bins_of(risk, edges), len(edges) - 1
    return BinSums(
        np.bincount(where, minlength=bins), *(np.bincount(where, each, bins) for each in (risk, outcome))
    )


def curve(sums: BinSums, minimum: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean risk, share with the outcome, people) of each bin with at least `minimum` people."""
    here = sums.people >= max(1, minimum)
    people = sums.people[here]
    return sums.risk[here] / people, sums.outcome[here] / people, people


def expected_calibration_error(sums: BinSums) -> float:
    """The mean over people of |mean risk - share with the outcome| in each one's bin."""
    return float(np.abs(sums.risk - sums.outcome).sum() / sums.people.sum())


def recalibration_sums(
    outcome: np.ndarray, risk: np.ndarray, coefficients: np.ndarray, basis: Basis
) -> RecalibrationSums:
    """The site half of one visit: gradient and information of the log likelihood at these coefficients."""
    outcome, risk = np.asarray(outcome, float), np.asarray(risk, float)
    check(outcome, risk)
    columns, offset = _columns(risk, basis)
    mean = expit(columns @ coefficients + offset)
    return RecalibrationSums(
        columns.T @ (outcome - mean), (columns * (mean * (1 - mean))[:, None]).T @ columns
    )


def recalibrate(
    visit: Callable[[np.ndarray], RecalibrationSums], basis: Basis = SLOPE, *, visits: int = 50
) -> Recalibration:
    """The pooled fit: `visit` sends coefficients [d] to all sites and returns the sum of their replies.

    Raises ValueError where the fit does not converge: one outcome only, all risks alike, or risks that
    separate the outcomes."""
    coefficients = _begin(basis)
    for _ in range(visits):
        gradient, information = visit(coefficients)
        try:
            step = np.linalg.solve(information, gradient)
            condition = float(np.linalg.cond(information))
        except np.linalg.LinAlgError:
            condition, step = np.inf, coefficients
        if not condition < 1e14 or not np.isfinite(step).all():
            break
        coefficients = coefficients + step * min(1.0, 5.0 / max(1e-300, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-10:
            return Recalibration(coefficients, np.linalg.inv(visit(coefficients).information), basis)
    raise ValueError(
        f"the calibration fit ({basis}) does not settle: outcomes are all the same, risks are all alike, or risks separate the "
        "outcomes perfectly. Take more people, or the calibration curve."
    )


def recalibrated(risk: np.ndarray, fit: Recalibration) -> np.ndarray:
    """The recalibrated risks [n] of a fit."""
    columns, offset = _columns(np.asarray(risk, float), fit.basis)
    return expit(columns @ fit.coefficients + offset)


def distance_sums(risk: np.ndarray, fit: Recalibration) -> DistanceSums:
    """The site half of the integrated calibration index: how far risks are from the fitted smooth curve."""
    return DistanceSums(len(risk), float(np.abs(recalibrated(risk, fit) - risk).sum()))


def integrated_calibration_index(sums: DistanceSums) -> float:
    """The mean distance of people's risks from the smooth calibration curve."""
    return sums.distance / sums.people if sums.people else float("nan")


def _begin(basis: Basis) -> np.ndarray:
    if basis == INTERCEPT:
        return np.zeros(1)
    coefficients = np.zeros(2 if basis == SLOPE else len(basis))
    coefficients[1] = 1.0  # risks as they are
    return coefficients


def _columns(risk: np.ndarray, basis: Basis) -> tuple[np.ndarray, np.ndarray]:
    """(columns [n, d], offset [n]) of the fit."""
    x = logit(np.clip(risk, _SMALLEST, 1 - _SMALLEST))
    if basis == INTERCEPT:
        return np.ones((len(x), 1)), x
    if basis == SLOPE:
        return np.stack([np.ones_like(x), x], axis=1), np.zeros_like(x)
    knots = np.asarray(basis, float) if not isinstance(basis, str) else np.zeros(0)
    if len(knots) < 3 or (np.diff(knots) <= 0).any():
        raise ValueError(
            f"a calibration basis is {INTERCEPT!r}, {SLOPE!r} or at least three rising knots, got {basis!r}"
        )
    return np.concatenate([np.ones((len(x), 1)), _natural_spline(x, knots)], axis=1), np.zeros_like(x)


def _natural_spline(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """x and its cubic terms [n, k - 1], which are straight lines beyond the outer knots (Harrell, Regression
    Modeling Strategies)."""
    last, before = knots[-1], knots[-2]

    def cube(knot: float) -> np.ndarray:
        return np.maximum(x - knot, 0) ** 3

    terms = [
        (cube(t) - cube(before) * (last - t) / (last - before) + cube(last) * (before - t) / (last - before))
        / (last - knots[0]) ** 2
        for t in knots[:-2]
    ]
    return np.stack([x, *terms], axis=1)
