"""Steps of preprocessing for numbers: `Standardise`, `Impute` and `Rescale`, as if the clients' examples were
pooled.

Moments go as count, mean and M2 = sum (x - mean)^2 of the values that are there. They hold the same as count,
sum and sum of squares, without the cancellation of these, and merge by

    d = mean_b - mean_a      mean = mean_a + d n_b / n      M2 = M2_a + M2_b + d^2 n_a n_b / n

Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", COMPSTAT
1982.

>>> step = Standardise("x")
>>> parameters = step.finalize(step.merge(step.sums(np.array([2.0]), 0), step.sums(np.array([4.0, np.nan]), 0)))
>>> float(parameters["mean"]), step.apply(np.array([2.0, np.nan]), parameters).tolist()
(3.0, [-1.0, 0.0])
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_core.data import checks, spill
from fedjax_core.data.step import Folder, Sums

_CHUNK_BYTES = 32 << 20  # bytes of rows as float64 at a time, so that memory does not grow with the data


class _Moments:
    """The shared part of steps that use count, mean and M2 of each number of a row."""

    releases = ("moments",)
    column: str

    def sums(self, x: np.ndarray, min_cell: int) -> Sums:
        total = self._of(np.zeros((0, *x.shape[1:])))
        for rows in _chunks(x, self.column):
            total = self.merge(total, self._of(rows))
        enough = total["count"] >= min_cell
        return {name: np.where(enough, value, 0) for name, value in total.items()}

    def _of(self, rows: np.ndarray) -> Sums:
        here = ~np.isnan(rows)
        count = here.sum(axis=0, dtype=np.int64)
        mean = np.where(here, rows, 0).sum(axis=0) / np.maximum(count, 1)
        return {"count": count, "mean": mean, "m2": (np.where(here, rows - mean, 0) ** 2).sum(axis=0)}

    def merge(self, a: Sums, b: Sums) -> Sums:
        count = a["count"] + b["count"]
        share, d = b["count"] / np.maximum(count, 1), b["mean"] - a["mean"]
        d = np.where((a["count"] > 0) & (b["count"] > 0), d, 0)
        mean = np.where(a["count"] > 0, a["mean"] + d * share, b["mean"])
        return {"count": count, "mean": mean, "m2": a["m2"] + b["m2"] + d**2 * a["count"] * share}

    def validate(self, sums: Sums, examples: int) -> str | None:
        if not _alike(sums):
            return "they are not of one shape"
        if (sums["count"] < 0).any() or (sums["count"] > examples).any():
            return "a count is below 0, or above the site's examples"
        if not (
            np.isfinite(sums["mean"]).all() and np.isfinite(sums["m2"]).all() and (sums["m2"] >= 0).all()
        ):
            return "a mean or a sum of squares is not finite or below 0"
        # They would be added all the same.
        if ((sums["count"] == 0) & ((sums["mean"] != 0) | (sums["m2"] != 0))).any():
            return "there is a mean or a sum of squares of no values"
        return None


@dataclass(frozen=True)
class Standardise(_Moments):
    """Scales to mean 0 and variance 1 over all clients' values, in float32; a missing value becomes 0, the
    mean.

    A constant number of a row becomes 0, as in scikit-learn's StandardScaler, and so does one that nobody
    has."""

    column: str = "x"

    def finalize(self, sums: Sums) -> Sums:
        count, mean, eps = np.maximum(sums["count"], 1), sums["mean"], np.finfo(np.float64).eps
        variance = sums["m2"] / count
        # no more than the rounding of the sums
        constant = variance <= count * eps * variance + (count * mean * eps) ** 2
        return {"mean": mean, "scale": np.where(constant, 1.0, np.sqrt(variance))}

    def apply(self, x: np.ndarray, parameters: Sums, folder: Folder = None) -> np.ndarray:
        return _rowwise(
            x,
            self.column,
            lambda rows: np.nan_to_num((rows - parameters["mean"]) / parameters["scale"], nan=0.0),
            folder,
        )


@dataclass(frozen=True)
class Impute(_Moments):
    """Replaces a missing value by the mean over all clients' values, in float32; by 0 where nobody has
    one."""

    column: str = "x"

    def finalize(self, sums: Sums) -> Sums:
        return {"mean": sums["mean"]}

    def apply(self, x: np.ndarray, parameters: Sums, folder: Folder = None) -> np.ndarray:
        checks.exact(x, self.column)  # the other steps, which move the mean to 0, need no such check
        return _rowwise(
            x, self.column, lambda rows: np.where(np.isnan(rows), parameters["mean"], rows), folder
        )


@dataclass(frozen=True)
class Rescale:
    """Scales all clients' values to the range from 0 to 1, in float32; a missing value becomes 0.

    Sites report their smallest and largest values, which are values of single persons: a policy must name
    `range` for that."""

    column: str = "x"
    releases = ("range",)

    def sums(self, x: np.ndarray, min_cell: int) -> Sums:
        count = np.zeros(x.shape[1:], np.int64)
        low, high = np.full(x.shape[1:], np.inf), np.full(x.shape[1:], -np.inf)
        for rows in _chunks(x, self.column):
            here = ~np.isnan(rows)
            count = count + here.sum(axis=0)
            low = np.minimum(low, np.where(here, rows, np.inf).min(axis=0))
            high = np.maximum(high, np.where(here, rows, -np.inf).max(axis=0))
        enough = (count >= min_cell) & (count > 0)
        return {
            "count": np.where(enough, count, 0),
            "low": np.where(enough, low, 0),
            "high": np.where(enough, high, 0),
        }

    def merge(self, a: Sums, b: Sums) -> Sums:
        neither, one, two = a["count"] + b["count"] == 0, a["count"] > 0, b["count"] > 0
        low = np.minimum(np.where(one, a["low"], np.inf), np.where(two, b["low"], np.inf))
        high = np.maximum(np.where(one, a["high"], -np.inf), np.where(two, b["high"], -np.inf))
        return {
            "count": a["count"] + b["count"],
            "low": np.where(neither, 0, low),
            "high": np.where(neither, 0, high),
        }

    def validate(self, sums: Sums, examples: int) -> str | None:
        if not _alike(sums):
            return "they are not of one shape"
        if (sums["count"] < 0).any() or (sums["count"] > examples).any():
            return "a count is below 0, or above the site's examples"
        fine = np.isfinite(sums["low"]) & np.isfinite(sums["high"]) & (sums["low"] <= sums["high"])
        return None if fine.all() else "a range is not finite, or ends before it begins"

    def finalize(self, sums: Sums) -> Sums:
        width = sums["high"] - sums["low"]
        return {"low": sums["low"], "scale": np.where(width > 0, width, 1.0)}

    def apply(self, x: np.ndarray, parameters: Sums, folder: Folder = None) -> np.ndarray:
        return _rowwise(
            x,
            self.column,
            lambda rows: np.nan_to_num((rows - parameters["low"]) / parameters["scale"], nan=0.0),
            folder,
        )


def _alike(sums: Sums) -> bool:
    return len({x.shape for x in sums.values()}) == 1


def _chunks(x: np.ndarray, column: str) -> Iterator[np.ndarray]:
    """The rows as float64, some at a time; raises where one holds what cannot be computed with."""
    size = max(1, _CHUNK_BYTES // max(1, 8 * int(np.prod(x.shape[1:]))))
    for begin in range(0, len(x), size):
        rows = x[begin : begin + size].astype(np.float64)
        good = checks.usable(rows, missing=True)
        if not good.all():
            row = begin + int(np.argwhere(~good)[0][0])
            raise ValueError(
                f"column {column!r} holds an infinity, or a number of more than {checks.LARGEST:.2g}, in row {row}, beside which the "
                "others vanish in float32: missing values are NaN, so make it that if it stands for one, or choose another unit"
            )
        yield rows


def _rowwise(x: np.ndarray, column: str, one: Any, folder: Folder) -> np.ndarray:
    """`one` applied to the rows in float64, some at a time; the result is in float32."""
    scaled, begin = spill.room(x.shape, np.float32, x, folder), 0
    for rows in _chunks(x, column):
        scaled[begin : begin + len(rows)] = one(rows)
        begin += len(rows)
    spill.settle(scaled)
    return scaled
