"""The coefficients of a fitted model: estimates, standard errors, intervals, p-values, and their table.

z = estimate / standard error      p = 2 P(N > |z|)      interval = estimate -+ 1.96 standard error
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True, repr=False)
class Estimates:
    """Named coefficients with their covariance [P, P]. `repr` and `table()` are text for people, the rest
    {name: number}."""

    names: tuple[str, ...]
    estimates: np.ndarray  # [P] float64
    covariance: np.ndarray  # [P, P] float64
    title: str = field(kw_only=True)
    ratio: str | None = field(default=None, kw_only=True)
    """The name of e to the power of a coefficient, such as "odds ratio"; None where it has no meaning."""

    @property
    def coefficients(self) -> dict[str, float]:
        """{name: estimate}."""
        return self._named(self.estimates)

    @property
    def standard_errors(self) -> dict[str, float]:
        """{name: standard error}."""
        return self._named(self._errors)

    @property
    def statistics(self) -> dict[str, float]:
        """{name: estimate over its standard error}."""
        return self._named(self._z)

    @property
    def p_values(self) -> dict[str, float]:
        """{name: two-sided p of the coefficient being 0}, by the normal distribution."""
        return self._named(2 * norm.sf(np.abs(self._z)))

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """{name: (low, high)}, of 95 %."""
        return self.intervals_of(0.95)

    def intervals_of(self, level: float) -> dict[str, tuple[float, float]]:
        """{name: (low, high)} of this confidence level, between 0 and 1."""
        if not 0 < level < 1:
            raise ValueError(f"a confidence level is between 0 and 1, such as 0.95, got {level}")
        reach = norm.ppf((1 + level) / 2) * self._errors
        return {
            name: (float(a), float(b))
            for name, a, b in zip(self.names, self.estimates - reach, self.estimates + reach, strict=True)
        }

    def table(self) -> str:
        """The coefficients as text, a line each."""
        head = ["", "coefficient", "std. error", "z", "p", "95 % interval"] + (
            [self.ratio] if self.ratio else []
        )
        lines = [head]
        z, p, intervals = self.statistics, self.p_values, self.intervals
        for name, b, error in zip(self.names, self.estimates, self._errors, strict=True):
            low, high = intervals[name]
            line = [
                name,
                f"{b:.4f}",
                f"{error:.4f}",
                f"{z[name]:.2f}",
                _p(p[name]),
                f"{low:.4f} to {high:.4f}",
            ]
            if self.ratio:
                with np.errstate(over="ignore"):
                    line.append(f"{np.exp(b):.3f} ({np.exp(low):.3f} to {np.exp(high):.3f})")
            lines.append(line)
        return aligned(lines)

    def facts(self) -> list[str]:
        """Further facts about the fit, a line each."""
        return []

    def __repr__(self) -> str:
        return "\n".join([self.title, *self.facts(), "", self.table()])

    @property
    def _errors(self) -> np.ndarray:
        return np.sqrt(np.diag(self.covariance))

    @property
    def _z(self) -> np.ndarray:
        """[P] estimates over their errors; infinite where the error is 0, as for a line through all
        points."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z: np.ndarray = self.estimates / self._errors
        return z

    def _named(self, numbers: Any) -> dict[str, float]:
        return dict(zip(self.names, map(float, numbers), strict=True))


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells as text: the first column to the left, all others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
