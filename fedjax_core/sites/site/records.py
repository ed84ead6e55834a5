"""Finds the bad records that no model could use, so that a site can leave them out and count them.

A record is bad where a column has a number in it that a model's 32 bits cannot hold (NaN, an infinity, 1e39,
a whole number above 2**31), or where the task's own check refuses it (a label out of range).
Their number is in the site's description and audit log; `errors.log` lists them for the site's staff. The
policy decides whether the site takes part with so many (`max_bad_share`); without that setting no record is
left out.

>>> clients = Clients.from_list([{"x": np.array([[1.0], [np.nan], [3.0]], np.float32), "y": np.array([0, 1, 7])}], allow_nan=True)
>>> from fedjax_core import models
>>> good, bad = usable(clients, models.logistic(features=1, classes=2))
>>> good.columns["x"].tolist(), bad.tolist()
([[1.0]], [1, 2])
"""

import contextlib
from typing import Any

import numpy as np

from fedjax_core.data import checks
from fedjax_core.data.clients import Clients
from fedjax_core.sites.site import preprocessing
from fedjax_core.task import Task

_ROWS = 1 << 16  # rows checked at a time


def usable(clients: Clients, task: Task, steps: preprocessing.Steps = ()) -> tuple[Clients, np.ndarray]:
    """(the clients without bad records, positions of those [M]). The same object if none or all are bad.

    In the columns of the preprocessing's `steps`, NaN is a missing value and not bad, and whole numbers may
    be of any size."""
    count = clients.examples
    bad, filled = np.zeros(count, bool), {step.column for step in steps}
    for name, column in clients.named_columns.items():
        for begin in range(0, count, _ROWS):
            part = np.asarray(column[begin : begin + _ROWS])
            good = checks.usable(part, missing=name in filled)
            if name not in filled:
                good &= checks.fits(part)
            bad[begin : begin + _ROWS] |= ~good.reshape(len(part), -1).all(axis=1)
    if (known := preprocessing.alone(steps, clients)) is not None:
        bad[_refused(lambda rows: check_known(task, known.take(rows)), np.flatnonzero(~bad))] = True
    positions = np.flatnonzero(bad)
    if len(positions) in (0, count):
        return clients, positions
    return clients.take(np.flatnonzero(~bad)), positions


def check_known(task: Task, known: Clients) -> None:
    """Raises if the task's own check refuses these examples; it skips columns that are not made yet."""
    if task.check is not None:
        with contextlib.suppress(KeyError):  # the check needs a column that is not made yet
            task.check(known)


def _refused(check: Any, rows: np.ndarray) -> np.ndarray:
    """The rows that the check refuses, found by bisection: k of n rows take about k log n checks."""
    if not len(rows):
        return rows
    try:
        check(rows)
    except ValueError:
        if len(rows) == 1:
            return rows
        half = len(rows) // 2
        return np.concatenate([_refused(check, rows[:half]), _refused(check, rows[half:])])
    return rows[:0]
