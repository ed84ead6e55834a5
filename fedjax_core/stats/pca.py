"""Principal components of the pooled rows over sites, from one message of means and products a site.

    C = V diag(l) V'     scores (x - mean) V     l_k: the variance along component k; its error, of normal rows, l_k sqrt(2 / n)

`scale=True` first scales all columns to one size, for columns of different units. The largest part of each
component is positive. Anderson, "Asymptotic theory for principal component analysis", Annals of Mathematical
Statistics 1963.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabb"), "x": [1.0, 2, 3, 4], "y": [2.0, 4, 6, 8]}, by="site")
>>> found = pca(clients, ["x", "y"], scale=False)
>>> found.shares.round(6).tolist(), found.components.round(4).tolist()[0]
([1.0, 0.0], [0.4472, 0.8944])
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from fedjax_core.stats.base import Source
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.moments import moments
from fedjax_core.stats.survey import Missing


@dataclass(frozen=True, repr=False)
class Pca:
    """Principal components [K, P] of the columns `names`, those of most variance first."""

    names: tuple[str, ...]
    components: np.ndarray  # [K, P], rows of length 1
    variances: np.ndarray  # [K], of the sample
    mean: np.ndarray  # [P]
    size: np.ndarray  # [P] standard deviations by which columns are divided first; 1 without
    total_variance: float
    rows: int
    dropped: int

    @property
    def shares(self) -> np.ndarray:
        """[K] shares of the variance of all columns."""
        shares: np.ndarray = self.variances / self.total_variance
        return shares

    @property
    def standard_errors(self) -> np.ndarray:
        """[K] standard errors of the variances, for normal rows with no two variances equal."""
        errors: np.ndarray = self.variances * np.sqrt(2 / self.rows)
        return errors

    @property
    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) [K] of 95 % for the variances, on the scale of their logarithm."""
        reach = np.exp(norm.ppf(0.975) * np.sqrt(2 / self.rows))
        return self.variances / reach, self.variances * reach

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """[rows, K] scores of rows [rows, P], with columns in the order of `names`; a site computes those of
        its own rows."""
        scores: np.ndarray = (rows - self.mean) / self.size @ self.components.T
        return scores

    def __repr__(self) -> str:
        lines = [["component", "variance", "share", "largest parts"]]
        for k, (variance, share) in enumerate(zip(self.variances, self.shares, strict=True), start=1):
            most = np.argsort(-np.abs(self.components[k - 1]), kind="stable")[:4]
            parts = ", ".join(f"{self.names[i]} {self.components[k - 1, i]:+.2f}" for i in most)
            lines.append([str(k), f"{variance:.4f}", f"{share:.1%}", parts])
        return f"principal components of {len(self.names)} columns, {self.rows} rows\n\n{aligned(lines)}"


def pca(
    source: Source,
    columns: Sequence[str],
    components: int | None = None,
    *,
    scale: bool = True,
    missing: Missing = "refuse",
) -> Pca:
    """The principal components of columns of numbers over all clients or sites; all of them, or the first
    `components`.

    Raises ValueError where values are missing (see `missing`), and with `scale` for a column that is the same
    everywhere."""
    pooled = moments(source, columns, missing)
    most = len(pooled.names)
    if components is not None and not 1 <= components <= most:
        raise ValueError(f"components={components} is not between 1 and the {most} columns")
    spread = np.sqrt(np.diag(pooled.covariance))
    if scale and (
        flat := [n for n, s, m in zip(pooled.names, spread, pooled.mean, strict=True) if s <= 1e-12 * abs(m)]
    ):
        raise ValueError(f"{flat[0]!r} is the same in every row: leave it out, or give scale=False")
    size = spread if scale else np.ones(most)
    variances, vectors = np.linalg.eigh(pooled.covariance / np.outer(size, size))
    order = np.argsort(-variances, kind="stable")[:components]
    vectors = vectors[:, order].T
    signs = np.sign(vectors[np.arange(len(order)), np.argmax(np.abs(vectors), axis=1)])
    whole = float(variances.sum())
    return Pca(
        pooled.names,
        vectors * signs[:, None],
        np.maximum(variances[order], 0.0),
        pooled.mean,
        size,
        whole,
        pooled.rows,
        pooled.dropped,
    )
