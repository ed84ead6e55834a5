"""Monitoring of a released model: shift of its inputs or risks, and outcomes that get worse or better than
expected.

    PSI     sum_b (now_b - then_b) log(now_b / then_b)     over shares of people in bins of a grid (below 0.1 is usually called stable)
    CUSUM   C <- max(0, C + W),  an alarm where C >= limit

W adds over people and sites: it is the log likelihood ratio of odds `ratio` times as high as the model says,
against the model,

    y log(ratio) - log(1 - p + ratio p)

Steiner, Cook, Farewell and Treasure, "Monitoring surgical performance using risk-adjusted cumulative sum
charts", Biostatistics 1, 2000. Sites send one sum of W for each period. The limit is found by simulation, so
that without any change the first alarm comes after `run_length` periods on average; that mean comes with its
standard error. `calibration.recalibrate` mends a shift.

>>> float(round(population_stability_index(np.array([50, 50]), np.array([60, 40])), 4))
0.0405
>>> chart = Cusum(limit=1.0)
>>> [chart.add(w) for w in (0.4, -0.9, 0.7, 0.5)]
[False, False, False, True]
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fedjax_core.checks import at_least
from fedjax_core.clinical.performance import check
from fedjax_core.stats.histogram import population_stability_index

__all__ = [
    "Cusum",
    "Limit",
    "RunLength",
    "limit_for",
    "population_stability_index",
    "run_length",
    "weight_sum",
    "weights",
]

_LONGEST = 1_000_000  # most periods of a simulated run


class RunLength(NamedTuple):
    """How many periods pass until an alarm, over simulated runs."""

    mean: float
    standard_error: float


class Limit(NamedTuple):
    """The limit at which a chart gives an alarm, and its run length where nothing changed."""

    limit: float
    run_length: RunLength


@dataclass
class Cusum:
    """A running chart: its value, and the periods with an alarm, after which it begins at 0 again."""

    limit: float
    value: float = 0.0
    periods: int = 0
    alarms: list[int] = field(default_factory=list)

    def add(self, weight: float) -> bool:
        """Adds a period with the sum `weight` of W over all sites; returns whether it gives an alarm."""
        if not np.isfinite(weight):
            raise ValueError(f"a period's weight must be a finite number, got {weight!r}")
        self.periods += 1
        self.value = max(0.0, self.value + float(weight))
        if self.value < self.limit:
            return False
        self.alarms.append(self.periods)
        self.value = 0.0
        return True


def weights(outcome: np.ndarray, risk: np.ndarray, ratio: float = 2.0) -> np.ndarray:
    """W [n] of each person, for odds `ratio` times as high as the model says: above 1 looks for worse, below
    1 for better."""
    outcome, risk = np.asarray(outcome, float), np.asarray(risk, float)
    check(outcome, risk)
    _ratio(ratio)
    return outcome * np.log(ratio) - np.log1p((ratio - 1) * risk)


def weight_sum(outcome: np.ndarray, risk: np.ndarray, ratio: float = 2.0) -> float:
    """The site half: the sum of W over the people of a period."""
    return float(weights(outcome, risk, ratio).sum())


def run_length(
    limit: float,
    risks: np.ndarray,
    *,
    people: int = 1,
    ratio: float = 2.0,
    truth: float = 1.0,
    runs: int = 2000,
    seed: int = 0,
) -> RunLength:
    """Periods until an alarm, by simulation: `people` a period, with risks drawn from `risks` [m] and odds
    `truth` times the model's.

    `truth=1` is the run length without a change, and `truth=ratio` the delay of an alarm.
    """
    return _mean(_first_alarm(limit, risks, people, ratio, truth, runs, seed))


def limit_for(
    length: float, risks: np.ndarray, *, people: int = 1, ratio: float = 2.0, runs: int = 2000, seed: int = 0
) -> Limit:
    """The lowest limit, to a thousandth, whose mean run length without a change is at least `length` periods,
    and that run length."""
    if not length >= 1:
        raise ValueError(f"a run length is at least 1 period, got {length!r}")
    low, high = 0.0, 1.0
    while _first_alarm(high, risks, people, ratio, 1.0, runs, seed).mean() < length:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError("no limit reaches that run length: are there risks above 0?")
    while high - low > 1e-3:
        middle = (low + high) / 2
        enough = _first_alarm(middle, risks, people, ratio, 1.0, runs, seed).mean() >= length
        low, high = (low, middle) if enough else (middle, high)
    return Limit(high, run_length(high, risks, people=people, ratio=ratio, runs=runs, seed=seed + 1))


def _first_alarm(
    limit: float, risks: np.ndarray, people: int, ratio: float, truth: float, runs: int, seed: int
) -> np.ndarray:
    """The period [runs] of each run's first alarm; a run draws the same people for any limit, so that lengths
    grow with it."""
    at_least(1, people=people, runs=runs)
    risks = np.asarray(risks, float)
    check(np.zeros_like(risks), risks)
    _ratio(ratio)
    _ratio(truth, "truth", one=True)
    chance = truth * risks / (1 - risks + truth * risks)
    if not len(risks) or not (chance > 0).any():
        raise ValueError("run lengths need risks, some of them above 0")
    rng = np.random.default_rng(seed)
    value, alarm, period = np.zeros(runs), np.zeros(runs, np.int64), 0
    down = -np.log1p((ratio - 1) * risks)
    while (alarm == 0).any():
        period += 1
        drawn = rng.integers(0, len(risks), (runs, people))
        ill = rng.random((runs, people)) < chance[drawn]
        value = np.maximum(0, value + (down[drawn] + ill * np.log(ratio)).sum(axis=1))
        alarm[(alarm == 0) & (value >= limit)] = period
        if period > _LONGEST:
            raise ValueError(
                f"after {_LONGEST} periods runs are still without an alarm: take a lower limit or run length"
            )
    return alarm


def _mean(alarm: np.ndarray) -> RunLength:
    return RunLength(
        float(alarm.mean()),
        float(alarm.std(ddof=1) / np.sqrt(len(alarm))) if len(alarm) > 1 else float("nan"),
    )


def _ratio(ratio: float, name: str = "ratio", *, one: bool = False) -> None:
    if not 0 < ratio < np.inf or (ratio == 1 and not one):
        raise ValueError(
            f"{name} multiplies odds: a number above 0{'' if one else ' other than 1'}, got {ratio!r}"
        )
