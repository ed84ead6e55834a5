"""Cumulative incidence under competing risks over sites: the Aalen-Johansen curves of the pooled rows.

    site:     at each time of a list that all share: events of each cause, rows at risk            by groups
    centre:   F_k(t) = sum over s <= t of S(s-) d_k(s) / n(s)        S: Kaplan-Meier's curve of any cause
              var F_k by the delta method, as in Marubini and Valsecchi, 1995:
              sum (F_k(t) - F_k(s))^2 d / (n (n - d)) + S(s-)^2 d_k (n - d_k) / n^3
                  - 2 (F_k(t) - F_k(s)) S(s-) d_k / n^2

One minus the Kaplan-Meier curve of one cause, with the other causes as censored, is too high: it treats
people as if these did not exist. Aalen and Johansen, Scandinavian Journal of Statistics 1978.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabb"), "time": [1, 2, 3, 4], "cause": [1, 2, 1, 0]}, by="site")
>>> curves = cumulative_incidence("time, cause ~ 1", clients)
>>> curves["1"].at([1, 3]).tolist(), curves["2"].at([4]).tolist()
([0.25, 0.5], [0.25])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from fedjax_core.stats.base import Source, ask, total
from fedjax_core.stats.expressions import Expression
from fedjax_core.stats.formula import read
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.survey import Missing, survey
from fedjax_core.stats.survival import AtRisk, Times, check_grid, event_times, groups_of


@dataclass(frozen=True, repr=False)
class Incidence:
    """The share of people who had one cause's event by each of `times` [T]."""

    times: np.ndarray
    at_risk: np.ndarray
    events: np.ndarray
    """Of this cause."""
    any_events: np.ndarray
    """Of any cause."""

    @property
    def incidence(self) -> np.ndarray:
        """[T] cumulative incidence."""
        return np.cumsum(self._before * self.events / np.maximum(self.at_risk, 1))

    @property
    def standard_errors(self) -> np.ndarray:
        """[T] standard errors of the incidence."""
        f, before, k = self.incidence, self._before, self.events.astype(np.float64)
        n, d = np.maximum(self.at_risk, 1).astype(np.float64), self.any_events.astype(np.float64)
        # Where nobody is left, F does not change any more.
        a = np.divide(d, n * (n - d), out=np.zeros_like(d), where=n > d)
        b, c = before**2 * k * (n - k) / n**3, before * k / n**2
        one = f**2 * np.cumsum(a) - 2 * f * np.cumsum(a * f) + np.cumsum(a * f**2)
        return np.sqrt(np.maximum(one + np.cumsum(b) - 2 * (f * np.cumsum(c) - np.cumsum(c * f)), 0.0))

    @property
    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) [T] of 95 %, on the scale log(-log(1 - F))."""
        s = 1 - self.incidence
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.exp(norm.ppf(0.975) * self.standard_errors / (s * np.log(s)))
            low, high = 1 - s**reach, 1 - s ** (1 / reach)
        known = (s > 0) & (s < 1)
        return np.where(known, low, 1 - s), np.where(known, high, 1 - s)

    def at(self, times: Any) -> np.ndarray:
        """The incidence at these times."""
        return np.append(0.0, self.incidence)[
            np.searchsorted(self.times, np.asarray(times, np.float64), side="right")
        ]

    @property
    def _before(self) -> np.ndarray:
        """[T] share of people without any event just before each time."""
        return np.append(1.0, np.cumprod(1 - self.any_events / np.maximum(self.at_risk, 1))[:-1])

    def __repr__(self) -> str:
        low, high = self.intervals
        rows = [["time", "at risk", "events", "incidence", "95 % interval"]]
        some = (
            range(len(self.times))
            if len(self.times) <= 12
            else np.linspace(0, len(self.times) - 1, 12).astype(int)
        )
        for i in some:
            cells = (
                f"{self.times[i]:g}",
                f"{self.at_risk[i]}",
                f"{self.events[i]}",
                f"{self.incidence[i]:.4f}",
            )
            rows.append([*cells, f"{low[i]:.4f} to {high[i]:.4f}"])
        return f"cumulative incidence: {int(self.events.sum())} events\n\n{aligned(rows)}"


def cumulative_incidence(
    formula: str,
    source: Source,
    *,
    censored: Any = 0,
    grid: Sequence[float] | None = None,
    missing: Missing = "refuse",
) -> Any:
    """{cause: `Incidence`} of "time, cause ~ 1", or {group: {cause: incidence}} of "time, cause ~ arm".

    `censored`: the cause's value for no event. `grid` as in `kaplan_meier`. Where people enter late, the left
    side is "entry, time, cause".
    """
    parsed = read(formula)
    *entry, time, cause = parsed.outcomes if len(parsed.outcomes) in (2, 3) else (None, None)
    if cause is None or time is None or cause[0] != "column":
        raise ValueError(
            f"{formula!r} needs 'time, cause ~ ...' on its left, where cause is a column, {censored!r} where there is no event"
        )
    name, groups = cause[1], groups_of(parsed)
    known = survey(source, parsed.columns, (name, *groups), missing)
    number = known.kinds[name] != "text"
    none = str(float(censored)) if known.kinds[name] == "number" else str(censored)
    causes = [level for level in known.levels[name] if level != none]
    if not number and none not in known.levels[name]:
        raise ValueError(
            f"{name!r} is never {none!r}; there are {', '.join(known.levels[name])}: name the value that is no event by censored="
        )
    if not causes:
        raise ValueError(
            f"{name!r} is {censored!r} in all rows, so there is no event: name the value that is none by censored="
        )
    labels = tuple(known.levels[groups[0]]) if groups else ("",)
    used, start = tuple(known.kinds), entry[0] if entry else None

    def when(event: Expression) -> Times:
        return Times(time, event, start)

    def cause_is(level: str) -> Expression:
        return ["==", ["column", name], ["number", float(level)]] if number else ["is", name, level]

    anyone = when(["-", ["number", 1.0], cause_is(none)])
    times = (
        check_grid(grid)
        if grid is not None
        else tuple(sorted({x for _, x in event_times(source, anyone, (), used)}))
    )
    of = {
        level: total(
            ask(source, AtRisk(when(cause_is(level)), groups, labels, times, grid is not None, used))
        )
        for level in causes
    }
    whole = np.sum([one["events"] for one in of.values()], axis=0)
    curves = {}
    for g, label in enumerate(labels):
        there = whole[g] > 0
        curves[label] = {
            level: Incidence(
                np.array(times)[there], one["at_risk"][g][there], one["events"][g][there], whole[g][there]
            )
            for level, one in of.items()
        }
    return curves if groups else curves[""]
