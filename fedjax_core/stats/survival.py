"""Survival curves and their comparison over sites: Kaplan-Meier, restricted means and the log-rank test of
the pooled rows.

    site:     at each time t of a list that all share: d events, n at risk                 by groups
    centre:   S(t) = prod (1 - d / n)   var S = S^2 sum d / (n (n - d))  (Greenwood)   interval on log(-log S)
              log-rank: sum over t of d_g - d n_g / n, with the hypergeometric covariance

The list has the times of all events, which sites send first, or is a public `grid`: times are then rounded up
to the grid, and no patient's time leaves a site. Kaplan and Meier, JASA 1958; Mantel, Cancer Chemotherapy
Reports 1966.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabb"), "time": [1, 2, 3, 4], "event": [1, 0, 1, 0]}, by="site")
>>> curve = kaplan_meier("time, event ~ 1", clients)
>>> curve.times.tolist(), curve.survival.tolist(), curve.median
([1.0, 3.0], [0.75, 0.375], 3.0)
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import chi2, norm

from fedjax_core.stats.base import Limits, Source, Sums, ask, count, total
from fedjax_core.stats.expressions import Expression, check, evaluate
from fedjax_core.stats.formula import Formula, read
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.survey import Missing, Surveyed, survey, truth
from fedjax_core.stats.table import Table


@dataclass(frozen=True)
class Times:
    """The expressions of a row's observation: its time, whether that was an event, and since when (None:
    since 0)."""

    time: Expression
    event: Expression
    entry: Expression | None = None

    def __post_init__(self) -> None:
        for one in (self.time, self.event, self.entry or ["number", 0.0]):
            check(one)

    def known(self, surveyed: Surveyed) -> "Times":
        """The same, with an event of truth values as a number; raises ValueError for an event of other
        text."""
        return replace(self, event=truth(self.event, surveyed))

    def of(self, table: Table, grid: Sequence[float] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(time, event, entry) [rows]; a grid rounds times up, and those after its last to infinity."""
        time, event = evaluate(self.time, table), evaluate(self.event, table)
        entry = np.full(len(time), -np.inf) if self.entry is None else evaluate(self.entry, table)
        if ((event != 0) & (event != 1)).any():
            raise ValueError(
                f"an event is 0 or 1, and is not in {int(((event != 0) & (event != 1)).sum())} rows"
            )
        if (time < 0).any() or (entry >= time).any():
            raise ValueError("a time is below 0, or not after the entry of its row")
        if len(grid):
            time = np.append(grid, np.inf)[np.searchsorted(grid, time)]
        return time, event, entry


@dataclass(frozen=True)
class EventTimes:
    """The site half: the times of events, by strata, with their counts."""

    times: Times
    strata: tuple[str, ...]
    used: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        table = table.complete(self.used)
        time, event, _ = self.times.of(table)
        strata = keys(table, self.strata)
        pairs: dict[tuple[str, float], int] = {}
        for pair in zip(strata[event == 1].tolist(), time[event == 1].tolist(), strict=True):
            pairs[pair] = pairs.get(pair, 0) + 1
        limits.group(table.person_ids, "people", self.used)
        for stratum, event_time in pairs:
            here = (strata == stratum) & (time == event_time) & (event == 1)
            limits.group(
                table.person_ids[here],
                f"people have an event at time {event_time:g}: give a public grid=, or stratify by site",
                self.used,
            )
        names = sorted({stratum for stratum, _ in pairs})
        text = np.frombuffer(json.dumps(names).encode(), np.uint8)[: None if names else 0]
        where = np.array([names.index(stratum) for stratum, _ in pairs], np.int64)
        return {
            "strata": text,
            "stratum": where,
            "times": np.array([event_time for _, event_time in pairs]),
            "events": count(event.sum()),
        }


@dataclass(frozen=True)
class AtRisk:
    """The site half: events and rows at risk at each of these times, by groups."""

    times: Times
    groups: tuple[str, ...]
    """The columns by which rows are grouped."""
    labels: tuple[str, ...]
    grid: tuple[float, ...]
    rounded: bool
    """Whether times are rounded up to the grid."""
    used: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        table = table.complete(self.used)
        limits.group(table.person_ids, "people", self.used)
        time, event, entry = self.times.of(table, self.grid if self.rounded else ())
        key, grid = keys(table, self.groups), np.array(self.grid)
        events, at_risk = (np.zeros((len(self.labels), len(grid)), np.int64) for _ in range(2))
        for g, label in enumerate(self.labels):
            here = key == label
            limits.group(table.person_ids[here], f"people are in group {label!r}", self.used)
            at_risk[g] = counts_from(time[here], grid) - counts_from(entry[here], grid)
            events[g] = counts_from(time[here & (event == 1)], grid) - counts_from(
                time[here & (event == 1)], grid, after=True
            )
            for grid_time in grid:
                risk = here & (time >= grid_time) & (entry < grid_time)
                dead = risk & (event == 1) & (time == grid_time)
                limits.group(
                    table.person_ids[dead],
                    "people have an event at one time: give a coarser grid=",
                    self.used,
                )
                limits.group(
                    table.person_ids[risk], "people are at risk at a time: end the grid before", self.used
                )
        return {"events": events, "at_risk": at_risk}


