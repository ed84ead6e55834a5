"""Means and centred products of columns over sites: what correlations and principal components are made of,
from one message a site.

    n = sum n_s,   mean = sum n_s m_s / n,   C = sum C_s + n_s (m_s - mean)(m_s - mean)'         (Chan, Golub and LeVeque, 1983)

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabb"), "x": [1.0, 2, 3, 4], "y": [2.0, 4, 6, 9]}, by="site")
>>> found = moments(clients, ["x", "y"])
>>> found.mean.tolist(), found.covariance.round(4).tolist()
([2.5, 5.25], [[1.6667, 3.8333], [3.8333, 8.9167]])
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedjax_core.stats.base import Source, ask
from fedjax_core.stats.formula import Design
from fedjax_core.stats.lmm import Products
from fedjax_core.stats.survey import Missing, survey


@dataclass(frozen=True)
class Moments:
    """The complete rows of all sites: their number, means [P], and centred products [P, P]."""

    names: tuple[str, ...]
    rows: int
    dropped: int
    mean: np.ndarray
    products: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """[P, P] sample covariance."""
        covariance: np.ndarray = self.products / (self.rows - 1)
        return covariance


def moments(source: Source, columns: Sequence[str], missing: Missing = "refuse") -> Moments:
    """The moments of columns of numbers over all clients or sites; raises ValueError for fewer than two
    columns or rows, and for text."""
    names = tuple(dict.fromkeys(columns))
    if len(names) < 2:
        raise ValueError(f"two columns or more are needed, got {', '.join(map(repr, names)) or 'none'}")
    known = survey(source, names, (), missing)
    if text := [name for name in names if known.kinds[name] == "text"]:
        raise ValueError(f"column {text[0]!r} is text, and numbers are needed: leave it out")
    design = Design(names[:-1], tuple(["column", name] for name in names[:-1]))
    site_sums = [one for one in ask(source, Products(design, ["column", names[-1]], names)) if one["rows"]]
    n = np.array([float(one["rows"]) for one in site_sums])
    if n.sum() < 2:
        raise ValueError(
            f"{int(n.sum())} row has values in all of {', '.join(map(repr, names))}, and two are needed"
        )
    each = np.stack([one["mean"] for one in site_sums])
    mean = each[0] + n @ (each - each[0]) / n.sum()  # large means cost no digits
    products = np.sum([one["products"] for one in site_sums], axis=0) + np.einsum(
        "s,si,sj->ij", n, each - mean, each - mean
    )
    return Moments(names, int(n.sum()), known.dropped, mean, products)
