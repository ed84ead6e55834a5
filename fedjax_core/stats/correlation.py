"""Pearson's correlation of every pair of columns of the pooled rows, over sites, with intervals and tests.

    r = C_xy / sqrt(C_xx C_yy)     t = r sqrt((n - 2) / (1 - r^2)) of n - 2     interval tanh(atanh r -+ 1.96 / sqrt(n - 3))  (Fisher 1921)

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabb"), "x": [1.0, 2, 3, 4], "y": [2.0, 1, 4, 3]}, by="site")
>>> found = correlation(clients, ["x", "y"])
>>> round(found["x", "y"], 12), round(found.p_values["x", "y"], 12)
(0.6, 0.4)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import norm, t

from fedjax_core.stats.base import Source
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.moments import moments
from fedjax_core.stats.survey import Missing

Pair = tuple[str, str]


@dataclass(frozen=True, repr=False)
class Correlation:
    """Correlations of pairs of columns: `result["x", "y"]` is one."""

    names: tuple[str, ...]
    matrix: np.ndarray  # [P, P]
    rows: int
    dropped: int

    def __getitem__(self, pair: Pair) -> float:
        return float(self.matrix[self.names.index(pair[0]), self.names.index(pair[1])])

    @property
    def standard_errors(self) -> dict[Pair, float]:
        """{(x, y): sqrt((1 - r^2) / (n - 2))}, by which r is tested."""
        return {
            pair: float(np.sqrt((1 - self[pair] ** 2) / max(self.rows - 2, 0))) if self.rows > 2 else np.nan
            for pair in self._pairs
        }

    @property
    def p_values(self) -> dict[Pair, float]:
        """{(x, y): two-sided p of no correlation}, by Student's t; NaN for two rows."""
        with np.errstate(divide="ignore"):
            return {
                pair: float(2 * t.sf(np.divide(abs(self[pair]), e), self.rows - 2))
                for pair, e in self.standard_errors.items()
            }

    @property
    def intervals(self) -> dict[Pair, tuple[float, float]]:
        """{(x, y): (low, high)} of 95 %, by Fisher's transformation; -1 to 1 for three rows or fewer."""
        if self.rows <= 3:
            return dict.fromkeys(self._pairs, (-1.0, 1.0))
        reach = norm.ppf(0.975) / np.sqrt(self.rows - 3)
        with np.errstate(divide="ignore"):
            middle = {pair: np.arctanh(self[pair]) for pair in self._pairs}
        return {pair: (float(np.tanh(z - reach)), float(np.tanh(z + reach))) for pair, z in middle.items()}

    @property
    def _pairs(self) -> list[Pair]:
        return list(combinations(self.names, 2))

    def __repr__(self) -> str:
        lines, p = [["", "", "r", "95 % interval", "p"]], self.p_values
        lines += [
            [a, b, f"{self[a, b]:.4f}", f"{low:.4f} to {high:.4f}", f"{p[a, b]:.4f}"]
            for (a, b), (low, high) in self.intervals.items()
        ]
        return f"correlation of {self.rows} rows\n\n{aligned(lines)}"


def correlation(source: Source, columns: Sequence[str], *, missing: Missing = "refuse") -> Correlation:
    """Correlations of columns of numbers over all clients or sites, from the rows that lack none of them.

    Raises ValueError where values are missing (see `missing`), and for a column that is the same everywhere.
    """
    pooled = moments(source, columns, missing)
    size = np.sqrt(np.diag(pooled.products))
    if flat := [
        name
        for name, s, m in zip(pooled.names, size, pooled.mean, strict=True)
        if s <= 1e-12 * np.sqrt(pooled.rows) * abs(m)
    ]:
        raise ValueError(f"{flat[0]!r} is the same in every row, so it goes with nothing: leave it out")
    matrix = np.clip(pooled.products / np.outer(size, size), -1, 1)
    return Correlation(pooled.names, matrix, pooled.rows, pooled.dropped)