def counts_from(x: np.ndarray, grid: np.ndarray, after: bool = False) -> np.ndarray:
    """[T] the number of x at each grid time or later; strictly `after` it."""
    return len(x) - np.searchsorted(np.sort(x), grid, side="right" if after else "left")


def keys(table: Table, columns: Sequence[str]) -> np.ndarray:
    """[rows] text: the labels of these columns, joined."""
    joined = np.full(table.rows, "", dtype=object)
    for i, name in enumerate(columns):
        joined = joined + (" / " if i else "") + table.labels(name).astype(object)
    return np.array(joined, dtype=str)


def event_times(
    source: Source, times: Times, strata: Sequence[str], used: Sequence[str]
) -> list[tuple[str, float]]:
    """(stratum, time) of all events at all sites, sorted; raises where there is none."""
    site_sums = ask(source, EventTimes(times, tuple(strata), tuple(used)))
    pairs = set()
    for one in site_sums:
        names = json.loads(bytes(one["strata"])) if len(one["strata"]) else []
        pairs |= {
            (names[i], time) for i, time in zip(one["stratum"].tolist(), one["times"].tolist(), strict=True)
        }
    if not pairs:
        raise ValueError("there is no event at any site, so there is nothing to analyse")
    return sorted(pairs)


def outcome(formula: Formula) -> Times:
    """The `Times` of a formula's left side, "time, event" or "entry, time, event", before it is known what the
    columns hold (`Times.known`)."""
    if len(formula.outcomes) not in (2, 3):
        raise ValueError(
            f"{formula.text!r} needs 'time, event ~ ...', or 'entry, time, event ~ ...' on its left, got {len(formula.outcomes)} parts"
        )
    *entry, time, event = formula.outcomes
    return Times(time, event, entry[0] if entry else None)


