"""Table 1 over all sites: what the patients of each group are like, and how far the groups differ.

    number     count, mean, standard deviation, missing        each site: count, mean, M2 (as in data/preprocess.py, without cancellation)
    category   count and share of each level, missing
    SMD        |m1 - m2| / sqrt((v1 + v2) / 2);  of a category  sqrt(d' S^-1 d),  d and S of all levels but the first
               (Yang and Dalton, SAS Global Forum 2012); the largest of all pairs of groups
    p          Welch's t for two groups; chi-square for a category, without a correction for continuity

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabb"), "arm": list("ctct"), "age": [1.0, 2.0, 3.0, 4.0]}, by="site")
>>> found = table_one(clients, ["age"], by="arm")
>>> found.means["age"], round(found.smd["age"], 4)
({'c': 2.0, 't': 3.0}, 0.7071)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from fedjax_core.stats.base import HIDDEN, Limits, Source, Sums, ask
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.survey import survey
from fedjax_core.stats.survival import keys
from fedjax_core.stats.table import Table


@dataclass(frozen=True)
class Describe:
    """The site half: moments of numbers [G, N] and counts of levels [G, L] by groups, over values that are
    not missing."""

    numbers: tuple[str, ...]
    levels: tuple[tuple[str, str], ...]
    """(column, level) of each category's levels."""
    by: tuple[str, ...]
    groups: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.numbers, *(name for name, _ in self.levels), *self.by)))

    def sums(self, table: Table, limits: Limits) -> Sums:
        table = table.complete(self.by)
        key = keys(table, self.by)
        group_of = _places(key, self.groups)
        count = np.zeros((len(self.groups), len(self.numbers)), np.int64)
        mean, m2 = np.zeros(count.shape), np.zeros(count.shape)
        levels = np.zeros((len(self.groups), len(self.levels)), np.int64)
        rows = limits.cells("groups", group_of, (len(self.groups),), table.person_ids, self.by)
        for i, name in enumerate(self.numbers):
            there = ~table.missing(name)
            known = limits.cells(
                f"values of {name!r}",
                np.where(there, group_of, -1),
                (len(self.groups),),
                table.person_ids,
                (name, *self.by),
            )
            x = table.numbers(name)
            for g in np.flatnonzero(known != 0):
                values = x[there & (group_of == g)]
                shown = known[g] != HIDDEN and limits.sum(
                    values, table.person_ids[there & (group_of == g)], name
                )
                count[g, i], mean[g, i], m2[g, i] = (
                    (len(values), values.mean(), ((values - values.mean()) ** 2).sum())
                    if shown
                    else (HIDDEN, 0, 0)
                )
        for name in dict.fromkeys(name for name, _ in self.levels):
            positions = [i for i, (of, _) in enumerate(self.levels) if of == name]
            level_of = _places(table.labels(name), [self.levels[i][1] for i in positions])
            cell = np.where((level_of < 0) | (group_of < 0), -1, group_of * len(positions) + level_of)
            shape = (len(self.groups), len(positions))
            levels[:, positions] = limits.cells(
                f"{name!r} by group", cell, shape, table.person_ids, (name, *self.by)
            ).reshape(shape)
        return {"groups": rows, "count": count, "mean": mean, "m2": m2, "levels": levels}


