"""Generalised linear mixed models over sites: logistic and Poisson regression with a random intercept for
each site, of the pooled rows.

    eta = X beta + offset + s u_site,   u ~ N(0, 1)
    site:     L = log of the integral of prod f(y | eta) phi(u) du, its gradient and information in (beta, s);
              the integral by adaptive Gauss-Hermite quadrature around the u that fits the site best
    centre:   (beta, s) <- (beta, s) + H^-1 g of the sums, by the size of H's eigenvalues, as L need not be concave in s

A site's integral uses that site's rows alone, so the sums give the pooled log-likelihood, exact but for the
quadrature: with 25 points the error is that of rounding. `beta` is conditional on a site's u; averaged over
sites, odds ratios are nearer to 1. Pinheiro and Bates, "Approximations to the log-likelihood function in the
nonlinear mixed-effects model", JCGS 1995.

>>> from fedjax_core.data.clients import Clients
>>> table = {"site": list("aaaabbbbcccc"), "sick": [0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0], "x": [1.0, 2, 3, 4] * 3}
>>> fit = glmm("sick ~ x", Clients.from_table(table, by="site"), family="binomial")
>>> fit.sites, round(fit.coefficients["x"], 3)
(3, 0.424)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.polynomial.hermite import hermgauss
from scipy.special import logsumexp
from scipy.stats import chi2

from fedjax_core.stats import families
from fedjax_core.stats.base import Limits, Source, Sums, ask, count, names_of, total
from fedjax_core.stats.formula import read
from fedjax_core.stats.glm import GlmStep, first_step, fit_steps, prepared, rows_of, unscaled
from fedjax_core.stats.inference import Estimates
from fedjax_core.stats.newton import NoEstimate, inverse
from fedjax_core.stats.survey import Missing
from fedjax_core.stats.table import Table

_MOST, _LEAST, _POINTS = 100, 10, 200


@dataclass(frozen=True)
class GlmmStep:
    """The site half at one (beta, s): the site's integral, its gradient and information, and the intercept s
    u that fits it best."""

    model: GlmStep
    """Columns, family and beta."""
    sd: float
    points: int

    def __post_init__(self) -> None:
        if not _LEAST <= self.points <= _POINTS or self.model.family == "gaussian" or self.model.scores:
            raise ValueError(
                f"a mixed model has {_LEAST} to {_POINTS} points, and a family that is not gaussian"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return self.model.columns

    def sums(self, table: Table, limits: Limits) -> Sums:
        x, y, offset = rows_of(self.model, table, limits)
        x = (x - np.array(self.model.shift)) / np.array(self.model.scale)
        eta = x @ np.array(self.model.beta) + offset

        def rows_at(u: float) -> families.Rows:
            return families.rows(self.model.family, y, eta + self.sd * u, self.model.alpha)

        limits.weights(rows_at(0.0).expected, table.complete(self.model.used).person_ids)
        mode, curvature = _mode(rows_at, self.sd)
        z, w = hermgauss(self.points)
        p = x.shape[1]
        each, gradients, bends = (
            np.zeros(self.points),
            np.zeros((self.points, p + 1)),
            np.zeros((self.points, p + 1, p + 1)),
        )
        nodes = mode + np.sqrt(2 / curvature) * z
        for k, u in enumerate(nodes.tolist()):
            terms = rows_at(u)
            each[k] = terms.log_likelihood.sum() - u**2 / 2 + z[k] ** 2 + np.log(w[k])
            with_u = np.concatenate([x, np.full((len(y), 1), u)], axis=1)
            gradients[k] = with_u.T @ terms.score
            bends[k] = (with_u * terms.slope[:, None]).T @ with_u
        with np.errstate(all="ignore"):  # a step that is too long is halved
            whole = logsumexp(each)
            share = np.exp(each - whole)
        mean = share @ gradients
        return {
            "log_likelihood": np.asarray(whole - np.log(np.pi * curvature) / 2),
            "gradient": mean,
            "information": np.einsum("k,kij->ij", share, bends)
            - (gradients * share[:, None]).T @ gradients
            + np.outer(mean, mean),
            "effect": np.asarray(self.sd * mode),
            "rows": count(len(y)),
        }


def _mode(rows_at: Callable[[float], families.Rows], sd: float) -> tuple[float, float]:
    """(the u where log f - u^2 / 2 is largest, minus its second slope there)."""
    u = 0.0
    now = rows_at(u)
    for _ in range(_MOST):
        curvature = 1 + sd**2 * float(now.expected.sum())  # expected: above 0 for every family
        step = (sd * float(now.score.sum()) - u) / curvature
        for _ in range(_MOST):
            after = rows_at(u + step)
            if (
                float(after.log_likelihood.sum()) - (u + step) ** 2 / 2
                >= float(now.log_likelihood.sum()) - u**2 / 2 - 1e-12
            ):
                break
            step /= 2
        u, now = u + step, after
        if abs(step) < 1e-12 * (1 + abs(u)) or not np.isfinite(step):
            break
    return u, 1 + sd**2 * float(now.slope.sum())


@dataclass(frozen=True, repr=False)
class Glmm(Estimates):
    """A fitted mixed model: coefficients of the columns, and how far sites lie apart."""

    random_intercept_sd: float
    random_intercept_sd_error: float
    """Its standard error; NaN where the sd is 0."""
    log_likelihood: float
    null_log_likelihood: float
    """The largest without differences between sites."""
    site_effects: dict[Any, float]
    """{site: its most likely intercept, less the common one}."""
    rows: int
    dropped: int
    sites: int
    rounds: int
    family: str

    @property
    def random_intercept_variance(self) -> float:
        """The variance of intercepts between sites."""
        return self.random_intercept_sd**2

    @property
    def sites_p_value(self) -> float:
        """p of sites not differing: half of chi-square's, as a variance is not below 0 (Self and Liang, JASA
        1987)."""
        gain = 2 * (self.log_likelihood - self.null_log_likelihood)
        return float(chi2.sf(gain, 1) / 2) if gain > 1e-9 else 1.0

    @property
    def aic(self) -> float:
        """Akaike's criterion."""
        return 2 * (len(self.names) + 1) - 2 * self.log_likelihood

    def facts(self) -> list[str]:
        """Further facts about the fit, a line each."""
        left = f", {self.dropped} with missing values left out" if self.dropped else ""
        return [
            f"{self.rows} rows of {self.sites} sites{left}; {self.rounds} rounds",
            f"log-likelihood {self.log_likelihood:.4f}, AIC {self.aic:.2f}",
            f"sd between sites {self.random_intercept_sd:.4f} ({self.random_intercept_sd_error:.4f}), p of none {self.sites_p_value:.4f}",
        ]