@dataclass(frozen=True, repr=False)
class KaplanMeier:
    """A survival curve: steps at `times` [T]."""

    times: np.ndarray
    at_risk: np.ndarray
    events: np.ndarray

    @property
    def survival(self) -> np.ndarray:
        """[T] survival at each time, after its events."""
        return np.cumprod(1 - self.events / np.maximum(self.at_risk, 1))

    @property
    def standard_errors(self) -> np.ndarray:
        """[T] standard errors by Greenwood's formula."""
        left = self.at_risk - self.events
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(left > 0, self.events / (self.at_risk * left), np.inf)
            return np.where(self.survival > 0, self.survival * np.sqrt(np.cumsum(terms)), 0.0)

    @property
    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) [T] of 95 %, on the scale log(-log S)."""
        s = self.survival
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.exp(norm.ppf(0.975) * self.standard_errors / (s * np.log(s)))
            low, high = s ** (1 / reach), s**reach
        return np.where((s > 0) & (s < 1), low, s), np.where((s > 0) & (s < 1), high, s)

    @property
    def median(self) -> float:
        """The first time at which survival is a half or less; infinity where it is never."""
        below = np.flatnonzero(self.survival <= 0.5 + 1e-12)
        return float(self.times[below[0]]) if below.size else float("inf")

    def at(self, times: Any) -> np.ndarray:
        """Survival at these times."""
        return np.append(1.0, self.survival)[
            np.searchsorted(self.times, np.asarray(times, np.float64), side="right")
        ]

    def rmst(self, until: float) -> tuple[float, float]:
        """(the mean time survived within `until`, its standard error)."""
        edges = np.append(np.append(0.0, self.times[self.times < until]), until)
        areas = np.diff(edges) * self.at(edges[:-1])
        left = np.array([areas[i + 1 :].sum() for i in range(len(areas) - 1)])
        d, n = self.events[: len(left)], self.at_risk[: len(left)]
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(d > 0, np.where(n > d, left**2 * d / (n * (n - d)), 0.0), 0.0)
        return float(areas.sum()), float(np.sqrt(terms.sum()))

    def __repr__(self) -> str:
        low, high = self.intervals
        rows = [["time", "at risk", "events", "survival", "95 % interval"]]
        some = (
            range(len(self.times))
            if len(self.times) <= 12
            else np.linspace(0, len(self.times) - 1, 12).astype(int)
        )
        for i in some:
            rows.append(
                [
                    f"{self.times[i]:g}",
                    f"{self.at_risk[i]}",
                    f"{self.events[i]}",
                    f"{self.survival[i]:.4f}",
                    f"{low[i]:.4f} to {high[i]:.4f}",
                ]
            )
        return f"Kaplan-Meier: {int(self.events.sum())} events, median {self.median:g}\n\n{aligned(rows)}"


@dataclass(frozen=True)
class LogRank:
    """The log-rank test of whether groups survive alike."""

    chi2: float
    df: int
    p_value: float
    observed: dict[str, int]
    expected: dict[str, float]


def kaplan_meier(
    formula: str, source: Source, *, grid: Sequence[float] | None = None, missing: Missing = "refuse"
) -> Any:
    """The survival curve of "time, event ~ 1", or {group: curve} of "time, event ~ arm".

    With a public `grid`, times are rounded up to the grid, and times after its last are censored there.
    Without, sites send the times of events, which their policy may refuse.
    """
    curves = curves_of(*counts_by_groups(formula, source, grid, missing))
    return curves[""] if list(curves) == [""] else curves


def logrank(
    formula: str, source: Source, *, grid: Sequence[float] | None = None, missing: Missing = "refuse"
) -> LogRank:
    """The log-rank test of "time, event ~ arm": whether the groups of the right side survive alike. `grid` as
    in `kaplan_meier`."""
    counted, labels, _ = counts_by_groups(formula, source, grid, missing)
    if len(labels) < 2:
        raise ValueError(
            f"{formula!r} has one group alone: a log-rank test compares two or more, as in 'time, event ~ arm'"
        )
    d_g, n_g = counted["events"].astype(np.float64), counted["at_risk"].astype(np.float64)
    d, n = d_g.sum(0), n_g.sum(0)
    share = n_g / np.maximum(n, 1)
    expected = (share * d).sum(1)
    spread = d * (n - d) / np.maximum(n - 1, 1)
    covariance = np.diag((share * spread).sum(1)) - np.einsum("gt,ht,t->gh", share, share, spread)
    gap = (d_g.sum(1) - expected)[:-1]
    statistic, df = float(gap @ np.linalg.pinv(covariance[:-1, :-1]) @ gap), len(labels) - 1
    observed = dict(zip(labels, d_g.sum(1).astype(int).tolist(), strict=True))
    return LogRank(
        statistic,
        df,
        float(chi2.sf(statistic, df)),
        observed,
        dict(zip(labels, expected.tolist(), strict=True)),
    )


def counts_by_groups(
    formula: str, source: Source, grid: Sequence[float] | None, missing: Missing, also: Sequence[float] = ()
) -> tuple[dict[str, np.ndarray], tuple[str, ...], np.ndarray]:
    """(events and rows at risk [G, T], the labels of the groups, the times); without a grid, the times
    include `also`."""
    parsed = read(formula)
    times, groups = outcome(parsed), groups_of(parsed)
    known = survey(source, parsed.columns, groups, missing)
    times = times.known(known)
    labels = tuple(known.levels[groups[0]]) if groups else ("",)
    if grid is not None:
        grid_times = check_grid(grid)
    else:
        grid_times = tuple(
            sorted({*also, *(time for _, time in event_times(source, times, (), tuple(known.kinds)))})
        )
    statistic = AtRisk(times, groups, labels, grid_times, grid is not None, tuple(known.kinds))
    return total(ask(source, statistic)), labels, np.array(grid_times)


def curves_of(counted: Sums, labels: Sequence[str], times: np.ndarray) -> dict[str, KaplanMeier]:
    """{group: its curve}, from events and rows at risk [G, T]."""
    curves = {}
    for g, label in enumerate(labels):
        events, at_risk = counted["events"][g], counted["at_risk"][g]
        curves[label] = KaplanMeier(times[events > 0], at_risk[events > 0], events[events > 0])
    return curves


def check_grid(grid: Sequence[float]) -> tuple[float, ...]:
    """The times of a public grid; raises where they do not ascend."""
    times = tuple(map(float, grid))
    if not times or any(b <= a for a, b in pairwise(times)) or not np.isfinite(times).all():
        raise ValueError("grid= needs times that ascend, such as range(30, 720, 30)")
    return times


def groups_of(formula: Formula) -> tuple[str, ...]:
    """The column of groups on the right side of a formula, or none; raises ValueError for several, and for
    other expressions."""
    right = [factor.expression for term in formula.terms for factor in term]
    if any(one[0] != "column" for one in right):
        raise ValueError(
            f"{formula.text!r}: groups are those of a column, and the right side has another expression"
        )
    groups = tuple(dict.fromkeys(one[1] for one in right))
    if len(groups) > 1:
        raise ValueError(
            f"{formula.text!r} has several columns of groups: make one of them before, and name that"
        )
    return groups
