"""Multiple imputation over sites: missing values drawn from models of the pooled rows, several times, and the
analyses combined.

    each column in turn is regressed on all others, over the rows of all sites where it is known (chained
    equations); from the fit
        number     sd^2 ~ RSS / chi2(n - P),  beta ~ N(b, sd^2 (X'X)^-1),  value = x beta + sd N(0, 1)
        two levels beta ~ N(b, V) of a logistic model,  value = 1 with probability 1 / (1 + e^-x beta)
    Rubin      estimate = mean of q_m,  T = mean of v_m + (1 + 1/M) B,  B the variance of q_m;  Student's t of his degrees of freedom

A fit is by sums, as everywhere. Sites draw the values themselves, anew for each statistic, by an address
(seed, imputation, step, site), and so get the same ones. No drawn value leaves a site, and none is kept
there. The method is valid where missingness depends on observed values only (missing at random).
Rubin, "Multiple Imputation for Nonresponse in Surveys", 1987; van Buuren and Groothuis-Oudshoorn, J.
Statistical Software 2011.

>>> from fedjax_core.data.clients import Clients
>>> from fedjax_core.stats.glm import glm
>>> table = {"site": list("aaaabbbb"), "y": [1.0, 2, None, 4, 5, None, 7, 8], "x": [1.0, 2, 3, 4, 5, 6, 7, 8]}
>>> whole = impute(Clients.from_table(table, by="site"), ["y", "x"], times=3)
>>> round(rubin([glm("y ~ x", one) for one in whole]).coefficients["x"], 6)
1.0
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import t

from fedjax_core.stats.base import Limits, Source, Statistic, Sums, ask, names_of
from fedjax_core.stats.formula import Design, read
from fedjax_core.stats.glm import first_step, fit_steps, prepared, unscaled
from fedjax_core.stats.inference import Estimates, aligned
from fedjax_core.stats.newton import inverse
from fedjax_core.stats.survey import survey
from fedjax_core.stats.table import Table


@dataclass(frozen=True)
class Fill:
    """How the missing values of one column are drawn: around a design's columns times beta, by each site's
    own random stream."""

    column: str
    levels: tuple[str, ...]
    """The two labels of a category; empty for numbers."""
    design: Design
    beta: tuple[float, ...]
    sd: float
    address: tuple[int, ...]

    def __post_init__(self) -> None:
        if (
            len(self.levels) not in (0, 2)
            or len(self.beta) != len(self.design.names)
            or not self.sd >= 0
            or min(self.address, default=0) < 0
        ):
            raise ValueError(
                "a fill has no levels or two, a coefficient for each column of its design, and an address of whole numbers"
            )

    def fill(self, table: Table, missing: np.ndarray) -> Table:
        """The table with the column's `missing` values [rows, bool] drawn."""
        name = int.from_bytes(hashlib.sha256(str(table.site).encode()).digest()[:8])
        draw = np.random.default_rng([*self.address, name])
        eta = self.design.matrix(table) @ np.array(self.beta)
        if self.levels:
            values = self._coded(table, (draw.uniform(size=table.rows) < expit(eta)).astype(int))
        else:
            values = eta + self.sd * draw.normal(size=table.rows)
        x = table.columns[self.column]
        filled = np.where(missing, values, x).astype(values.dtype if x.dtype.kind != "U" else x.dtype)
        return Table({**table.columns, self.column: filled}, table.categories, table.site, table.people)

    def _coded(self, table: Table, which: np.ndarray) -> np.ndarray:
        """[rows] the drawn levels, in the column's own coding."""
        x = table.columns[self.column]
        if self.column in table.categories:
            codes = [table.categories[self.column].index(level) for level in self.levels]
            return np.array(codes, x.dtype)[which]
        if x.dtype.kind == "U":
            return np.array(self.levels)[which]
        return np.array([float(level) for level in self.levels])[which]


@dataclass(frozen=True)
class Filled:
    """The site half of any statistic, computed after the missing values are drawn in the order of `fills`."""

    fills: tuple[Fill, ...]
    kept: str
    """A column whose missing values stay missing; "" for none."""
    then: Statistic

    @property
    def columns(self) -> tuple[str, ...]:
        used = (name for fill in self.fills for name in (fill.column, *fill.design.columns))
        return tuple(dict.fromkeys((*self.then.columns, *used)))

    def sums(self, table: Table, limits: Limits) -> Sums:
        before = table
        if not table.rows:
            return self.then.sums(table, limits)
        gone = {fill.column: table.missing(fill.column) for fill in self.fills}
        for fill in self.fills:
            table = fill.fill(table, gone[fill.column])
        if self.kept:
            table = Table(
                {**table.columns, self.kept: before.columns[self.kept]},
                table.categories,
                table.site,
                table.people,
            )
        return self.then.sums(table, limits)


