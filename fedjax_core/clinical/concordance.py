"""Harrell's C-index from counts: the chance that of two people the one who died first had the higher risk.

The site half counts people by bin of time and bin of risk, deaths apart from people who left alive. Counts
add over sites, so that pairs of people at different sites are compared as well. Pairs in one bin of time or
of risk cannot be ordered: `low` and `high` bound the C-index of the exact times and risks. Where times and
risks are the grid's own values (days; points of a score), `exact` counts equal risks as half, and two deaths
on one day as no pair, as lifelines does.

Harrell et al., "Evaluating the yield of medical tests", JAMA 247, 1982.

>>> found = survival_counts([5, 8, 3], [1, 0, 1], [0.4, 0.2, 0.9], np.arange(10.0), np.linspace(0, 1, 11))
>>> concordance(found)
Bounded(value=1.0, low=1.0, high=1.0)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_core.clinical.ranks import Bounded, bins_of


class SurvivalCounts(NamedTuple):
    """People by bin of time and bin of risk."""

    died: np.ndarray  # [T, G]
    left: np.ndarray  # [T, G] alive at their last time


def survival_counts(
    time: ArrayLike, event: ArrayLike, risk: ArrayLike, times: np.ndarray, edges: np.ndarray
) -> SurvivalCounts:
    """The site half: people by bins of the public `times` [T + 1] and `edges` [G + 1]; a higher risk means an
    earlier death.

    Raises ValueError for values that are not finite or are outside the grid.
    """
    time, event, risk = np.asarray(time, float), np.asarray(event, float), np.asarray(risk, float)
    if not time.shape == event.shape == risk.shape or time.ndim != 1 or not np.isin(event, (0, 1)).all():
        raise ValueError(
            f"time, event and risk are [n] of the same people, event 0 or 1; got {time.shape} {event.shape} {risk.shape}"
        )
    for name, value, ends in (("time", time, times), ("risk", risk, edges)):
        if not ((value >= ends[0]) & (value <= ends[-1])).all():
            raise ValueError(
                f"{name} must be between {ends[0]} and {ends[-1]}, the ends of the public grid: give a wider one"
            )
    shape = (len(times) - 1, len(edges) - 1)
    cell = bins_of(time, times) * shape[1] + bins_of(risk, edges)
    return SurvivalCounts(
        *(np.bincount(cell[event == e], minlength=shape[0] * shape[1]).reshape(shape) for e in (1, 0))
    )


def concordance(counts: SurvivalCounts, *, exact: bool = False) -> Bounded:
    """The C-index; NaN where no two people can be compared."""
    died, left = (np.asarray(each, float) for each in counts)
    # [T, G] people whose time is in a later bin
    later = np.cumsum((died + left)[::-1], axis=0)[::-1] - (died + left)
    sure = later + left if exact else later  # people who left on the day of a death lived longer
    lower = np.cumsum(sure, axis=1) - sure
    right, tied, pairs = (
        float((died * each).sum()) for each in (lower, sure, sure.sum(axis=1, keepdims=True))
    )
    if exact:
        value = (right + tied / 2) / pairs if pairs else np.nan
        return Bounded(value, value, value)
    deaths, people = died.sum(axis=1), (died + left).sum(axis=1)
    # Pairs in one bin of time.
    unknown = float((deaths * (people - deaths) + deaths * (deaths - 1) / 2).sum())
    if pairs + unknown == 0:
        return Bounded(np.nan, np.nan, np.nan)
    value = (right + tied / 2) / pairs if pairs else np.nan
    return Bounded(value, right / (pairs + unknown), (right + tied + unknown) / (pairs + unknown))
