"""Preprocessing from sums: one scaler or vocabulary for all clients, from sums of the columns of each.

    sums_i = step.sums(x_i)  ─►  merge, in the clients' order  ─►  parameters = step.finalize(...)
    at each client:  step.apply(x_i, parameters)

The result is that of preprocessing the pooled examples. NaN is a missing value. The steps are in scaling.py
and categories.py. The same steps are an argument of `Federation`, where sites send the sums that their policy
lets leave.

>>> from fedjax_core.data.clients import Clients
>>> raw = Clients.from_list([{"x": np.array([[2.0], [np.nan]])}, {"x": np.array([[4.0]])}], allow_nan=True)
>>> fitted = fit([Standardise("x")], raw)
>>> fitted.parameters[0]["mean"].tolist(), fitted.apply(raw)[0]["x"].tolist()
([3.0], [[-1.0], [0.0]])
>>> wards = Clients.from_list([{"ward": np.array(["icu", "ear"])}, {"ward": np.array(["ear", "onc"])}])
>>> [one["ward"].tolist() for one in fit([OrdinalEncode("ward", minimum=1)], wards).apply(wards)]
[[1, 0], [0, 2]]
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_core.data import checks
from fedjax_core.data.categories import OrdinalEncode, categories_in
from fedjax_core.data.clients import Clients
from fedjax_core.data.given import is_text
from fedjax_core.data.scaling import Impute, Rescale, Standardise
from fedjax_core.data.step import Folder, Step, Sums
from fedjax_core.types import Columns

__all__ = [
    "Fitted",
    "Impute",
    "OrdinalEncode",
    "Rescale",
    "Standardise",
    "Step",
    "Sums",
    "categories_in",
    "check_steps",
    "finalize",
    "fit",
    "sums_of",
]


@dataclass(frozen=True)
class Fitted:
    """Steps with their parameters, which every client applies. `clients.map(fitted)` works, and `apply` at
    less cost."""

    steps: tuple[Step, ...]
    parameters: tuple[Sums, ...]

    def __call__(self, columns: Columns, folder: Folder = None) -> Columns:
        """The columns, each step's in its new form."""
        result = dict(columns)
        for step, parameters in zip(self.steps, self.parameters, strict=True):
            result[step.column] = step.apply(_column(step, columns), parameters, folder)
        return result

    def apply(self, clients: Clients, folder: Folder = None) -> Clients:
        """The clients with their columns in the new form; raises where a value is then not finite.

        Of large memory-mapped columns the new form goes to a file without a name in the `folder`, or in the
        system's for such."""
        result = clients.with_columns(self(clients.columns, folder))
        result.check_finite()
        return result

    @property
    def digest(self) -> str:
        """32 hexadecimal digits of the parameters, for logs."""
        parts = [
            f"{name}:{x.dtype.str}{x.shape}".encode() + x.tobytes()
            for one in self.parameters
            for name, x in sorted(one.items())
        ]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:32]


def fit(steps: Sequence[Step], clients: Clients) -> Fitted:
    """The steps with their parameters from all clients' sums: the same that a federation of these clients
    gets."""
    checked = check_steps(steps)
    return finalize(
        checked,
        [sums_of(checked, columns) for columns, size in zip(clients, clients.sizes, strict=True) if size],
    )


def sums_of(steps: Sequence[Step], columns: Columns, min_cell: int = 0) -> tuple[Sums, ...]:
    """One client's sums, an entry a step, without those of fewer than `min_cell` examples."""
    return tuple(step.sums(_column(step, columns), min_cell) for step in steps)


def finalize(steps: tuple[Step, ...], sums: Sequence[Sequence[Sums]]) -> Fitted:
    """The steps with their parameters, from each client's sums, in the clients' order."""
    parameters = []
    for i, step in enumerate(steps):
        total = sums[0][i]
        for one in sums[1:]:
            total = step.merge(total, one[i])
        parameters.append({name: np.asarray(x) for name, x in step.finalize(total).items()})
    return Fitted(steps, tuple(parameters))


def check_steps(steps: Any) -> tuple[Step, ...]:
    """The steps, checked; raises where one is not a step, or two are for one column."""
    steps = (steps,) if hasattr(steps, "finalize") else tuple(steps)
    for step in steps:
        if not hasattr(step, "finalize"):
            raise TypeError(
                f"preprocessing is a list of steps such as fc.preprocess.Standardise('x'), got {type(step).__name__}"
            )
    columns = [step.column for step in steps]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(
            f"column {twice[0]!r} has two steps, and the second would need sums of what the first makes; give it one"
        )
    return steps


def _column(step: Step, columns: Columns) -> np.ndarray:
    if not (isinstance(columns, Mapping) and step.column in columns):
        there = ", ".join(columns) if isinstance(columns, Mapping) else type(columns).__name__
        raise ValueError(f"{type(step).__name__} is for the column {step.column!r}, and there are {there}")
    x: np.ndarray = columns[step.column]
    if isinstance(x, Mapping) or not hasattr(x, "dtype"):
        raise ValueError(f"{type(step).__name__} needs {step.column!r} to be one array")
    if is_text(x) and not isinstance(step, OrdinalEncode):
        raise ValueError(f"{type(step).__name__} needs numbers; {checks.text_needs_codes(step.column)}")
    return x
