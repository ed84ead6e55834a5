"""Fits preprocessing from sums: every client gives sums of its columns, and one scaler or vocabulary for all is made from them.

    sums_i = step.sums(x_i)  ─►  merge, in the clients' order  ─►  numbers = step.finalize(...)  ─►  step.apply(x_i, numbers) at each client

The result is that of preprocessing the pooled examples. Moments go as count, mean and M2 = sum (x - mean)^2 of the values that are there,
which say what count, sum and sum of squares say, without their cancellation, and merge by

    d = mean_b - mean_a      mean = mean_a + d n_b / n      M2 = M2_a + M2_b + d^2 n_a n_b / n

Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", COMPSTAT 1982. NaN is a missing value.
The same steps are an argument of `Federation`, where sites send the sums that their policy lets leave.

>>> from fedjax_core.data.clients import Clients
>>> raw = Clients.from_list([{"x": np.array([[2.0], [np.nan]])}, {"x": np.array([[4.0]])}], allow_nan=True)
>>> fitted = fit([Standardise("x")], raw)
>>> fitted.numbers[0]["mean"].tolist(), fitted.apply(raw)[0]["x"].tolist()
([3.0], [[-1.0], [0.0]])
>>> wards = Clients.from_list([{"ward": np.array(["icu", "ear"])}, {"ward": np.array(["ear", "onc"])}])
>>> [one["ward"].tolist() for one in fit([Codes("ward", minimum=1)], wards).apply(wards)]
[[1, 0], [0, 2]]
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedjax_core.data import checks, spill
from fedjax_core.data.clients import Clients
from fedjax_core.data.given import is_text
from fedjax_core.types import Columns

Folder = str | Path | None

Sums = Mapping[str, np.ndarray]
"""A client's sums of a column, or the numbers that are made of all clients': named arrays."""

_CHUNK_BYTES = 32 << 20  # of rows as float64 at a time, so that memory does not grow with the data


class Step(Protocol):
    """One thing done to one column. All methods are pure; `merge` does not mind how clients are grouped, beyond rounding."""

    @property
    def column(self) -> str: ...
    @property
    def releases(self) -> tuple[str, ...]: ...  # names under which a site's policy lets the sums leave
    def sums(self, x: np.ndarray, min_cell: int) -> Sums: ...  # what is known of fewer than `min_cell` examples is left out
    def merge(self, a: Sums, b: Sums) -> Sums: ...
    def problem(self, sums: Sums, examples: int) -> str | None: ...  # what is wrong with sums that somebody sent
    def finalize(self, sums: Sums) -> Sums: ...
    def apply(self, x: np.ndarray, numbers: Sums, folder: Folder = None) -> np.ndarray: ...  # what is large and mapped goes to the folder


class _Moments:
    """What steps share that go by count, mean and M2 of each number of a row."""

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

    def problem(self, sums: Sums, examples: int) -> str | None:
        if not _alike(sums):
            return "they are not of one shape"
        if (sums["count"] < 0).any() or (sums["count"] > examples).any():
            return "a count is below 0, or above the site's examples"
        if not (np.isfinite(sums["mean"]).all() and np.isfinite(sums["m2"]).all() and (sums["m2"] >= 0).all()):
            return "a mean or a sum of squares is not finite or below 0"
        if ((sums["count"] == 0) & ((sums["mean"] != 0) | (sums["m2"] != 0))).any():  # which would be added all the same
            return "there is a mean or a sum of squares of no values"
        return None


@dataclass(frozen=True)
class Standardise(_Moments):
    """To mean 0 and variance 1 over all clients' values, in float32; a missing value becomes 0, the mean.

    A constant number of a row becomes 0, as in scikit-learn's StandardScaler, and so does one that nobody has.
    """

    column: str = "x"

    def finalize(self, sums: Sums) -> Sums:
        count, mean, eps = np.maximum(sums["count"], 1), sums["mean"], np.finfo(np.float64).eps
        variance = sums["m2"] / count
        constant = variance <= count * eps * variance + (count * mean * eps) ** 2  # no more than the rounding of the sums
        return {"mean": mean, "scale": np.where(constant, 1.0, np.sqrt(variance))}

    def apply(self, x: np.ndarray, numbers: Sums, folder: Folder = None) -> np.ndarray:
        return _rowwise(x, self.column, lambda rows: np.nan_to_num((rows - numbers["mean"]) / numbers["scale"], nan=0.0), folder)


@dataclass(frozen=True)
class Impute(_Moments):
    """A missing value becomes the mean over all clients' values, in float32; 0 where nobody has one."""

    column: str = "x"

    def finalize(self, sums: Sums) -> Sums:
        return {"mean": sums["mean"]}

    def apply(self, x: np.ndarray, numbers: Sums, folder: Folder = None) -> np.ndarray:
        checks.exact(x, self.column)  # which moving to a mean of 0, as the other steps do, would not need
        return _rowwise(x, self.column, lambda rows: np.where(np.isnan(rows), numbers["mean"], rows), folder)


