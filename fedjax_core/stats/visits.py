"""A linear mixed model of repeated visits, with a random intercept for each site and for each person within
it, from one message a site.

    y = X beta + u_site + v_person + e,   u ~ N(0, theta s2),  v ~ N(0, phi s2),  e ~ N(0, s2)

    site:     C = sum (z - m_person)(z - m_person)', z = (X, y), and, for its people with m rows each,
              their number, the mean of their means, and the centred products of their means
    centre:   with w = m / (1 + m phi), the sum over people Z' W^-1 Z = C + sum w m_person m_person', and over sites
              Z' V^-1 Z = sum [Z' W^-1 Z - theta / (1 + theta sum w) (sum w m_person)(sum w m_person)']

This is all of the likelihood, for any phi and theta. Nothing is approximated: the fit is that of the pooled
rows.

>>> from fedjax_core.data.clients import Clients
>>> from fedjax_core.stats.lmm import lmm
>>> columns = {"site": list("aaaabbbb"), "patient": [1, 1, 2, 2, 3, 3, 4, 4], "y": [1.0, 2, 5, 6, 11, 12, 13, 14]}
>>> fit = lmm("y ~ 1", Clients.from_table(columns, by="site"), person="patient")
>>> round(fit.residual_variance, 4), round(fit.person_intercept_variance, 4), round(fit.random_intercept_variance, 4)
(0.5, 4.75, 38.0)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from fedjax_core.stats.base import Limits, Sums, count
from fedjax_core.stats.expressions import Expression, check, evaluate
from fedjax_core.stats.formula import Design
from fedjax_core.stats.newton import NoEstimate, check_independent
from fedjax_core.stats.table import Table

_RATIOS = np.concatenate([[0.0], np.geomspace(1e-4, 1e4, 17)])  # of variances, to start the search from
_STEP = 1e-3  # step of log ratios, for derivatives by differences


def rows_of(
    design: Design, outcome: Expression, used: tuple[str, ...], table: Table, limits: Limits
) -> np.ndarray:
    """[rows, P + 1]: the design's columns and, last, the outcome, of a table without missing values, where
    the site's limits let a model of the columns `used` leave."""
    x, y = design.matrix(table), evaluate(outcome, table)
    limits.group(table.person_ids, "people", used)
    limits.model(table, design, x, y, used)
    return np.concatenate([x, y[:, None]], axis=1)


@dataclass(frozen=True)
class Visits:
    """The site half: products of rows within people, and of people's means by how many rows they have.

    The site's own column of persons, or else the column `person`, says whose a row is.
    """

    design: Design
    outcome: Expression
    used: tuple[str, ...]
    person: str

    def __post_init__(self) -> None:
        check(self.outcome)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        table = table.complete(self.used)
        z = rows_of(self.design, self.outcome, self.used, table, limits)
        place = _in_order(self._person_ids(table))
        visits = np.bincount(place)
        means = np.zeros((len(visits), z.shape[1]))
        np.add.at(means, place, z)
        means /= visits[:, None]
        within = z - means[place]
        sizes = np.unique(visits)
        centres = np.zeros((len(sizes), z.shape[1]))
        between = np.zeros((len(sizes), z.shape[1], z.shape[1]))
        for i, size in enumerate(sizes.tolist()):
            limits.group(table.person_ids[visits[place] == size], f"people have {size} rows", self.used)
            centres[i] = means[visits == size].mean(axis=0)
            apart = means[visits == size] - centres[i]
            between[i] = apart.T @ apart
        return {
            "rows": count(len(z)),
            "within": within.T @ within,
            "visits": sizes.astype(np.int64),
            "people": np.array([(visits == size).sum() for size in sizes], np.int64),
            "mean": centres.ravel(),  # flat, as each site has its own number of sizes
            "between": between.ravel(),
        }

    def _person_ids(self, table: Table) -> np.ndarray:
        if table.people is not None or not table.rows:
            return table.person_ids
        if table.missing(self.person).any():
            raise ValueError(
                f"{int(table.missing(self.person).sum())} rows of a site have no {self.person!r}, so it is not known whose they are"
            )
        text = table.kind(self.person) == "text"
        return table.labels(self.person) if text else table.numbers(self.person)