@dataclass(frozen=True)
class Imputed:
    """Clients or sites whose missing values are drawn before a statistic sees the rows: one of several
    imputations."""

    source: Source
    fills: tuple[Fill, ...]
    kept: str = ""

    @property
    def site_names(self) -> Sequence[Any]:
        return names_of(self.source)

    def statistic(self, statistic: Statistic) -> list[Sums]:
        return ask(self.source, Filled(self.fills, self.kept, statistic))


def impute(
    source: Source,
    columns: Sequence[str],
    *,
    times: int = 5,
    categories: Sequence[str] = (),
    rounds: int = 5,
    seed: int = 0,
) -> list[Imputed]:
    """Imputes missing values of `columns` over all clients or sites: a list of sources to analyse one by one,
    for `rubin`.

    Name all columns of the analysis, its outcome too, and columns that explain why values are missing. Text,
    and numbers in `categories`, are drawn by their two levels. `rounds`: passes of the chain over every
    column that lacks values. Raises ValueError where no value is missing, where a column has no value at all,
    and for text of more than two levels.
    """
    if times < 2 or rounds < 1:
        raise ValueError(f"times={times} imputations should be 2 or more, and rounds={rounds} 1 or more")
    names = tuple(dict.fromkeys(columns))
    known = {name: survey(source, (name,), (name,) if name in categories else (), "drop") for name in names}
    lacks = [name for name in names if known[name].dropped]
    if not lacks:
        raise ValueError(f"no value is missing of {', '.join(map(repr, names))}: analyse them as they are")
    if len(names) < 2:
        raise ValueError(
            f"{names[0]!r} alone says nothing of its missing values: name the columns that go with it"
        )
    levels = {name: tuple(one.levels[name]) for name, one in known.items() if name in one.levels}
    if many := [name for name in lacks if len(levels.get(name, ("", ""))) != 2]:
        raise ValueError(
            f"{many[0]!r} has {len(levels[many[0]])} levels, and values are drawn of numbers and of two levels: make columns of them"
        )
    numbers = [name for name in names if known[name].kinds[name] != "text"]
    return [
        Imputed(source, _chain(source, names, lacks, levels, numbers, rounds, (seed, m)))
        for m in range(times)
    ]


def _chain(
    source: Source,
    names: Sequence[str],
    lacks: Sequence[str],
    levels: dict[str, tuple[str, ...]],
    numbers: Collection[str],
    rounds: int,
    address: tuple[int, ...],
) -> tuple[Fill, ...]:
    """The fills of one imputation: first from each column alone, then from all others, `rounds` times."""
    fills: list[Fill] = []
    for step, name in enumerate([*lacks, *(name for _ in range(rounds) for name in lacks)]):
        others = [other for other in names if other != name] if step >= len(lacks) else []
        seen = Imputed(source, tuple(fills), name)
        fills.append(_drawn(seen, name, others, levels.get(name, ()), name in numbers, (*address, step)))
    return tuple(fills)


def _drawn(
    source: Source,
    name: str,
    others: Sequence[str],
    levels: tuple[str, ...],
    number: bool,
    address: tuple[int, ...],
) -> Fill:
    """A fill by the regression of a column on others, with coefficients drawn from their distribution."""
    draw = np.random.default_rng(address)
    left = f"Q({name!r})" if not levels else f"I(Q({name!r}) == {levels[1] if number else repr(levels[1])})"
    parsed = read(f"{left} ~ " + (" + ".join(f"Q({other!r})" for other in others) or "1"))
    moments, _ = prepared(parsed, source, "binomial" if levels else "gaussian", None, "drop")
    step, _ = first_step(source, moments, 1.0, name)
    fit = fit_steps(source, step)
    back, rows, p = unscaled(step), int(fit.sums["rows"]), len(step.design.names)
    covariance, sd = back @ inverse(fit.sums["information"]) @ back.T, 0.0
    if not levels:
        if rows <= p:
            raise ValueError(f"{name!r} is known in {rows} rows, too few for a model of {p} coefficients")
        variance = float(fit.sums["deviance"]) / draw.chisquare(rows - p)
        covariance, sd = covariance * variance, float(np.sqrt(variance))
    values, vectors = np.linalg.eigh(covariance)
    beta = back @ fit.beta + vectors @ (np.sqrt(np.maximum(values, 0.0)) * draw.normal(size=p))
    return Fill(name, levels, step.design, tuple(beta.tolist()), sd, address)


