"""Tests of association between two columns of the pooled rows, over sites: Student's and Welch's t,
chi-square, Fisher's exact test.

    t            d = m_a - m_b,  its variance v_a / n_a + v_b / n_b (Welch), or with the pooled v (Student)
    chi-square   sum (o - e)^2 / e of a table of counts; Cramer's V = sqrt(chi2 / (n min(R - 1, C - 1)))
    Fisher       p by the hypergeometric distribution given the margins; the odds ratio is the conditional one, with its exact interval

Sites send counts, means and centred squares by groups. Welch, Biometrika 1947; Fisher, JRSS 1935.

>>> from fedjax_core.data.clients import Clients
>>> table = {"site": list("aabbbb"), "arm": list("ctctct"), "bmi": [20.0, 23, 22, 27, 24, 25], "sick": list("nynyyy")}
>>> clients = Clients.from_table(table, by="site")
>>> found = t_test("bmi ~ arm", clients)
>>> found.difference, round(found.p_value, 4)
(-3.0, 0.1401)
>>> round(fisher("sick ~ arm", clients).p_value, 4)
0.4
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.stats.contingency import odds_ratio

from fedjax_core.stats.base import HIDDEN, Source, ask
from fedjax_core.stats.describe import Describe, chi_square_of, hiding, merged
from fedjax_core.stats.formula import read
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.survey import Missing, survey


@dataclass(frozen=True)
class TTest:
    """The difference of two means, the first group's less the second's."""

    difference: float
    standard_error: float
    t: float
    df: float
    p_value: float
    """Two-sided."""
    interval: tuple[float, float]
    """95 %."""
    means: dict[str, float]
    deviations: dict[str, float]
    counts: dict[str, int]


@dataclass(frozen=True, repr=False)
class TableTest:
    """A table of counts [R, C] and whether its rows and columns are independent."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: np.ndarray
    p_value: float
    chi2: float | None = None
    df: int | None = None
    cramers_v: float | None = None
    odds_ratio: float | None = None
    """The conditional maximum-likelihood estimate, for two rows and two columns."""
    interval: tuple[float, float] | None = None
    """95 %, for the odds ratio."""

    def __repr__(self) -> str:
        lines = [
            ["", *self.columns],
            *([name, *map(str, row.tolist())] for name, row in zip(self.rows, self.counts, strict=True)),
        ]
        summary = f"chi-square {self.chi2:.4f} on {self.df}, " if self.chi2 is not None else ""
        if self.odds_ratio is not None and self.interval is not None:
            summary = f"odds ratio {self.odds_ratio:.4f} ({self.interval[0]:.4f} to {self.interval[1]:.4f}), "
        return f"{aligned(lines)}\n\n{summary}p {self.p_value:.4f}"


def t_test(
    formula: str, source: Source, *, equal_variances: bool = False, missing: Missing = "refuse"
) -> TTest:
    """The t-test of "number ~ group" over the rows of all clients or sites: Welch's, or Student's with
    `equal_variances`.

    Raises ValueError for other than two groups, and where a group has fewer than two rows.
    """
    number, by, known = _two_columns(formula, source, missing, categories=1)
    groups = tuple(known.levels[by])
    if len(groups) != 2:
        raise ValueError(
            f"{formula!r}: a t-test compares two groups, and {by!r} has {len(groups)}, {', '.join(groups[:5])}"
        )
    if known.kinds[number] == "text":
        raise ValueError(
            f"{formula!r}: {number!r} is text, and means are of numbers: use fc.stats.chi_square"
        )
    n, mean, m2 = (x[:, 0] for x in merged(ask(source, Describe((number,), (), (by,), groups))))
    _check_shown(n, number)
    if (n < 2).any():
        raise ValueError(
            f"group {groups[int(np.argmin(n))]!r} has {int(n.min())} rows, and a t-test needs two or more in each"
        )
    variance = m2 / (n - 1)
    if equal_variances:
        df = float(n.sum() - 2)
        error = float(np.sqrt(m2.sum() / df * (1 / n).sum()))
    else:
        parts = variance / n
        error = float(np.sqrt(parts.sum()))
        df = float(parts.sum() ** 2 / (parts**2 / (n - 1)).sum()) if error else float("nan")
    difference = float(mean[0] - mean[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        t = float(np.divide(difference, error))
    reach = float(stats.t.ppf(0.975, df)) * error
    p = float(2 * stats.t.sf(abs(t), df)) if error else float("nan")

    def named(x: np.ndarray) -> dict[str, Any]:
        return dict(zip(groups, x.tolist(), strict=True))

    return TTest(
        difference,
        error,
        t,
        df,
        p,
        (difference - reach, difference + reach),
        named(mean),
        named(np.sqrt(variance)),
        named(n),
    )


def chi_square(formula: str, source: Source, *, missing: Missing = "refuse") -> TableTest:
    """Pearson's chi-square test of "category ~ category", without a correction for continuity. Counts below 5
    call for `fisher`."""
    rows, columns, counts = _table(formula, source, missing)
    value, p, df = chi_square_of(counts)
    v = float(np.sqrt(value / (counts.sum() * (min(counts.shape) - 1))))
    return TableTest(rows, columns, counts, p, value, df, v)


def fisher(formula: str, source: Source, *, missing: Missing = "refuse") -> TableTest:
    """Fisher's exact test of "category ~ category", of two levels each. Its odds ratio compares the first
    levels with the second."""
    rows, columns, counts = _table(formula, source, missing)
    if counts.shape != (2, 2):
        raise ValueError(
            f"{formula!r}: Fisher's test is of two levels each, and there are {len(rows)} and {len(columns)}: use chi_square"
        )
    ratio = odds_ratio(counts)
    interval = ratio.confidence_interval(0.95)
    p = float(stats.fisher_exact(counts).pvalue)
    return TableTest(
        rows,
        columns,
        counts,
        p,
        odds_ratio=float(ratio.statistic),
        interval=(float(interval.low), float(interval.high)),
    )


def _table(
    formula: str, source: Source, missing: Missing
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    of, by, known = _two_columns(formula, source, missing, categories=2)
    levels, groups = tuple(known.levels[of]), tuple(known.levels[by])
    if min(len(levels), len(groups)) < 2:
        one = of if len(levels) < 2 else by
        raise ValueError(
            f"{formula!r}: {one!r} has one level alone, {', '.join(known.levels[one])!r}, so there is nothing to compare"
        )
    site_sums = ask(source, Describe((), tuple((of, level) for level in levels), (by,), groups))
    counts = hiding(site_sums, "levels")
    _check_shown(counts, of)
    return levels, groups, counts.T


def _check_shown(counts: np.ndarray, column: str) -> None:
    """Raises where a site hides a count, as its policy may."""
    if (counts == HIDDEN).any():
        raise ValueError(
            f"a site hides counts of {column!r} that are of few people, so groups cannot be compared: put levels together"
        )


def _two_columns(formula: str, source: Source, missing: Missing, categories: int) -> tuple[str, str, Any]:
    """(the left column, the right column, their survey); the last `categories` of the two are surveyed by
    level."""
    parsed = read(formula)
    right = [factor.expression for term in parsed.terms for factor in term]
    sides: Sequence[Any] = [*parsed.outcomes, *right]
    if len(parsed.outcomes) != 1 or len(right) != 1 or any(one[0] != "column" for one in sides):
        raise ValueError(f"{formula!r} needs one column on each side of the ~, as in 'bmi ~ arm'")
    names = [one[1] for one in sides]
    return names[0], names[1], survey(source, names, names[2 - categories :], missing)
