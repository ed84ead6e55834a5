"""Ordinal logistic regression over sites: the proportional odds model of the pooled rows, by Newton's method
on sums of sites.

    P(y <= j) = 1 / (1 + e^-(a_j - x'beta))      a_1 < a_2 < ...        e^beta: the odds of a higher level for one more of x
    a row of level j:  log(F(a_j - x'beta) - F(a_{j-1} - x'beta)),  F the logistic function, a_0 = -inf, a_J = inf

The log-likelihood is concave in (a, beta) together (Pratt, JASA 1981). McCullagh, JRSS B 1980.

>>> from fedjax_core.data.clients import Clients
>>> table = {"site": list("aaabbb"), "pain": [0, 1, 1, 2, 0, 2], "dose": [1.0, 0, 2, 2, 0, 1]}
>>> fit = ordinal("pain ~ dose", Clients.from_table(table, by="site"))
>>> {name: round(b, 4) for name, b in fit.coefficients.items()}
{'dose': 1.0986, '0/1': 0.2513, '1/2': 1.9459}
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.special import expit, log_expit

from fedjax_core.stats.base import Limits, Source, Sums, ask, count, total
from fedjax_core.stats.formula import Design, read
from fedjax_core.stats.glm import GlmMoments
from fedjax_core.stats.inference import Estimates
from fedjax_core.stats.newton import NoEstimate, inverse, maximise
from fedjax_core.stats.survey import Missing, survey
from fedjax_core.stats.table import Table


@dataclass(frozen=True)
class OrdinalStep:
    """The site half of a Newton step at (beta, thresholds), for columns (x - shift) / scale: the
    log-likelihood, its gradient and information."""

    design: Design
    outcome: str
    levels: tuple[str, ...]
    """The outcome's levels from the lowest; numbers as text."""
    number: bool
    used: tuple[str, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    beta: tuple[float, ...]
    """Coefficients, then thresholds."""

    def __post_init__(self) -> None:
        p = len(self.design.names)
        if (
            len({len(self.shift), len(self.scale), p}) > 1
            or len(self.beta) != p + len(self.levels) - 1
            or len(self.levels) < 2
        ):
            raise ValueError(
                "beta needs a number for each column of the design and each threshold, shift and scale for each column"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        table = table.complete(self.used)
        x = self.design.matrix(table)
        limits.group(table.person_ids, "people", self.used)
        limits.model(table, self.design, x, None, self.used)
        level = np.full(len(x), -1)
        for j, name in enumerate(self.levels):
            here = (
                table.numbers(self.outcome) == float(name)
                if self.number
                else table.labels(self.outcome) == name
            )
            limits.group(table.person_ids[here], f"people have {self.outcome!r} = {name!r}", self.used)
            level[here] = j
        if (level < 0).any():
            raise ValueError(
                f"{self.outcome!r} has values that are none of its levels in {int((level < 0).sum())} rows"
            )
        x = (x - np.array(self.shift)) / np.array(self.scale)
        p = x.shape[1]
        eta, a = x @ np.array(self.beta[:p]), np.array([-np.inf, *self.beta[p:], np.inf])
        ordered = bool((np.diff(a) > 0).all())
        thresholds = np.eye(len(self.levels) - 1)
        # The slopes of a_j - eta, and of a_{j-1} - eta.
        upper = np.concatenate([-x, np.vstack([thresholds, 0 * thresholds[:1]])[level]], axis=1)
        lower = np.concatenate([-x, np.vstack([0 * thresholds[:1], thresholds])[level]], axis=1)
        with np.errstate(all="ignore"):  # a step that is too long is halved
            each, (su, sl), (huu, hul, hll) = _row(a[level + 1] - eta, a[level] - eta)
            information = (upper * huu[:, None]).T @ upper + (lower * hll[:, None]).T @ lower
            cross = (upper * hul[:, None]).T @ lower
        return {
            "log_likelihood": np.asarray(each.sum() if ordered else -np.inf),
            "gradient": upper.T @ su + lower.T @ sl,
            "information": information + cross + cross.T,
            "levels": np.bincount(level, minlength=len(self.levels)),
            "rows": count(len(x)),
        }


def _row(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """log(F(u) - F(v)) of each row, its slopes by u and v, and minus its second slopes by uu, uv, vv.

    F(u) - F(v) = F(u) F(-v) (1 - e^(v - u)) avoids a difference of two numbers near 1.
    """
    gap = np.where(np.isfinite(u) & np.isfinite(v), u - v, np.inf)
    log = (
        np.where(u == np.inf, 0.0, log_expit(u))
        + np.where(v == -np.inf, 0.0, log_expit(-v))
        + np.log(-np.expm1(-gap))
    )
    k = np.where(np.isfinite(gap), 1 / np.expm1(gap), 0.0)  # slope of log(1 - e^-gap) by the gap
    fu, fv = np.where(u == np.inf, 0.0, expit(-u)), np.where(v == -np.inf, 0.0, expit(v))
    bend = k * (1 + k)
    su, sv = np.where(u == np.inf, 0.0, fu + k), np.where(v == -np.inf, 0.0, -fv - k)
    return log, (su, sv), (fu * (1 - fu) + bend, -bend, fv * (1 - fv) + bend)


@dataclass(frozen=True, repr=False)
class Ordinal(Estimates):
    """A fitted proportional odds model: coefficients of the columns, then the thresholds between levels,
    "low/high"."""

    levels: dict[str, int]
    """{level: rows}, from the lowest."""
    log_likelihood: float
    rows: int
    dropped: int
    rounds: int

    @property
    def aic(self) -> float:
        """Akaike's criterion."""
        return 2 * len(self.names) - 2 * self.log_likelihood

    def facts(self) -> list[str]:
        """Further facts about the fit, a line each."""
        left = f", {self.dropped} with missing values left out" if self.dropped else ""
        levels = ", ".join(f"{name} {rows}" for name, rows in self.levels.items())
        return [
            f"{self.rows} rows ({levels}){left}; {self.rounds} rounds",
            f"log-likelihood {self.log_likelihood:.4f}, AIC {self.aic:.2f}",
        ]


def ordinal(
    formula: str, source: Source, *, levels: Sequence[str] | None = None, missing: Missing = "refuse"
) -> Ordinal:
    """The maximum-likelihood fit of "level ~ covariates" over the rows of all clients or sites, as if they
    were pooled.

    `levels`: the levels of a text outcome, from the lowest; numbers are ordered by size. Raises ValueError
    where values are missing (see `missing`) or levels are not those of the rows, and `NoEstimate` where there
    is no finite estimate."""
    parsed = read(formula)
    if len(parsed.outcomes) != 1 or parsed.outcomes[0][0] != "column":
        raise ValueError(f"{formula!r} needs one column before the ~, whose levels are ordered")
    outcome = parsed.outcomes[0][1]
    known = survey(source, parsed.columns, (*parsed.categories, outcome), missing)
    order = _ordered(outcome, known.levels[outcome], known.kinds[outcome], levels)
    whole = parsed.design(known.kinds, known.levels)
    pairs = [
        (name, one) for name, one in zip(whole.names, whole.expressions, strict=True) if name != "Intercept"
    ]
    if not pairs:
        raise ValueError(f"{formula!r} has no covariate: thresholds alone are the shares of the levels")
    design, used = (
        Design(tuple(name for name, _ in pairs), tuple(one for _, one in pairs)),
        tuple(known.kinds),
    )
    sums = total(ask(source, GlmMoments(design, ["number", 0.0], ["number", 0.0], used, "gaussian")))
    mean, square = (sums[word] / int(sums["rows"]) for word in ("x", "xx"))
    if flat := [name for name, m, q in zip(design.names, mean, square, strict=True) if q - m**2 <= 1e-12 * q]:
        raise NoEstimate(
            f"{flat[0]!r} is the same in every row, so nothing can be said of it: take it out of the formula"
        )
    scale = np.sqrt(square - mean**2)
    share = np.cumsum([known.levels[outcome][level] for level in order])[:-1] / known.rows
    begin = np.concatenate([np.zeros(len(pairs)), np.log(share / (1 - share))])
    number = known.kinds[outcome] != "text"
    at_mean, size = (tuple(one.tolist()) for one in (mean, scale))
    step = OrdinalStep(design, outcome, tuple(order), number, used, at_mean, size, tuple(begin.tolist()))
    names = (*design.names, *(f"{low}/{high}" for low, high in pairwise(order)))
    fit = maximise(lambda beta: ask(source, replace(step, beta=tuple(beta.tolist()))), begin, names)
    p = len(pairs)
    back = np.diag(np.concatenate([1 / scale, np.ones(len(order) - 1)]))
    back[p:, :p] = mean / scale  # a - (x - mean)'b / scale = (a + mean'b / scale) - x'(b / scale)
    covariance = back @ inverse(fit.sums["information"]) @ back.T
    counts = dict(zip(order, fit.sums["levels"].tolist(), strict=True))
    return Ordinal(
        names, back @ fit.beta, covariance, counts, float(fit.sums["log_likelihood"]), int(fit.sums["rows"]), known.dropped,
        fit.rounds, title=f"proportional odds model: {formula}", ratio="odds ratio",
    )  # fmt: skip


def _ordered(outcome: str, there: dict[str, int], kind: str, levels: Sequence[str] | None) -> list[str]:
    if levels is None:
        if kind == "text":
            raise ValueError(
                f"the outcome {outcome!r} is text, {', '.join(there)}: give levels=, its levels from the lowest"
            )
        order = list(there)
    else:
        order = [str(float(level)) if kind == "number" else str(level) for level in levels]
    if sorted(order) != sorted(there):
        raise ValueError(
            f"levels of {outcome!r} are {', '.join(there)} in the rows, and {', '.join(order)} by levels="
        )
    if len(order) < 3:
        raise ValueError(
            f"{outcome!r} has {len(order)} levels, and three or more are ordered: use fc.stats.glm with binomial for two"
        )
    return order