@dataclass(frozen=True, repr=False)
class Rubin:
    """Estimates of several imputations, combined by Rubin's rules."""

    names: tuple[str, ...]
    estimates: np.ndarray  # [P]
    within: np.ndarray  # [P] mean of the variances
    between: np.ndarray  # [P] variance of the estimates
    imputations: int
    df_complete: float
    """Degrees of freedom if nothing were missing; infinite where not given."""

    @property
    def variances(self) -> np.ndarray:
        """[P] the total variance T."""
        total: np.ndarray = self.within + (1 + 1 / self.imputations) * self.between
        return total

    @property
    def coefficients(self) -> dict[str, float]:
        """{name: estimate}."""
        return self._named(self.estimates)

    @property
    def standard_errors(self) -> dict[str, float]:
        """{name: standard error}."""
        return self._named(np.sqrt(self.variances))

    @property
    def missing_information(self) -> dict[str, float]:
        """{name: the share of the variance that comes from missing values}."""
        return self._named(self._share)

    @property
    def df(self) -> dict[str, float]:
        """{name: degrees of freedom}: Rubin's, with Barnard and Rubin's correction (Biometrika 1999) where
        the complete ones are known."""
        return self._named(self._df)

    @property
    def p_values(self) -> dict[str, float]:
        """{name: two-sided p of the coefficient being 0}, by Student's t."""
        return self._named(2 * t.sf(np.abs(self.estimates) / np.sqrt(self.variances), self._df))

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """{name: (low, high)} of 95 %."""
        reach = t.ppf(0.975, self._df) * np.sqrt(self.variances)
        ends = zip(self.names, self.estimates - reach, self.estimates + reach, strict=True)
        return {name: (float(low), float(high)) for name, low, high in ends}

    @property
    def _share(self) -> np.ndarray:
        return (1 + 1 / self.imputations) * self.between / self.variances

    @property
    def _df(self) -> np.ndarray:
        with np.errstate(divide="ignore"):
            rubin = (self.imputations - 1) / self._share**2
        if not np.isfinite(self.df_complete):
            return rubin
        seen = (self.df_complete + 1) / (self.df_complete + 3) * self.df_complete * (1 - self._share)
        together: np.ndarray = 1 / (1 / rubin + 1 / seen)
        return together

    def _named(self, numbers: Any) -> dict[str, float]:
        return dict(zip(self.names, map(float, numbers), strict=True))

    def __repr__(self) -> str:
        lines, p, share = (
            [["", "coefficient", "std. error", "95 % interval", "p", "missing information"]],
            self.p_values,
            self._share,
        )
        for i, (name, (low, high)) in enumerate(self.intervals.items()):
            error = f"{np.sqrt(self.variances[i]):.4f}"
            lines.append(
                [
                    name,
                    f"{self.estimates[i]:.4f}",
                    error,
                    f"{low:.4f} to {high:.4f}",
                    f"{p[name]:.4f}",
                    f"{share[i]:.1%}",
                ]
            )
        return f"{self.imputations} imputations by Rubin's rules\n\n{aligned(lines)}"


def rubin(fits: Sequence[Estimates], *, df_complete: float | None = None) -> Rubin:
    """Combines fits of one model to several imputations: any of `glm`, `cox`, `lmm`, `glmm`, `ordinal`.

    `df_complete`: rows less coefficients, where rows are few. Raises ValueError for fewer than two fits, and
    where their names differ."""
    if len(fits) < 2 or any(fit.names != fits[0].names for fit in fits):
        raise ValueError(
            "Rubin's rules put together two or more fits of one model, to imputations of the same rows"
        )
    q, v = np.stack([fit.estimates for fit in fits]), np.stack([np.diag(fit.covariance) for fit in fits])
    return Rubin(
        fits[0].names,
        q.mean(0),
        v.mean(0),
        q.var(0, ddof=1),
        len(fits),
        float("inf") if df_complete is None else float(df_complete),
    )
