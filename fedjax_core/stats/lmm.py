"""A linear mixed model with a random intercept for each site, from one message of sums a site: the pooled
fit, without loss.

    y = X beta + u_site + e,   u ~ N(0, theta s2),  e ~ N(0, s2)

    site:     n, the means m of (X, y), and the centred products C = sum (z - m)(z - m)', z = (X, y)
    centre:   Z' V^-1 Z = sum C + n / (1 + n theta) m m'    for any theta, hence beta, s2 and the likelihood, which is maximised over theta

Standard errors are by the observed information of beta and theta together, as in statsmodels: where few sites
leave theta uncertain, they are a little above those that take theta as known.

Luo et al., "DLMM as a lossless one-shot algorithm for collaborative multi-site distributed linear mixed
models", Nature Comm. 2022.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabbcc"), "y": [1.0, 2, 5, 7, 9, 12], "x": [0, 1, 0, 1, 0, 1]}, by="site")
>>> fit = lmm("y ~ x", clients)
>>> round(fit.coefficients["x"], 6), round(fit.random_intercept_variance, 6), round(fit.residual_variance, 6)
(2.0, 20.0, 0.5)
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize_scalar

from fedjax_core.stats.base import Limits, Source, Sums, ask, count, names_of
from fedjax_core.stats.expressions import Expression, check
from fedjax_core.stats.formula import Design, read
from fedjax_core.stats.inference import Estimates
from fedjax_core.stats.newton import NoEstimate, check_independent
from fedjax_core.stats.survey import Missing, survey
from fedjax_core.stats.table import Table
from fedjax_core.stats.visits import Components, Visits, rows_of, unflattened
from fedjax_core.stats.visits import fit as fit_visits


@dataclass(frozen=True)
class Products:
    """The site half: rows, means and centred products of a design's columns and, last, of the outcome."""

    design: Design
    outcome: Expression
    used: tuple[str, ...]

    def __post_init__(self) -> None:
        check(self.outcome)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        z = rows_of(self.design, self.outcome, self.used, table.complete(self.used), limits)
        mean = z.mean(axis=0) if len(z) else np.zeros(z.shape[1])
        return {"rows": count(len(z)), "mean": mean, "products": (z - mean).T @ (z - mean)}


@dataclass(frozen=True, repr=False)
class Lmm(Estimates):
    """A fitted linear mixed model."""

    random_intercept_variance: float
    residual_variance: float
    log_likelihood: float
    """Restricted, where the fit is by REML."""
    site_effects: dict[Any, float]
    """{site: the predicted u}."""
    rows: int
    dropped: int
    method: str
    person_intercept_variance: float | None = None
    """Between the people of a site; None without `person`."""

    @property
    def icc(self) -> float:
        """The share of the variance that is between sites."""
        rest = self.residual_variance + (self.person_intercept_variance or 0.0)
        return self.random_intercept_variance / (self.random_intercept_variance + rest)

    def facts(self) -> list[str]:
        """Further facts about the fit, a line each."""
        left = f", {self.dropped} with missing values left out" if self.dropped else ""
        people = (
            ""
            if self.person_intercept_variance is None
            else f"between a site's people {self.person_intercept_variance:.4f}, "
        )
        return [
            f"{self.rows} rows of {len(self.site_effects)} sites{left}; {self.method}, log-likelihood {self.log_likelihood:.4f}",
            f"variance between sites {self.random_intercept_variance:.4f}, {people}residual {self.residual_variance:.4f} "
            f"(ICC {self.icc:.4f})",
        ]


def lmm(
    formula: str,
    source: Source,
    *,
    person: str | None = None,
    method: Literal["reml", "ml"] = "reml",
    missing: Missing = "refuse",
) -> Lmm:
    """The fit with a random intercept by site over the rows of all clients or sites, by restricted or full
    maximum likelihood.

    `person`: the column that says whose a row is, for people with several rows: each then has a random intercept
    within the site. At real sites whose own files name a column of persons, it is that one, and it stays there.
    Raises ValueError where values are missing (see `missing`), where there are fewer than two sites with
    rows or no site has two, and for columns that depend on one another.
    """
    if method not in ("reml", "ml"):
        raise ValueError(f'method={method!r} is not known: "reml" or "ml"')
    parsed = read(formula)
    if len(parsed.outcomes) != 1:
        raise ValueError(f"{formula!r} needs one outcome before the ~, got {len(parsed.outcomes)}")
    known = survey(source, parsed.columns, parsed.categories, missing)
    design = parsed.design(known.kinds, known.levels)
    outcome, used = parsed.outcomes[0], tuple(known.kinds)
    statistic = Products(design, outcome, used) if person is None else Visits(design, outcome, used, person)
    site_sums = ask(source, statistic)
    names = [name for name, one in zip(names_of(source), site_sums, strict=True) if one["rows"]]
    if len(names) < 2:
        raise ValueError(
            f"a random intercept by site needs two sites with rows at least, got {len(names)}: use fc.stats.glm"
        )
    n = np.array([int(one["rows"]) for one in site_sums if one["rows"]], np.float64)
    if person is not None:
        return _of_visits(
            formula,
            [unflattened(one) for one in site_sums if one["rows"]],
            names,
            design,
            method,
            known.dropped,
            person,
        )
    if n.max() < 2:
        raise NoEstimate(
            "every site has one row, so what differs between sites and between rows is the same: use fc.stats.glm"
        )
    mean = np.stack([one["mean"] for one in site_sums if one["rows"]])
    centred = np.sum([one["products"] for one in site_sums if one["rows"]], axis=0)
    shift = np.zeros(len(design.names) + 1)
    # The intercept absorbs a shift of all columns, so that large means cost no digits.
    if "Intercept" in design.names:
        shift = np.where([name == "Intercept" for name in (*design.names, "")], 0.0, n @ mean / n.sum())
    fit = _Profile(n, mean - shift, centred, method == "reml")
    check_independent(fit.products(0.0)[:-1, :-1], design.names)
    theta = fit.best()
    beta, covariance, s2, log_likelihood = fit.at(theta)
    covariance = fit.joint(theta, beta, covariance, s2)
    residual = (mean - shift)[:, -1] - (mean - shift)[:, :-1] @ beta
    effects = dict(zip(names, (n * theta / (1 + n * theta) * residual).tolist(), strict=True))
    beta, covariance = _moved_back(beta, covariance, shift, design)
    return Lmm(
        design.names, beta, covariance, theta * s2, s2, log_likelihood, effects, int(n.sum()), known.dropped, method.upper(),
        title=f"linear mixed model, random intercept by site: {formula}",
    )  # fmt: skip


