"""ComBat over sites: removes the effect of the scanner or laboratory from many features, and keeps what
covariates explain, as on the pooled rows.

    y_ij = alpha + x_ij beta + gamma_i + delta_i e_ij        of each feature; i a site, j its row
    site:     n, means and centred products of x with the features y, sums of squares of y                one message
    centre:   beta, alpha, sigma by least squares with an intercept for each site; then each site's mean and
              variance of the residuals, shrunk towards those of its other features by empirical Bayes
              (normal and inverse gamma), until they no longer change
    then      y* = sigma (z - gamma*) / delta* + alpha + x beta,   z = (y - alpha - x beta) / sigma

Only sums are needed: sum (z - g)^2 of a site is (n - 1) its variance + n (its mean - g)^2. Sites apply the
result to their own rows. Johnson, Li and Rabinovic, Biostatistics 2007; Fortin et al., NeuroImage 2018.

>>> import numpy as np
>>> from fedjax_core.data.clients import Clients
>>> draw = np.random.default_rng(0)
>>> site, age = np.repeat(["a", "b"], 30), draw.normal(60, 9, 60)
>>> features = {f"f{g}": 0.1 * g * age + (site == "b") * 3 + draw.normal(size=60) for g in range(5)}
>>> clients = Clients.from_table({"site": site, "age": age, **features}, by="site")
>>> found = combat(clients, list(features), keep="age")
>>> even = found.apply(clients)
>>> abs(float(clients[0]["f0"].mean() - clients[1]["f0"].mean())) > 2 > 0.5 > abs(float(even[0]["f0"].mean() - even[1]["f0"].mean()))
True
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.stats.base import Limits, Source, Statistic, Sums, TooFew, ask, count, names_of, tables
from fedjax_core.stats.formula import Design, read
from fedjax_core.stats.newton import check_independent
from fedjax_core.stats.survey import Missing, survey
from fedjax_core.stats.table import Table


@dataclass(frozen=True)
class FeatureProducts:
    """The site half: rows, means and centred products of the columns of a design with many features, and the
    features' squares."""

    design: Design
    features: tuple[str, ...]
    used: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        table = table.complete(self.used)
        x, y = self.design.matrix(table), np.stack([table.numbers(name) for name in self.features], axis=1)
        limits.group(table.person_ids, "people", self.used)
        limits.model(table, self.design, x, None, self.used)
        for name, feature in zip(self.features, y.T, strict=True):
            if not limits.sum(feature, table.person_ids, name):
                raise TooFew(f"few people have most of the sum of {name!r}")
        at_x, at_y = (one.mean(axis=0) if len(one) else np.zeros(one.shape[1]) for one in (x, y))
        x, y = x - at_x, y - at_y
        return {
            "rows": count(len(x)),
            "x": at_x,
            "y": at_y,
            "xx": x.T @ x,
            "xy": x.T @ y,
            "yy": (y**2).sum(0),
        }


@dataclass(frozen=True)
class Harmonised:
    """The site half of any statistic, computed on harmonised features."""

    features: tuple[str, ...]
    design: Design
    beta: tuple[tuple[float, ...], ...]
    """[P, G]."""
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    sites: tuple[str, ...]
    location: tuple[tuple[float, ...], ...]
    """[N, G] gamma*."""
    scale: tuple[tuple[float, ...], ...]
    """[N, G] delta*."""
    then: Statistic

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.then.columns, *self.design.columns, *self.features)))

    def sums(self, table: Table, limits: Limits) -> Sums:
        known = table.complete(self.design.columns)
        limits.model(known, self.design, self.design.matrix(known), None, self.design.columns)
        return self.then.sums(self.table(table), limits)

    def table(self, table: Table) -> Table:
        """The table with its features harmonised; NaN where a feature or a covariate is missing."""
        if table.rows and str(table.site) not in self.sites:
            raise ValueError(
                f"{table.site!r} is none of the sites that were harmonised, {', '.join(self.sites[:5])}"
            )
        if not table.rows:
            return table
        site_index = self.sites.index(str(table.site))
        whole = (
            ~np.any([table.missing(name) for name in self.design.columns], axis=0)
            if self.design.columns
            else np.ones(table.rows, bool)
        )
        explained = np.full((table.rows, len(self.features)), np.nan)
        explained[whole] = np.array(self.alpha) + self.design.matrix(table.where(whole)) @ np.array(
            self.beta
        ).reshape(-1, len(self.features))
        y, sigma = np.stack([table.numbers(name) for name in self.features], axis=1), np.array(self.sigma)
        even = (y - explained - sigma * self.location[site_index]) / np.array(
            self.scale[site_index]
        ) + explained
        return Table(
            {**table.columns, **dict(zip(self.features, even.T, strict=True))},
            table.categories,
            table.site,
            table.people,
        )


@dataclass(frozen=True, repr=False)
class Combat:
    """A fitted ComBat: `apply(clients)` harmonises rows in this process; `source` gives statistics of
    harmonised features, at real sites too."""

    site_half: Harmonised
    location: dict[Any, np.ndarray]
    """{site: gamma* [G]}, in units of sigma."""
    scale: dict[Any, np.ndarray]
    """{site: delta* [G]}: its deviations over the pooled ones."""
    rows: int
    dropped: int

    def apply(self, clients: Clients) -> Clients:
        """The clients with their features harmonised, for training."""
        even = [self.site_half.table(one).columns for one in tables(clients)]
        return clients.with_columns(
            dict(clients.columns)
            | {name: np.concatenate([one[name] for one in even]) for name in self.site_half.features}
        )

    def source(self, source: Source) -> "HarmonisedSource":
        """A source whose statistics see the harmonised features."""
        return HarmonisedSource(self.site_half, source)

    def __repr__(self) -> str:
        far = max(self.location, key=lambda site: float(np.abs(self.location[site]).mean()))
        many = len(self.site_half.features)
        return (
            f"ComBat of {many} features, {self.rows} rows of {len(self.location)} sites; {far} is farthest from the others, "
            f"by {float(np.abs(self.location[far]).mean()):.2f} deviations"
        )