@dataclass(frozen=True)
class Rescale:
    """So that all clients' values lie from 0 to 1, in float32; a missing value becomes 0.

    Sites tell their smallest and largest value, which are those of single persons: a policy must name `range` for that.
    """

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
        told = (count >= min_cell) & (count > 0)
        return {"count": np.where(told, count, 0), "low": np.where(told, low, 0), "high": np.where(told, high, 0)}

    def merge(self, a: Sums, b: Sums) -> Sums:
        neither, one, two = a["count"] + b["count"] == 0, a["count"] > 0, b["count"] > 0
        low = np.minimum(np.where(one, a["low"], np.inf), np.where(two, b["low"], np.inf))
        high = np.maximum(np.where(one, a["high"], -np.inf), np.where(two, b["high"], -np.inf))
        return {"count": a["count"] + b["count"], "low": np.where(neither, 0, low), "high": np.where(neither, 0, high)}

    def problem(self, sums: Sums, examples: int) -> str | None:
        if not _alike(sums):
            return "they are not of one shape"
        if (sums["count"] < 0).any() or (sums["count"] > examples).any():
            return "a count is below 0, or above the site's examples"
        fine = np.isfinite(sums["low"]) & np.isfinite(sums["high"]) & (sums["low"] <= sums["high"])
        return None if fine.all() else "a range is not finite, or ends before it begins"

    def finalize(self, sums: Sums) -> Sums:
        width = sums["high"] - sums["low"]
        return {"low": sums["low"], "scale": np.where(width > 0, width, 1.0)}

    def apply(self, x: np.ndarray, numbers: Sums, folder: Folder = None) -> np.ndarray:
        return _rowwise(x, self.column, lambda rows: np.nan_to_num((rows - numbers["low"]) / numbers["scale"], nan=0.0), folder)