def _moved_back(
    beta: np.ndarray, covariance: np.ndarray, shift: np.ndarray, design: Design
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the columns themselves and their covariance, from those of columns less `shift`."""
    if "Intercept" not in design.names:
        return beta, covariance
    intercept = design.names.index("Intercept")
    back = np.eye(len(beta))
    back[intercept] -= shift[:-1]
    beta, covariance = back @ beta, back @ covariance @ back.T
    beta[intercept] += shift[-1]
    return beta, covariance


def _of_visits(
    formula: str,
    sums: list[dict[str, np.ndarray]],
    names: list[Any],
    design: Design,
    method: str,
    dropped: int,
    person: str,
) -> Lmm:
    """The fit with random intercepts by site and by person within it."""
    rows = sum(int(one["rows"]) for one in sums)
    shift = np.zeros(len(design.names) + 1)
    if "Intercept" in design.names:
        whole = sum((one["visits"] * one["people"]) @ one["mean"] for one in sums) / rows
        shift = np.where([name == "Intercept" for name in (*design.names, "")], 0.0, whole)
    components: Components = fit_visits(sums, design.names, shift, method == "reml")
    beta, covariance = _moved_back(components.beta, components.covariance, shift, design)
    return Lmm(
        design.names, beta, covariance, components.site, components.residual, components.log_likelihood,
        dict(zip(names, components.site_effects.tolist(), strict=True)), rows, dropped, method.upper(), components.person,
        title=f"linear mixed model, random intercepts by site and by {person} within it: {formula}",
    )  # fmt: skip


@dataclass(frozen=True)
class _Profile:
    """The likelihood as a function of theta, maximised over all else."""

    n: np.ndarray  # [N]
    mean: np.ndarray  # [N, P + 1]
    centred: np.ndarray  # [P + 1, P + 1]
    restricted: bool

    def products(self, theta: float) -> np.ndarray:
        """Z' V^-1 Z times s2."""
        return self.centred + np.einsum("s,si,sj->ij", self.n / (1 + self.n * theta), self.mean, self.mean)

    def at(self, theta: float) -> tuple[np.ndarray, np.ndarray, float, float]:
        """(beta, its covariance, s2, the log-likelihood)."""
        whole = self.products(theta)
        a, b = whole[:-1, :-1], whole[:-1, -1]
        beta = np.linalg.solve(a, b)
        df = self.n.sum() - (len(beta) if self.restricted else 0)
        s2 = max(float(whole[-1, -1] - b @ beta), 1e-300) / float(df)
        twice = df * (np.log(2 * np.pi * s2) + 1) + np.log1p(self.n * theta).sum()
        return (
            beta,
            np.linalg.inv(a) * s2,
            s2,
            -0.5 * float(twice + (np.linalg.slogdet(a)[1] if self.restricted else 0.0)),
        )

    def joint(self, theta: float, beta: np.ndarray, covariance: np.ndarray, s2: float) -> np.ndarray:
        """The covariance of beta from the information of (beta, theta), maximised over s2; `covariance`
        itself where theta is 0."""
        if not theta:
            return covariance
        gain, x = self.n / (1 + self.n * theta), self.mean[:, :-1]
        mean_residual = self.mean[:, -1] - x @ beta
        df = self.n.sum() - (len(beta) if self.restricted else 0)
        first, second = ((gain * mean_residual) ** 2).sum() / s2, 2 * (gain**3 * mean_residual**2).sum() / s2
        information = 0.5 * (second - first**2 / df - (gain**2).sum())
        if self.restricted:
            a_inverse = covariance / s2
            one = a_inverse @ np.einsum("s,si,sj->ij", gain**2, x, x)
            two = a_inverse @ np.einsum("s,si,sj->ij", 2 * gain**3, x, x)
            information -= 0.5 * (np.trace(one @ one) - np.trace(two))
        cross = np.einsum("s,si,s->i", gain**2, x, mean_residual) / s2
        left = information - cross @ covariance @ cross
        return (
            covariance + np.outer(covariance @ cross, covariance @ cross) / left if left > 0 else covariance
        )

    def best(self) -> float:
        """theta where the likelihood is largest, at 0 or inside."""
        steps = np.concatenate([[0.0], np.geomspace(1e-8, 1e6, 113)])
        losses = [-self.at(one)[3] for one in steps]
        i = int(np.argmin(losses))
        if i == 0:
            return 0.0
        low, high = (
            np.log(steps[i - 1]) if i > 1 else np.log(1e-10),
            np.log(steps[min(i + 1, len(steps) - 1)]),
        )
        optimum = minimize_scalar(
            lambda x: -self.at(float(np.exp(x)))[3],
            bounds=(low, high),
            method="bounded",
            options={"xatol": 1e-10},
        )
        return float(np.exp(optimum.x))
