"""Tables of counts of people that can be shown: small counts are hidden, and others with them, so that none
can be calculated.

A table is cells x >= 0 and sums A x that are shown: the cells themselves, margins, a total, in any number of
dimensions. A sum of fewer people than the minimum is hidden. A reader of the others can bound it by linear
programming. So for each small sum i there must be another table x + d that agrees with everything shown, and
has `minimum` more people there:

    min  sum_j cost_j u_j    u_j >= |A_j d| beyond what rounding hides,    A_i d = minimum,    x + d >= 0

and every sum with u_j > 0 is hidden as well (Kelly, Golden and Assad, Networks 22, 1992; the cost keeps cells
before margins, and small before large). The reader's interval for each small sum is then at least `minimum`
wide. With rounding, a shown number stands for all that would be rounded to it.

Not covered: readers who know the procedure and run it backwards; several tables together (`differencing` sees
those).

>>> from fedjax_core.disclosure.policy import OutputPolicy
>>> shown = crosstab_sums((2, 3))
>>> found = protect(np.array([20, 2, 30, 25, 40, 11]), shown, OutputPolicy(minimum=5))
>>> found.values[:6], found.primary[:6].nonzero()[0]
(array([20., nan, nan, 25., nan, nan]), array([1]))
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from fedjax_core.disclosure.policy import OutputPolicy


class Protected(NamedTuple):
    """Sums that may be shown, [m] in the order of the rows of `sums`."""

    values: np.ndarray  # NaN where hidden
    primary: np.ndarray  # [m] bool, hidden for being small
    secondary: np.ndarray  # [m] bool, hidden so that these cannot be calculated
    low: np.ndarray  # [m] what a shown number stands for: equal to it, or the ends of what is rounded to it
    high: np.ndarray


def crosstab_sums(shape: tuple[int, ...]) -> np.ndarray:
    """The sums [m, cells] of a table of this shape: its cells in order, then every margin, then the total."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    rows = [np.eye(index.size)]
    # A bit for each axis that is summed over: fewer first.
    for summed in sorted(range(1, 2 ** len(shape)), key=lambda bits: (bits.bit_count(), bits)):
        kept = [axis for axis in range(len(shape)) if not summed >> axis & 1]
        label = np.zeros(shape, int)
        for axis in kept:
            label = label * shape[axis] + np.arange(shape[axis]).reshape(
                [-1 if a == axis else 1 for a in range(len(shape))]
            )
        rows.append(
            (label.ravel() == np.arange(int(np.prod([shape[axis] for axis in kept])))[:, None]).astype(float)
        )
    return np.concatenate(rows)


def protect(counts: np.ndarray, sums: np.ndarray, policy: OutputPolicy) -> Protected:
    """The sums [m] of cells' counts [n] that may be shown under the policy; `sums` [m, n] are 0 or 1.

    With `tables="refuse"` nothing is shown as soon as one sum is small.
    """
    counts = np.asarray(counts, float)
    if (counts < 0).any() or (counts != np.round(counts)).any():
        raise ValueError(
            f"counts of people are whole numbers of at least 0, got {counts[(counts < 0) | (counts % 1 != 0)][:5]}"
        )
    true = sums @ counts
    primary = (true < policy.minimum) & ((true > 0) | (not policy.zeros))
    if policy.tables == "refuse" and primary.any():
        nothing = np.full(len(true), np.nan)
        return Protected(nothing, primary, ~primary, nothing, nothing)
    values, low, high = _rounded(true, policy) if policy.tables == "round" else (true, true, true)
    hidden = primary | ((values < policy.minimum) & (true > 0))
    for i in np.flatnonzero(primary):
        hidden |= _needed(int(i), counts, sums, hidden, low - true, high - true, policy.minimum)
    return Protected(
        *(np.where(hidden, np.nan, values), primary, hidden & ~primary),
        *(np.where(hidden, np.nan, e) for e in (low, high)),
    )


def _rounded(true: np.ndarray, policy: OutputPolicy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rounded values, and the least and most counts that are rounded to each and may be shown)."""
    base = policy.base
    values = np.floor(true / base + 0.5) * base
    low, high = np.ceil(values - base / 2), np.ceil(values + base / 2) - 1
    empty = true == 0
    return values, np.where(empty, 0, np.maximum(low, policy.minimum)), np.where(empty, 0, high)


def _needed(
    i: int,
    counts: np.ndarray,
    sums: np.ndarray,
    hidden: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    more: int,
) -> np.ndarray:
    """[m] bool: the sums to hide so that sum i could be larger by `more`, by the linear programme above.

    Variables are d [n] and u [p] for the p sums that are shown; `low` and `high` are the range that rounding
    leaves around the truth."""
    shown = np.flatnonzero(~hidden)
    a, n, p = sums[shown], len(counts), len(shown)
    size = a.sum(axis=1)
    cost = (1 + a @ counts) * np.where(size > 1, 1000.0 * size, 1.0)
    eye = np.eye(p)
    solution = linprog(
        np.concatenate([np.zeros(n), cost]),
        A_ub=np.block([[a, -eye], [-a, -eye]]),
        b_ub=np.concatenate([high[shown], -low[shown]]),
        A_eq=np.concatenate([sums[i], np.zeros(p)])[None],
        b_eq=[more],
        bounds=[(-x, None) for x in counts] + [(0, None)] * p,
        method="highs",
    )
    if not solution.success:
        raise RuntimeError(f"linear programming found no way to protect a table: {solution.message}")
    needed = np.zeros(len(sums), bool)
    needed[shown] = solution.x[n:] > 1e-7
    return needed