def glmm(
    formula: str,
    source: Source,
    family: Literal["binomial", "poisson", "negative binomial"] = "binomial",
    *,
    offset: str | None = None,
    alpha: float = 1.0,
    points: int = 25,
    missing: Missing = "refuse",
) -> Glmm:
    """The maximum-likelihood fit with a random intercept by site over the rows of all clients or sites.

    `points`: of the quadrature; the rest as in `glm`. Raises ValueError where fewer than two sites have rows,
    and `NoEstimate` where there is no finite estimate.
    """
    if family not in ("binomial", "poisson", "negative binomial"):
        raise ValueError(
            f"family={family!r} is none of binomial, poisson and negative binomial; fc.stats.lmm is of a gaussian one"
        )
    if not _LEAST <= points <= _POINTS:
        raise ValueError(f"points={points} is not between {_LEAST} and {_POINTS}")
    parsed = read(formula)
    moments, known = prepared(parsed, source, family, offset, missing)
    step, _ = first_step(source, moments, float(alpha), parsed.outcome_names[0])
    fixed = fit_steps(source, step)
    names = [name for name, rows in known.by_site.items() if rows]
    if len(names) < 2:
        raise ValueError(
            f"a random intercept by site needs two sites with rows at least, got {len(names)}: use fc.stats.glm"
        )

    def site_sums_at(theta: np.ndarray) -> list[Sums]:
        return ask(source, GlmmStep(replace(step, beta=tuple(theta[:-1].tolist())), float(theta[-1]), points))

    null = total(site_sums_at(np.append(fixed.beta, 0.0)))
    theta, site_sums, rounds = _climb(site_sums_at, np.append(fixed.beta, 0.5))
    sums = total(site_sums)
    p = len(theta) - 1
    if sums["log_likelihood"] <= null["log_likelihood"] or abs(theta[-1]) < 1e-6:
        theta = np.append(fixed.beta, 0.0)
        site_sums = site_sums_at(theta)
        sums = total(site_sums)
    covariance = np.full((p + 1, p + 1), np.nan)
    free = p + (theta[-1] != 0)
    covariance[:free, :free] = inverse(sums["information"][:free, :free])
    back = unscaled(step)
    effects = {
        site: float(one["effect"])
        for site, one in zip(names_of(source), site_sums, strict=True)
        if one["rows"]
    }
    ratio = "odds ratio" if family == "binomial" else "rate ratio"
    return Glmm(
        step.design.names, back @ theta[:p], back @ covariance[:p, :p] @ back.T, float(abs(theta[-1])), float(np.sqrt(covariance[-1, -1])),
        float(sums["log_likelihood"]), float(null["log_likelihood"]), effects,
        int(sums["rows"]), known.dropped, len(names), fixed.rounds + rounds, family,
        title=f"{family} mixed model, random intercept by site: {formula}", ratio=ratio,
    )  # fmt: skip


def _climb(
    site_sums_at: Callable[[np.ndarray], list[Sums]], theta: np.ndarray
) -> tuple[np.ndarray, list[Sums], int]:
    """(theta of the largest log-likelihood, the sites' sums there, rounds), by Newton's method made to climb
    where the log-likelihood is not concave."""
    site_sums = site_sums_at(theta)
    sums, rounds, before = total(site_sums), 1, np.inf
    while rounds < _MOST:
        size = np.sqrt(np.maximum(np.abs(np.diag(sums["information"])), 1e-12))
        values, vectors = np.linalg.eigh(sums["information"] / np.outer(size, size))
        values = np.maximum(np.abs(values), 1e-8 * np.abs(values).max())
        step = vectors @ ((vectors.T @ (sums["gradient"] / size)) / values) / size
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        moved = float(np.abs(step).max() / (1 + np.abs(theta).max()))
        if moved < 1e-10 or (moved < 1e-8 and moved > before / 10):
            return theta, site_sums, rounds
        before = moved
        for _ in range(40):
            tried = site_sums_at(theta + step)
            after, rounds = total(tried), rounds + 1
            gain = float(after["log_likelihood"] - sums["log_likelihood"])
            if (
                np.isfinite(gain)
                and np.isfinite(after["information"]).all()
                and gain >= -1e-10 * (1 + abs(float(sums["log_likelihood"])))
            ):
                break
            step = step / 2
        else:
            return theta, site_sums, rounds
        theta, site_sums, sums = theta + step, tried, after
    raise NoEstimate(
        f"no estimate after {_MOST} rounds: the sites' intercepts may have no finite spread; use glm with site_effects='fixed'"
    )
