"""Histograms over sites: the number of values in each bin, over all sites together, by groups.

    bin b holds edges[b] <= x < edges[b + 1], and the last one its upper edge too        as numpy.histogram

Bins are public: they are chosen before any value is seen. Values outside them are counted below and above.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabbb"), "age": [31, 40, 52, 60, 71]}, by="site")
>>> found = histogram(clients, "age", [30, 40, 50, 60])
>>> found.counts.tolist(), found.below, found.above
([1, 1, 2], 0, 1)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fedjax_core.stats.base import Limits, Source, Sums, ask, count, total
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.survey import survey
from fedjax_core.stats.survival import keys
from fedjax_core.stats.table import Table


@dataclass(frozen=True)
class Bins:
    """The site half: counts [G, E + 1] of a column's values between edges [E], by groups.

    Bin 0 has the values below the first edge, and bin b those from edge b - 1 on and below edge b.
    """

    column: str
    edges: tuple[float, ...]
    by: tuple[str, ...]
    groups: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.column, *self.by)))

    def sums(self, table: Table, limits: Limits) -> Sums:
        table = table.complete(self.by)
        key, x = keys(table, self.by), table.numbers(self.column)
        there, edges = ~table.missing(self.column), np.array(self.edges)
        counts = np.zeros((len(self.groups), len(edges) + 1), np.int64)
        missing = np.zeros(len(self.groups), np.int64)
        for g, group in enumerate(self.groups):
            of_group = there & (key == group)
            here, people = x[of_group], table.person_ids[of_group]
            missing[g] = (~there & (key == group)).sum()
            bins = np.searchsorted(edges, here, side="right")
            counts[g] = np.bincount(bins, minlength=len(edges) + 1)
            for b in np.unique(bins):
                limits.group(
                    people[bins == b],
                    f"people have {self.column!r} between two edges: give wider ones",
                    self.columns,
                )
        return {"counts": counts, "missing": missing, "rows": count(table.rows)}


@dataclass(frozen=True, repr=False)
class Histogram:
    """Counts of a column's values between edges."""

    edges: np.ndarray  # [B + 1]
    counts: np.ndarray  # [B] int
    below: int
    """Values below the first edge."""
    above: int
    missing: int

    @property
    def density(self) -> np.ndarray:
        """[B] shares of the values within the edges, over the widths of their bins."""
        density: np.ndarray = self.counts / np.diff(self.edges) / max(1, int(self.counts.sum()))
        return density

    def __repr__(self) -> str:
        rows = [["from", "to", "values"]]
        rows += [
            [f"{a:g}", f"{b:g}", str(n)]
            for (a, b), n in zip(pairwise(self.edges.tolist()), self.counts.tolist(), strict=True)
        ]
        return f"{aligned(rows)}\nbelow {self.below}, above {self.above}, missing {self.missing}"


def histogram(source: Source, column: str, edges: Sequence[float], *, by: str | None = None) -> Any:
    """The `Histogram` of a column over all clients or sites, or {group: histogram} by the groups of the
    column `by`."""
    cut_points = check_edges(edges)
    grouped = () if by is None else (by,)
    groups = tuple(survey(source, grouped, grouped, "drop").levels[by]) if by is not None else ("",)
    # The next larger float, so that the last bin has its upper edge.
    inner = (*cut_points[:-1], float(np.nextafter(cut_points[-1], np.inf)))
    sums = total(ask(source, Bins(column, inner, grouped, groups)))
    histograms = {
        group: Histogram(np.array(cut_points), c[1:-1], int(c[0]), int(c[-1]), int(gone))
        for group, c, gone in zip(groups, sums["counts"], sums["missing"], strict=True)
    }
    return histograms if by is not None else histograms[""]


def check_edges(edges: Sequence[float]) -> tuple[float, ...]:
    """The edges as numbers; raises ValueError where they are fewer than two, or do not ascend."""
    values = tuple(map(float, edges))
    if len(values) < 2 or not np.isfinite(values).all() or any(b <= a for a, b in pairwise(values)):
        raise ValueError(
            f"edges= needs two or more finite numbers that ascend, such as range(0, 101, 10); got {list(values)[:5]}"
        )
    return values


def population_stability_index(then: np.ndarray, now: np.ndarray) -> float:
    """PSI of people's counts in the same bins, [G] each.

    Where a bin is empty, half a person is added to every one, so that PSI is finite.
    """
    then, now = np.asarray(then, float), np.asarray(now, float)
    if then.shape != now.shape or then.ndim != 1 or not then.sum() or not now.sum():
        raise ValueError(
            f"PSI compares counts of people in the same bins, some in each; got shapes {then.shape} and {now.shape}"
        )
    if (then < 0).any() or (now < 0).any():
        raise ValueError("counts of people are at least 0")
    if (then == 0).any() or (now == 0).any():
        then, now = then + 0.5, now + 0.5
    p, q = then / then.sum(), now / now.sum()
    return float(((q - p) * np.log(q / p)).sum())
