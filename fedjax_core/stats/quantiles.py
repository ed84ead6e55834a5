"""Quantiles of the pooled values over sites: exact, by counts below thresholds, or from counts between public
edges, with bounds.

    q-quantile    the value of rank (n - 1) q, between its neighbours in proportion            as numpy.quantile
    search        sites count values below 63 thresholds; the gap that holds the rank is cut again, until it holds one float
    interval      the values of ranks l and u with P(l <= Binomial(n, q) < u) >= 0.95, whatever the distribution

An exact quantile is some person's value, and so is a rank's neighbour. Where a site's policy has a minimum
for cells, give public `edges`: sites then send one histogram, and the result is a value with the bin that
holds the exact one.

Thompson, "On confidence ranges for the median and other expectation distributions", Annals of Mathematical
Statistics 1936.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabbb"), "age": [31, 40, 52, 60, 71]}, by="site")
>>> quantiles(clients, "age", [0.25, 0.5]).values
{0.25: 40.0, 0.5: 52.0}
>>> found = quantiles(clients, "age", [0.5], edges=[0, 50, 100])
>>> found.values, found.bounds
({0.5: 58.333333333333336}, {0.5: (50.0, 100.0)})
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom

from fedjax_core.stats.base import Source, ask, total
from fedjax_core.stats.histogram import Bins, check_edges
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.survey import survey

_THRESHOLDS = 63  # for each sought rank, in each round
_LARGEST = int(np.array(np.finfo(np.float64).max).view(np.int64))


@dataclass(frozen=True, repr=False)
class Quantiles:
    """Quantiles of one column, without its missing values."""

    values: dict[float, float]
    """{q: the quantile}."""
    intervals: dict[float, tuple[float, float]]
    """{q: (low, high)} of 95 % or a little more; infinite where there are too few values to say."""
    bounds: dict[float, tuple[float, float]]
    """{q: (low, high)} that certainly hold the pooled quantile: itself twice, or the edges around it."""
    count: int
    missing: int

    def __repr__(self) -> str:
        rows = [["", "quantile", "95 % interval", "for certain between"]]
        for q, value in self.values.items():
            rows.append(
                [
                    f"{q:g}",
                    f"{value:g}",
                    *(f"{low:g} to {high:g}" for low, high in (self.intervals[q], self.bounds[q])),
                ]
            )
        return f"{aligned(rows)}\n{self.count} values, {self.missing} missing"


def quantiles(
    source: Source,
    column: str,
    q: Sequence[float] = (0.25, 0.5, 0.75),
    *,
    edges: Sequence[float] | None = None,
    by: str | None = None,
) -> Any:
    """The `Quantiles` of a column over all clients or sites, or {group: quantiles} by the groups of the
    column `by`.

    `q`: shares between 0 and 1. `edges`: public; values between them are counted in one message. Raises
    ValueError where a group has no value, or where a quantile lies outside the edges.
    """
    shares = tuple(map(float, q))
    if not shares or not all(0 <= one <= 1 for one in shares):
        raise ValueError(
            f"q= needs shares between 0 and 1, such as (0.25, 0.5, 0.75); got {list(shares)[:5]}"
        )
    cut_points = None if edges is None else check_edges(edges)
    grouped = () if by is None else (by,)
    groups = tuple(survey(source, grouped, grouped, "drop").levels[by]) if by is not None else ("",)
    first = total(ask(source, Bins(column, cut_points or (0.0,), grouped, groups)))
    sizes = first["counts"].sum(axis=1)
    if empty := [group for group, n in zip(groups, sizes.tolist(), strict=True) if not n]:
        raise ValueError(
            f"no value of {column!r} is there" + (f" in group {empty[0]!r}" if by is not None else "")
        )
    ranks = [_ranks(int(n), shares) for n in sizes]
    if cut_points is None:
        sought = [
            (g, rank)
            for g, group_ranks in enumerate(ranks)
            for rank in sorted({r for one in group_ranks for r in one[:4] if r is not None})
        ]
        known = {
            pair: (x, x)
            for pair, x in _search(source, Bins(column, (), grouped, groups), sought, sizes).items()
        }
    else:
        known = {}
        for g, group_ranks in enumerate(ranks):
            upto = np.cumsum(first["counts"][g])
            for rank in sorted({r for one in group_ranks for r in one[:4] if r is not None}):
                b = int(np.searchsorted(upto, rank))
                known[g, rank] = (
                    -np.inf if b == 0 else cut_points[b - 1],
                    np.inf if b == len(cut_points) else cut_points[b],
                )
    results = {}
    for g, group in enumerate(groups):
        values, intervals, bounds = {}, {}, {}
        for share, (low, high, left, right, part) in zip(shares, ranks[g], strict=True):
            inner = [_between(a, b, part) for a, b in zip(known[g, low], known[g, high], strict=True)]
            if cut_points is not None and not np.isfinite(inner).all():
                raise ValueError(
                    f"the {share:g}-quantile of {column!r} lies outside the edges {cut_points[0]:g} to {cut_points[-1]:g}: give wider ones"
                )
            bounds[share] = (inner[0], inner[1])
            intervals[share] = (
                -np.inf if left is None else known[g, left][0],
                np.inf if right is None else known[g, right][1],
            )
            values[share] = (
                inner[0]
                if cut_points is None
                else _within(first["counts"][g], cut_points, float(low - 1 + part), (inner[0], inner[1]))
            )
        results[group] = Quantiles(values, intervals, bounds, int(sizes[g]), int(first["missing"][g]))
    return results if by is not None else results[""]


def _between(a: float, b: float, part: float) -> float:
    """The value at the share `part` of the way from a to b, rounded as NumPy rounds it."""
    if a == b:
        return a
    return b - (b - a) * (1 - part) if part >= 0.5 else a + (b - a) * part


_Rank = tuple[int, int, int | None, int | None, float]


def _ranks(n: int, shares: Sequence[float]) -> list[_Rank]:
    """For each share: the two ranks [1..n] around the quantile, the ranks of its interval, and its place
    between the first two."""
    ranks: list[_Rank] = []
    for q in shares:
        position = (n - 1) * q
        low = int(np.floor(position))
        left, right = int(binom.ppf(0.025, n, q)), int(binom.ppf(0.975, n, q)) + 1
        ranks.append(
            (
                low + 1,
                min(low + 2, n),
                left if left > 0 else None,
                right if right <= n else None,
                position - low,
            )
        )
    return ranks


def _within(counts: np.ndarray, edges: Sequence[float], rank: float, bounds: tuple[float, float]) -> float:
    """The value of a rank, from 0, if the values of a bin are spread evenly in it."""
    upto = np.concatenate([[0], np.cumsum(counts[1:-1])]) + counts[0]
    return float(np.clip(np.interp(rank + 0.5, upto, edges), *bounds))


def _search(
    source: Source, bins: Bins, sought: Sequence[tuple[int, int]], sizes: np.ndarray
) -> dict[tuple[int, int], float]:
    """{(group, rank): its value}. A value x of rank r is the largest for which fewer than r values lie below
    x."""
    low = {pair: -_LARGEST for pair in sought}  # fewer than r values lie below it
    high = {pair: _LARGEST + 1 for pair in sought}  # infinity, as all n lie below it
    while open_ := [pair for pair in sought if high[pair] - low[pair] > 1]:
        cuts = {pair: _cuts(low[pair], high[pair]) for pair in open_}
        thresholds = sorted({cut for pair_cuts in cuts.values() for cut in pair_cuts})
        statistic = Bins(bins.column, tuple(_floats(thresholds)), bins.by, bins.groups)
        below = dict(
            zip(
                thresholds,
                np.cumsum(total(ask(source, statistic))["counts"], axis=1)[:, :-1].T.tolist(),
                strict=True,
            )
        )
        for pair in open_:
            g, rank = pair
            low[pair] = max([low[pair], *(cut for cut in cuts[pair] if below[cut][g] < rank)])
            high[pair] = min([high[pair], *(cut for cut in cuts[pair] if below[cut][g] >= rank)])
    return dict(zip(sought, _floats([low[pair] for pair in sought]), strict=True))


def _cuts(low: int, high: int) -> list[int]:
    """Whole numbers that cut the gap between two others into parts of about one size."""
    return sorted(
        {low + (high - low) * i // (_THRESHOLDS + 1) for i in range(1, _THRESHOLDS + 1)} - {low, high}
    )


def _floats(order: Sequence[int]) -> list[float]:
    """The floats at these places in the order of all floats, where 0.0 has place 0."""
    places = np.array(order, np.int64)
    size = np.abs(places).view(np.float64)
    floats: list[float] = np.where(places < 0, -size, size).tolist()
    return floats