def _places(labels: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """[rows] the position of each label among the known ones; -1 for others."""
    places = np.full(len(labels), -1)
    for i, label in enumerate(known):
        places[labels == label] = i
    return places


@dataclass(frozen=True, repr=False)
class TableOne:
    """Table 1: the numbers and categories of each group."""

    groups: dict[str, int]
    """{group: rows}."""
    counts: dict[str, dict[str, int]]
    """{number: {group: values that are not missing}}."""
    means: dict[str, dict[str, float]]
    deviations: dict[str, dict[str, float]]
    """Standard deviations, of the sample."""
    levels: dict[str, dict[str, dict[str, int]]]
    """{category: {level: {group: rows}}}; `HIDDEN` (-1) where a site hides its count, as in all counts
    here."""
    smd: dict[str, float]
    """Standardised differences, the largest of all pairs of groups; empty for one group."""
    p_values: dict[str, float]

    def table(self) -> str:
        """The table as text: mean (SD) of numbers, count (%) of levels."""
        lines = [["", *(f"{group or 'all'} (n = {rows})" for group, rows in self.groups.items()), "SMD", "p"]]
        for name, means in self.means.items():
            hidden = self.counts[name]
            cells = [
                "hidden"
                if hidden[group] == HIDDEN
                else f"{means[group]:.2f} ({self.deviations[name][group]:.2f})"
                for group in self.groups
            ]
            lines.append([f"{name}, mean (SD)", *cells, *self._end(name)])
        for name, levels in self.levels.items():
            lines.append([f"{name}, n (%)", *("" for _ in self.groups), *self._end(name)])
            whole = {group: _added([of[group] for of in levels.values()]) for group in self.groups}
            for level, of in levels.items():
                lines.append(
                    [f"  {level}", *(_share(of[group], whole[group]) for group in self.groups), "", ""]
                )
        return aligned(lines)

    def __repr__(self) -> str:
        return self.table()

    def _end(self, name: str) -> list[str]:
        return [f"{self.smd[name]:.3f}", f"{self.p_values[name]:.4f}"] if name in self.smd else ["", ""]


def table_one(
    source: Source, columns: Sequence[str], by: str | None = None, *, categories: Sequence[str] = ()
) -> TableOne:
    """Table 1 of these columns over all clients or sites, by the groups of the column `by`. Text columns and
    `categories` are counted by level.

    Each column leaves out its own missing values; rows without a group are left out.
    """
    grouped = () if by is None else (by,)
    known = {
        name: survey(
            source, (name,), (name,) if name in (*categories, *grouped) else (), "drop", partial=True
        )
        for name in dict.fromkeys((*columns, *grouped))
    }
    levels = {name: list(one.levels[name]) for name, one in known.items() if name in one.levels}
    groups = tuple(levels[by]) if by is not None else ("",)
    numbers = tuple(name for name in columns if name not in levels)
    pairs = tuple((name, level) for name in columns if name in levels for level in levels[name])
    site_sums = ask(source, Describe(numbers, pairs, grouped, groups))
    rows, counted = (hiding(site_sums, word) for word in ("groups", "levels"))
    count, mean, m2 = merged(site_sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(count > 1, m2 / (count - 1), np.nan)
    level_counts: dict[str, np.ndarray] = {
        name: np.array([[counted[g, pairs.index((name, level))] for level in levels[name]] for g in range(len(groups))])
        for name in columns if name in levels
    }  # fmt: skip
    smd, p = {}, {}
    if len(groups) > 1:
        for i, name in enumerate(numbers):
            smd[name] = max(
                _smd(mean[[a, b], i], variance[[a, b], i]) for a, b in combinations(range(len(groups)), 2)
            )
            p[name] = _p_of_means(count[:, i], mean[:, i], variance[:, i])
        for name, table in level_counts.items():
            whole = not (table == HIDDEN).any()
            pairs_ = combinations(range(len(groups)), 2)
            smd[name] = max(_smd_of_levels(table[a], table[b]) for a, b in pairs_) if whole else float("nan")
            p[name] = chi_square_of(table)[1] if whole else float("nan")

    def of(numbers_: np.ndarray) -> dict[str, dict[str, float]]:
        return {
            name: dict(zip(groups, map(float, numbers_[:, i]), strict=True)) for i, name in enumerate(numbers)
        }

    named = {
        name: {
            level: dict(zip(groups, table[:, i].tolist(), strict=True))
            for i, level in enumerate(levels[name])
        }
        for name, table in level_counts.items()
    }
    counts = {name: dict(zip(groups, count[:, i].tolist(), strict=True)) for i, name in enumerate(numbers)}
    return TableOne(
        dict(zip(groups, rows.tolist(), strict=True)), counts, of(mean), of(np.sqrt(variance)), named, smd, p
    )


def chi_square_of(table: np.ndarray) -> tuple[float, float, int]:
    """(Pearson's chi-square, p, degrees of freedom) of a table of counts, without rows and columns that are
    empty."""
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    if min(table.shape) < 2:
        return 0.0, 1.0, 0
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    value, df = float(((table - expected) ** 2 / expected).sum()), (table.shape[0] - 1) * (table.shape[1] - 1)
    return value, float(stats.chi2.sf(value, df)), df


def merged(site_sums: Sequence[Sums]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, means and M2 of all sites together, by Chan's rule; hidden where one site hides its own."""
    hidden = hiding(site_sums, "count") == HIDDEN
    count, mean, m2 = (np.array(site_sums[0][word], np.float64) for word in ("count", "mean", "m2"))
    for one in site_sums[1:]:
        n = count + one["count"]
        share, d = one["count"] / np.maximum(n, 1), np.where(one["count"] > 0, one["mean"] - mean, 0)
        mean, m2 = mean + d * share, m2 + one["m2"] + d**2 * count * share
        count = n
    return (
        np.where(hidden, HIDDEN, count).astype(np.int64),
        np.where(hidden, np.nan, mean),
        np.where(hidden, np.nan, m2),
    )


def hiding(site_sums: Sequence[Sums], word: str) -> np.ndarray:
    """Counts of all sites together; hidden where one site hides its own."""
    each = np.stack([one[word] for one in site_sums])
    return np.where((each == HIDDEN).any(axis=0), HIDDEN, each.sum(axis=0))


def _added(counts: Sequence[int]) -> int:
    return HIDDEN if HIDDEN in counts else sum(counts)


def _share(count: int, whole: int) -> str:
    if count == HIDDEN:
        return "hidden"
    return str(count) if whole == HIDDEN else f"{count} ({count / max(1, whole):.1%})"


def _smd(mean: np.ndarray, variance: np.ndarray) -> float:
    spread = float(np.sqrt(variance.mean()))
    gap = float(abs(mean[0] - mean[1]))
    return gap / spread if spread else 0.0 if not gap else float("inf")


def _smd_of_levels(a: np.ndarray, b: np.ndarray) -> float:
    p, q = a[1:] / max(1, a.sum()), b[1:] / max(1, b.sum())
    covariance = ((np.diag(p) - np.outer(p, p)) + (np.diag(q) - np.outer(q, q))) / 2
    return float(np.sqrt(max(0.0, float((p - q) @ np.linalg.pinv(covariance) @ (p - q)))))


def _p_of_means(count: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """p of Welch's t-test for two groups, or of his analysis of variance for more; NaN where a group's spread
    is unknown, or 0 among more than two."""
    k, spread = len(count), variance / count
    if not np.isfinite(spread).all() or (k > 2 and not (spread > 0).all()):
        return float("nan")
    if k == 2:  # one of them may have no spread
        if not spread.sum():
            return float(mean[0] == mean[1])
        df = spread.sum() ** 2 / (spread**2 / (count - 1)).sum()
        return float(2 * stats.t.sf(abs(mean[0] - mean[1]) / np.sqrt(spread.sum()), df))
    w = 1 / spread
    centre = float((w * mean).sum() / w.sum())
    loose = float((((1 - w / w.sum()) ** 2) / (count - 1)).sum())
    f = float((w * (mean - centre) ** 2).sum() / (k - 1) / (1 + 2 * (k - 2) / (k**2 - 1) * loose))
    return float(stats.f.sf(f, k - 1, (k**2 - 1) / (3 * loose)))