@dataclass(frozen=True)
class HarmonisedSource:
    """Clients or sites whose features are harmonised before a statistic sees them."""

    site_half: Harmonised
    source: Source

    @property
    def site_names(self) -> Sequence[Any]:
        return names_of(self.source)

    def statistic(self, statistic: Statistic) -> list[Sums]:
        return ask(self.source, replace(self.site_half, then=statistic))


def combat(
    source: Source, features: Sequence[str], *, keep: str = "1", missing: Missing = "refuse"
) -> Combat:
    """Fits ComBat to the numbers `features` over all clients or sites; each of them is a batch.

    `keep`: covariates whose effects stay, as on the right of a formula.
    Raises ValueError for fewer than two features or sites, for a site with one row, and for a feature that is
    the same everywhere."""
    names = tuple(dict.fromkeys(features))
    if len(names) < 2:
        raise ValueError(
            f"ComBat draws features towards each other, so it needs two or more; got {len(names)}"
        )
    parsed = read(f"~ {keep}")
    known = survey(source, (*parsed.columns, *names), parsed.categories, missing)
    if text := [name for name in names if known.kinds[name] == "text"]:
        raise ValueError(f"feature {text[0]!r} is text, and ComBat is of numbers")
    whole = parsed.design(known.kinds, known.levels)
    kept = [i for i, name in enumerate(whole.names) if name != "Intercept"]
    design = Design(tuple(whole.names[i] for i in kept), tuple(whole.expressions[i] for i in kept))
    site_sums = ask(source, FeatureProducts(design, names, tuple(known.kinds)))
    sites = [site for site, one in zip(names_of(source), site_sums, strict=True) if one["rows"]]
    site_sums = [one for one in site_sums if one["rows"]]
    n = np.array([float(one["rows"]) for one in site_sums])
    if len(sites) < 2 or n.min() < 2:
        lacks = (
            f"{sites[int(n.argmin())]!r} has one row"
            if len(sites) > 1
            else f"there is {len(sites)} site with rows"
        )
        raise ValueError(
            f"ComBat compares sites by their means and variances, and {lacks}: two sites, of two rows each, are needed"
        )
    x, y, xx, xy, yy = (np.stack([one[word] for one in site_sums]) for word in ("x", "y", "xx", "xy", "yy"))
    if design.names:
        check_independent(xx.sum(0), design.names)
    beta = np.linalg.solve(xx.sum(0), xy.sum(0)) if design.names else np.zeros((0, len(names)))
    own = y - x @ beta  # each site's intercept
    left = yy - 2 * np.einsum("pg,spg->sg", beta, xy) + np.einsum("pg,spq,qg->sg", beta, xx, beta)
    alpha, variance = n @ own / n.sum(), left.sum(0) / n.sum()
    if flat := [
        name for name, v, q in zip(names, variance, yy.sum(0), strict=True) if not v > 1e-12 * q / n.sum()
    ]:
        raise ValueError(
            f"feature {flat[0]!r} does not vary within sites beyond its covariates: leave it out"
        )
    sigma = np.sqrt(variance)
    mean, spread = (own - alpha) / sigma, np.maximum(left, 0.0) / variance / (n - 1)[:, None]
    shrunk = [_shrunk(float(rows), m, v) for rows, m, v in zip(n, mean, spread, strict=True)]

    def plain(matrix: Any) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(map(float, row)) for row in matrix)

    location, scale = np.stack([one for one, _ in shrunk]), np.sqrt(np.stack([one for _, one in shrunk]))
    half = Harmonised(
        names, design, plain(beta), tuple(alpha.tolist()), tuple(sigma.tolist()), tuple(map(str, sites)), plain(location), plain(scale),
        FeatureProducts(design, names, tuple(known.kinds)),
    )  # fmt: skip
    location_of, scale_of = dict(zip(sites, location, strict=True)), dict(zip(sites, scale, strict=True))
    return Combat(half, location_of, scale_of, int(n.sum()), known.dropped)


def _shrunk(n: float, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A site's means and variances [G], shrunk towards those of all its features."""
    centre, between = float(mean.mean()), float(mean.var(ddof=1))
    m, s2 = float(variance.mean()), float(variance.var(ddof=1))
    g, d = mean, variance
    if s2 <= 1e-14 * m**2:  # they agree already, so that the prior is a point
        return (between * n * mean + m * centre) / (between * n + m), np.full_like(variance, m)
    a, b = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    for _ in range(10_000):
        towards = (between * n * mean + d * centre) / (between * n + d)
        square = (n - 1) * variance + n * (mean - towards) ** 2
        after = (square / 2 + b) / (n / 2 + a - 1)
        moved = max(float(np.abs(towards - g).max()), float(np.abs(after / d - 1).max()))
        g, d = towards, after
        if moved < 1e-12:
            break
    return g, d