@dataclass(frozen=True)
class Codes:
    """A column of text, or of whole numbers, as codes 0, 1, ... of its categories, in int32; V, their number, for all others.

    The categories are given, in the order of their codes: the way for labels, as in `Codes("y", categories=("benign", "malignant"))`, for
    which nothing has to leave a site. Or they are those that clients have, in ascending order: a client then tells only of categories of
    which it has `minimum` examples, so one that is rare everywhere has no code of its own.
    """

    column: str
    minimum: int = 5
    categories: Sequence[str] | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.categories is None:
            return
        given: tuple[Any, ...] = tuple(self.categories)
        kinds = {str if isinstance(one, str) else int if isinstance(one, (int, np.integer)) else type(one) for one in given}
        if isinstance(self.categories, str) or len(kinds) != 1 or not kinds <= {str, int} or len(set(given)) != len(given):
            raise ValueError(
                f"categories= lists different texts, or different whole numbers, in the order of their codes; got {self.categories!r}"
            )
        object.__setattr__(self, "categories", given)

    @property
    def releases(self) -> tuple[str, ...]:
        """Nothing where the categories are given."""
        return ("categories",) if self.categories is None else ()

    def sums(self, x: np.ndarray, min_cell: int) -> Sums:
        if x.dtype.kind not in "iuU" or x.ndim != 1:
            raise ValueError(
                f"Codes needs a column of text or of whole numbers, one a row; {self.column!r} is {checks.dtype_of(x)}{list(x.shape[1:])}"
            )
        if self.categories is not None and len(x) and (x.dtype.kind == "U") != isinstance(self.categories[0], str):
            raise ValueError(
                f"{self!r} lists {type(self.categories[0]).__name__} values, and the column is {checks.dtype_of(x)}: list those it has"
            )
        if self.categories is not None:
            return _vocabulary(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if x.dtype.kind == "u" and x.dtype.itemsize == 8 and x.max(initial=0) >= 2**63:
            raise ValueError(
                f"Codes takes whole numbers below 2**63, and {self.column!r} holds a larger one: give them as text, column.astype(str)"
            )
        values, counts = np.unique(x if x.dtype.kind == "U" else x.astype(np.int64), return_counts=True)
        told = counts >= max(min_cell, self.minimum)
        return _vocabulary(values[told], counts[told])

    def merge(self, a: Sums, b: Sums) -> Sums:
        parts = [one for one in (a, b) if len(one["counts"])]
        if not parts:
            return a
        values, place = np.unique(np.concatenate([categories_in(one) for one in parts]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, place, np.concatenate([one["counts"] for one in parts]))
        return _vocabulary(values, counts)

    def problem(self, sums: Sums, examples: int) -> str | None:
        try:
            values = categories_in(sums)
        except UnicodeDecodeError:
            return "a category is not text in UTF-8"
        if (len(sums["values"]) and len(sums["text"])) or len(values) != len(sums["counts"]) or not (values[:-1] < values[1:]).all():
            return "the categories are not in ascending order with a count each"
        fine = (sums["counts"] >= self.minimum).all() and sums["counts"].sum() <= examples
        return None if fine else "a category has fewer than the minimum, or all together more examples than the site"

    def finalize(self, sums: Sums) -> Sums:
        if self.categories is not None:
            sums = _vocabulary(np.array(self.categories), np.zeros(0, np.int64))
        return {"values": sums["values"], "text": sums["text"]}

    def apply(self, x: np.ndarray, numbers: Sums, folder: Folder = None) -> np.ndarray:
        values = categories_in(numbers)
        if not len(values):
            return np.zeros(len(x), np.int32)
        order = np.argsort(values, kind="stable")
        at = np.minimum(np.searchsorted(values, x, sorter=order), len(values) - 1)
        return np.where(values[order[at]] == x, order[at], len(values)).astype(np.int32)


def _vocabulary(values: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Categories as arrays of numbers: whole ones as they are, or of text the UTF-8, each with a zero behind it."""
    text = "".join(f"{one}\0" for one in values.tolist()) if values.dtype.kind == "U" else ""
    whole = np.zeros(0, np.int64) if values.dtype.kind == "U" else values.astype(np.int64)
    return {"values": whole, "text": np.frombuffer(text.encode(), np.uint8), "counts": counts.astype(np.int64)}


def categories_in(sums: Sums) -> np.ndarray:
    """The categories of a vocabulary."""
    text = np.asarray(sums["text"]).tobytes()
    return np.array(text.decode().split("\0")[:-1]) if text else np.asarray(sums["values"])


def _alike(sums: Sums) -> bool:
    return len({x.shape for x in sums.values()}) == 1


@dataclass(frozen=True)
class Fitted:
    """Steps with their numbers: what every client applies. `clients.map(fitted)` works, and `apply` at less cost."""

    steps: tuple[Step, ...]
    numbers: tuple[Sums, ...]

    def __call__(self, columns: Columns, folder: Folder = None) -> Columns:
        """The columns, each step's in its new form."""
        found = dict(columns)
        for step, numbers in zip(self.steps, self.numbers, strict=True):
            found[step.column] = step.apply(_column(step, columns), numbers, folder)
        return found

    def apply(self, clients: Clients, folder: Folder = None) -> Clients:
        """The clients with their columns in the new form; raises where a value is then not finite.

        Of large memory-mapped columns the new form goes to a file without a name in the `folder`, or in the system's for such.
        """
        found = clients.with_columns(self(clients.columns, folder))
        found.check_finite()
        return found

    @property
    def digest(self) -> str:
        """32 hexadecimal digits of the numbers, for logs."""
        parts = [f"{name}:{x.dtype.str}{x.shape}".encode() + x.tobytes() for one in self.numbers for name, x in sorted(one.items())]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:32]


def fit(steps: Sequence[Step], clients: Clients) -> Fitted:
    """The steps with their numbers from all clients' sums: those that a federation of these clients comes to."""
    checked = check_steps(steps)
    return finalize(checked, [sums_of(checked, columns) for columns, size in zip(clients, clients.sizes, strict=True) if size])


def sums_of(steps: Sequence[Step], columns: Columns, min_cell: int = 0) -> tuple[Sums, ...]:
    """One client's sums, an entry a step. What fewer than `min_cell` examples have is left out."""
    return tuple(step.sums(_column(step, columns), min_cell) for step in steps)


def finalize(steps: tuple[Step, ...], sums: Sequence[Sequence[Sums]]) -> Fitted:
    """The steps with their numbers, from each client's sums, in the clients' order."""
    numbers = []
    for i, step in enumerate(steps):
        total = sums[0][i]
        for one in sums[1:]:
            total = step.merge(total, one[i])
        numbers.append({name: np.asarray(x) for name, x in step.finalize(total).items()})
    return Fitted(steps, tuple(numbers))


def check_steps(steps: Any) -> tuple[Step, ...]:
    """The steps; raises where one is none, or two are for one column."""
    steps = (steps,) if hasattr(steps, "finalize") else tuple(steps)
    for step in steps:
        if not hasattr(step, "finalize"):
            raise TypeError(f"preprocessing is a list of steps such as fc.preprocess.Standardise('x'), got {type(step).__name__}")
    columns = [step.column for step in steps]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"column {twice[0]!r} has two steps, and the second would need sums of what the first makes; give it one")
    return steps


def _column(step: Step, columns: Columns) -> np.ndarray:
    if not (isinstance(columns, Mapping) and step.column in columns):
        there = ", ".join(columns) if isinstance(columns, Mapping) else type(columns).__name__
        raise ValueError(f"{type(step).__name__} is for the column {step.column!r}, and there are {there}")
    x: np.ndarray = columns[step.column]
    if isinstance(x, Mapping) or not hasattr(x, "dtype"):
        raise ValueError(f"{type(step).__name__} needs {step.column!r} to be one array")
    if is_text(x) and not isinstance(step, Codes):
        raise ValueError(f"{type(step).__name__} needs numbers; {checks.text_needs_codes(step.column)}")
    return x


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
    """`one` of the rows in float64, some at a time, in float32."""
    found, begin = spill.room(x.shape, np.float32, x, folder), 0
    for rows in _chunks(x, column):
        found[begin : begin + len(rows)] = one(rows)
        begin += len(rows)
    spill.settle(found)
    return found
