"""Restricted mean survival time: how long people live within a time that is chosen beforehand, by groups, and
how groups differ.

    mean = area under S up to `until`       difference a - b with sqrt(e_a^2 + e_b^2), ratio on the log scale with e / mean

It needs no proportional hazards. Curves, and what sites send, are those of `kaplan_meier`. Royston and
Parmar, BMC Medical Research Methodology 2013.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabb"), "t": [1, 2, 3, 4], "d": [1, 1, 1, 1], "arm": list("xyxy")}, by="site")
>>> found = rmst("t, d ~ arm", clients, until=4)
>>> found.means, found.differences["y"]
({'x': 2.0, 'y': 3.0}, 1.0)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from fedjax_core.stats.base import Source
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.survey import Missing
from fedjax_core.stats.survival import counts_by_groups, curves_of


@dataclass(frozen=True, repr=False)
class Rmst:
    """Mean times survived within `until`, in the unit of the times; differences and ratios are to the first
    group."""

    until: float
    means: dict[str, float]
    standard_errors: dict[str, float]

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """{group: (low, high)} of 95 % for its mean."""
        return {group: self._around(mean, self.standard_errors[group]) for group, mean in self.means.items()}

    @property
    def differences(self) -> dict[str, float]:
        """{group: its mean less the first group's}, for all groups but the first."""
        first, *others = self.means
        return {group: self.means[group] - self.means[first] for group in others}

    @property
    def difference_intervals(self) -> dict[str, tuple[float, float]]:
        """{group: (low, high)} of 95 % for its difference."""
        return {group: self._around(gap, self._error(group)) for group, gap in self.differences.items()}

    @property
    def p_values(self) -> dict[str, float]:
        """{group: two-sided p of its difference being 0}."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                group: float(2 * norm.sf(np.divide(abs(gap), self._error(group))))
                for group, gap in self.differences.items()
            }

    @property
    def ratios(self) -> dict[str, tuple[float, float, float]]:
        """{group: (its mean over the first group's, low, high)}, of 95 %."""
        first = next(iter(self.means))
        ratios, errors = {}, {one: error / self.means[one] for one, error in self.standard_errors.items()}
        for group in self.differences:
            ratio = self.means[group] / self.means[first]
            reach = norm.ppf(0.975) * np.hypot(errors[first], errors[group])
            ratios[group] = (ratio, float(ratio * np.exp(-reach)), float(ratio * np.exp(reach)))
        return ratios

    def _error(self, group: str) -> float:
        return float(np.hypot(self.standard_errors[next(iter(self.means))], self.standard_errors[group]))

    def _around(self, value: float, error: float) -> tuple[float, float]:
        reach = float(norm.ppf(0.975)) * error
        return value - reach, value + reach

    def __repr__(self) -> str:
        lines, gaps, p = [["", "mean", "95 % interval", "difference", "p"]], self.differences, self.p_values
        for group, (low, high) in self.intervals.items():
            more = [f"{gaps[group]:.4f}", f"{p[group]:.4f}"] if group in gaps else ["", ""]
            lines.append([group or "all", f"{self.means[group]:.4f}", f"{low:.4f} to {high:.4f}", *more])
        return f"mean time survived within {self.until:g}\n\n{aligned(lines)}"


def rmst(
    formula: str,
    source: Source,
    *,
    until: float,
    grid: Sequence[float] | None = None,
    missing: Missing = "refuse",
) -> Rmst:
    """The restricted means of "time, event ~ arm", or of all rows in "time, event ~ 1". `grid` as in
    `kaplan_meier`.

    Raises ValueError where a group has survivors and none of them is followed to `until`: the curve there is
    unknown."""
    if not (np.isfinite(until) and until > 0):
        raise ValueError(f"until= needs a time above 0, got {until}")
    counted, labels, times = counts_by_groups(formula, source, grid, missing, (float(until),))
    position = int(np.searchsorted(times, until))
    if position == len(times):
        raise ValueError(f"grid= ends at {times[-1]:g}, before until={until:g}: let it reach there")
    means, errors = {}, {}
    for (group, curve), at_risk in zip(
        curves_of(counted, labels, times).items(), counted["at_risk"][:, position].tolist(), strict=True
    ):
        if not at_risk and curve.at([until])[0] > 0:
            of_group = f"of group {group!r} " if group else ""
            raise ValueError(
                f"nobody {of_group}is followed to {until:g}, so the curve there is not known: choose an earlier until="
            )
        means[group], errors[group] = curve.rmst(float(until))
    return Rmst(float(until), means, errors)