def _in_order(people: np.ndarray) -> np.ndarray:
    """[rows] the person of each row, numbered by first row, so that sums do not depend on the people's
    names."""
    _, first, place = np.unique(people, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[place]


class Components(NamedTuple):
    """A fit to columns less `shift`: coefficients and variances between sites, between people, and of
    rows."""

    beta: np.ndarray
    covariance: np.ndarray
    site: float
    person: float
    residual: float
    log_likelihood: float
    site_effects: np.ndarray


def unflattened(sums: Sums) -> dict[str, np.ndarray]:
    """A site's sums, with means [sizes, P + 1] and products [sizes, P + 1, P + 1] in their shapes; raises
    ValueError where they contradict each other."""
    columns, sizes = len(sums["within"]), len(sums["visits"])
    rows = int((sums["visits"] * sums["people"]).sum()) if len(sums["people"]) == sizes else -1
    if (
        rows != int(sums["rows"])
        or sums["mean"].size != sizes * columns
        or sums["between"].size != sizes * columns**2
    ):
        raise ValueError(
            f"a site's sums of visits are of {rows} rows, and it says that it has {int(sums['rows'])}: they are impossible"
        )
    return {
        **sums,
        "mean": sums["mean"].reshape(sizes, columns),
        "between": sums["between"].reshape(sizes, columns, columns),
    }


def fit(sums: Sequence[Sums], names: tuple[str, ...], shift: np.ndarray, restricted: bool) -> Components:
    """Maximises the (restricted) likelihood over sites with rows."""
    likelihood = _Likelihood(sums, shift, restricted)
    if likelihood.visits.max() < 2:
        raise NoEstimate(
            "every person has one row, so what differs between people and between rows is the same: leave out person="
        )
    check_independent(likelihood.products(0.0, 0.0)[0][:-1, :-1], names)
    ratios = likelihood.best()
    beta, covariance, s2, log_likelihood, effects = likelihood.at(*ratios)
    covariance = likelihood.joint(ratios, covariance)
    return Components(beta, covariance, ratios[1] * s2, ratios[0] * s2, s2, log_likelihood, effects)


class _Likelihood:
    """The likelihood as a function of the two ratios of variances (phi, theta), maximised over all else."""

    def __init__(self, sums: Sequence[Sums], shift: np.ndarray, restricted: bool) -> None:
        self.restricted = restricted
        self.rows = float(sum(int(one["rows"]) for one in sums))
        self.within = np.sum([one["within"] for one in sums], axis=0)
        self.site = np.repeat(np.arange(len(sums)), [len(one["visits"]) for one in sums])
        self.sites = len(sums)
        self.visits, self.people = (
            np.concatenate([one[name] for one in sums]).astype(np.float64) for name in ("visits", "people")
        )
        self.mean = np.concatenate([one["mean"] for one in sums]) - shift
        between = np.concatenate([one["between"] for one in sums])
        self.squares = between + self.people[:, None, None] * np.einsum("ci,cj->cij", self.mean, self.mean)

    def products(self, phi: float, theta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(Z' V^-1 Z times s2, the sum of w [sites], the sum of w times means [sites, P + 1])."""
        w = self.visits / (1 + self.visits * phi)
        total, weighted = np.zeros(self.sites), np.zeros((self.sites, self.mean.shape[1]))
        np.add.at(total, self.site, w * self.people)
        np.add.at(weighted, self.site, (w * self.people)[:, None] * self.mean)
        whole = self.within + np.einsum("c,cij->ij", w, self.squares)
        return (
            whole - np.einsum("s,si,sj->ij", theta / (1 + theta * total), weighted, weighted),
            total,
            weighted,
        )

    def at(self, phi: float, theta: float) -> tuple[np.ndarray, np.ndarray, float, float, np.ndarray]:
        """(beta, its covariance, s2, the log-likelihood, the sites' effects)."""
        whole, total, weighted = self.products(phi, theta)
        a, b = whole[:-1, :-1], whole[:-1, -1]
        beta = np.linalg.solve(a, b)
        df = self.rows - (len(beta) if self.restricted else 0)
        s2 = max(float(whole[-1, -1] - b @ beta), 1e-300) / df
        determinant = (self.people * np.log1p(self.visits * phi)).sum() + np.log1p(theta * total).sum()
        twice = df * (np.log(2 * np.pi * s2) + 1) + determinant
        twice += np.linalg.slogdet(a)[1] if self.restricted else 0.0
        effects = theta / (1 + theta * total) * (weighted[:, -1] - weighted[:, :-1] @ beta)
        return beta, np.linalg.inv(a) * s2, s2, -0.5 * float(twice), effects

    def best(self) -> tuple[float, float]:
        """The ratios where the likelihood is largest, each at 0 or inside."""

        def loss(ratios: Sequence[float]) -> float:
            return -self.at(*map(float, ratios))[3]

        tried = {pair: loss(pair) for pair in product(_RATIOS.tolist(), repeat=2)}
        candidates: list[tuple[float, tuple[float, float]]] = []
        for inside in ((True, True), (True, False), (False, True), (False, False)):
            these = {
                p: x for p, x in tried.items() if all((r > 0) == i for r, i in zip(p, inside, strict=True))
            }
            start = min(these, key=these.__getitem__)
            free = [i for i in range(2) if inside[i]]

            def ratios_at(logs: np.ndarray, free: list[int] = free) -> tuple[float, float]:
                whole = [0.0, 0.0]
                for i, log in zip(free, logs, strict=True):
                    whole[i] = float(np.exp(np.clip(log, -30, 30)))
                return whole[0], whole[1]

            if free:
                begin = np.log([start[i] for i in free])
                search = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 2000, "maxfev": 4000}
                result = minimize(
                    lambda logs, ratios_at=ratios_at: loss(ratios_at(logs)),
                    begin,
                    method="Nelder-Mead",
                    options=search,
                )
                start = ratios_at(result.x)
            candidates.append((loss(start), start))
        least = min(value for value, _ in candidates)
        # A variance that adds nothing to the likelihood is 0.
        return min((pair for value, pair in candidates if value <= least + 1e-9), key=sum)

    def joint(self, ratios: tuple[float, float], covariance: np.ndarray) -> np.ndarray:
        """The covariance of beta from the information of beta and the ratios that are not 0 together, as in
        `lmm`, by differences over log ratios."""
        free = [i for i in range(2) if ratios[i] > 0]
        if not free:
            return covariance
        middle = np.array(ratios)

        def moved(*steps: tuple[int, float]) -> tuple[np.ndarray, float]:
            place = middle.copy()
            for i, step in steps:
                place[i] *= np.exp(step)
            beta, _, _, log_likelihood, _ = self.at(*place.tolist())
            return beta, log_likelihood

        slopes = np.stack(
            [(moved((i, _STEP))[0] - moved((i, -_STEP))[0]) / (2 * _STEP) for i in free], axis=1
        )
        information = np.zeros((len(free), len(free)))
        for j, a in enumerate(free):
            for k, b in enumerate(free):
                signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
                parts = [s * t * moved((a, s * 10 * _STEP), (b, t * 10 * _STEP))[1] for s, t in signs]
                information[j, k] = -sum(parts) / (20 * _STEP) ** 2
        if (np.linalg.eigvalsh(information) <= 0).any():
            return covariance
        return covariance + slopes @ np.linalg.inv(information) @ slopes.T
