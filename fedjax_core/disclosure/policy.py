"""The limits within which results may leave a site: one dataclass, whose defaults are those that data offices
use.

They are the union of DataSHIELD's filters (dsBase 6: cells, parameters, levels, bins) and of the checks of
ACRO, the tool of British trusted research environments (dominance, degrees of freedom). Every minimum is of
people and not of rows.

>>> OutputPolicy(minimum=10, tables="round").base
5
>>> OutputPolicy(minimum=1)
Traceback (most recent call last):
ValueError: minimum must be a whole number of at least 2, got 1: with 1, a single person's record may leave
"""

from dataclasses import dataclass
from typing import Literal, get_args

from fedjax_core.checks import at_least

Tables = Literal["refuse", "suppress", "round"]
Extremes = Literal["refuse", "average"]


@dataclass(frozen=True)
class OutputPolicy:
    """What a site demands of every result. A share is between 0 and 1."""

    minimum: int = 5
    """People behind a cell, subset, level, bin or risk set, and behind any difference of releases."""
    zeros: bool = True
    """Whether an empty cell may be shown. It reveals that nobody of its row is in its column."""
    tables: Tables = "suppress"
    """What is shown of a table with a small cell: nothing, all but hidden cells, or the same rounded to
    `base`."""
    base: int = 5
    parameters: float = 0.33
    """Most parameters of a fit for each person."""
    residual: int = 10
    """Fewest people of a fit, less its parameters."""
    top: int = 2
    top_share: float = 0.9
    """Dominance, NK: the `top` largest contributions to a sum are at most this share of it."""
    p_percent: float = 10.0
    """Dominance, p %: the second largest contributor cannot guess the largest to within this many percent."""
    levels: int = 40
    level_share: float = 0.33
    """Levels of a factor: at most `levels`, and at most `level_share` for each person."""
    bin_share: float = 0.33
    """Most bins of a histogram for each person."""
    extremes: Extremes = "refuse"
    """Smallest and largest values: none, or the average over the `minimum` people who have them."""
    combinations: int = 1_000
    """Most groups of people that the differencing guard tries before it declines."""

    def __post_init__(self) -> None:
        """Raises ValueError for a limit that is out of range."""
        if isinstance(self.minimum, bool) or not isinstance(self.minimum, int) or self.minimum < 2:
            raise ValueError(
                f"minimum must be a whole number of at least 2, got {self.minimum!r}: with 1, a single person's record may leave"
            )
        at_least(2, base=self.base)
        at_least(1, top=self.top, levels=self.levels, combinations=self.combinations)
        at_least(0, residual=self.residual)
        for name in ("parameters", "top_share", "level_share", "bin_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)!r}")
        if not self.p_percent >= 0:
            raise ValueError(f"p_percent must be at least 0, got {self.p_percent!r}")
        for name, kind in (("tables", Tables), ("extremes", Extremes)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )
