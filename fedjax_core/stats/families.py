"""The families of generalised linear models, each with its usual link: what one row adds to the sums, as a
function of eta = x'beta.

    gaussian            y = eta + noise              identity
    binomial            P(y = 1) = 1 / (1 + e^-eta)  logit; y is 0 or 1
    poisson             E y = e^eta                  log
    negative binomial   E y = m = e^eta, var y = m + alpha m^2                  log

McCullagh and Nelder, "Generalized Linear Models", 1989.

>>> rows("poisson", np.array([2.0]), np.array([0.0])).score.tolist()
[1.0]
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, gammaln, xlogy

FAMILIES = ("binomial", "gaussian", "poisson", "negative binomial")


class Rows(NamedTuple):
    """Terms of each row [rows]: log-likelihood, deviance, Pearson's chi-square, the score d l / d eta, and
    minus the score's slope."""

    log_likelihood: np.ndarray
    deviance: np.ndarray
    pearson: np.ndarray
    score: np.ndarray
    slope: np.ndarray
    """The observed slope."""
    expected: np.ndarray
    """The expected slope, which is the same for the canonical link."""


def rows(family: str, y: np.ndarray, eta: np.ndarray, alpha: float = 1.0) -> Rows:
    """The terms of each row. The gaussian log-likelihood stays 0, as it needs the sum of squares over all
    rows."""
    with np.errstate(over="ignore", invalid="ignore"):  # a step that is too long is halved
        if family == "gaussian":
            square = (y - eta) ** 2
            return Rows(np.zeros_like(eta), square, square, y - eta, np.ones_like(eta), np.ones_like(eta))
        if family == "binomial":
            m = expit(eta)
            log_likelihood, v = y * eta - np.logaddexp(0, eta), expit(eta) * expit(-eta)
            odds = np.exp(np.where(y > 0.5, -eta, eta))  # odds of what did not happen: (y - m)^2 / v
            return Rows(log_likelihood, -2 * log_likelihood, odds, np.where(y > 0.5, expit(-eta), -m), v, v)
        m = np.exp(eta)
        if family == "poisson":
            deviance = 2 * (xlogy(y, y) - y * eta - (y - m))
            return Rows(y * eta - m - gammaln(y + 1), deviance, (y - m) ** 2 / m, y - m, m, m)
        log1 = np.log1p(alpha * m)
        deviance = 2 * (xlogy(y, y) - y * eta - (y + 1 / alpha) * (np.log1p(alpha * y) - log1))
        log_likelihood = xlogy(y, alpha) + y * eta - (y + 1 / alpha) * log1
        log_likelihood = log_likelihood + gammaln(y + 1 / alpha) - gammaln(1 / alpha) - gammaln(y + 1)
        v = 1 + alpha * m
        return Rows(
            log_likelihood, deviance, (y - m) ** 2 / (m * v), (y - m) / v, m * (1 + alpha * y) / v**2, m / v
        )


def wrong(family: str, y: np.ndarray) -> np.ndarray:
    """[rows] bool: outcomes that the family cannot have."""
    if family == "gaussian":
        return np.zeros(len(y), bool)
    return (y != 0) & (y != 1) if family == "binomial" else y < 0


def start(family: str, mean: float) -> float:
    """The intercept of a model without covariates."""
    if family == "gaussian":
        return mean
    mean = min(max(mean, 1e-6), 1 - 1e-6) if family == "binomial" else max(mean, 1e-6)
    return float(np.log(mean / (1 - mean))) if family == "binomial" else float(np.log(mean))
