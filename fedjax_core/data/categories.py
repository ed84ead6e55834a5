"""The step of preprocessing for text: `OrdinalEncode`, one coding of categories for all clients.

>>> step = OrdinalEncode("ward", minimum=1)
>>> parameters = step.finalize(step.merge(step.sums(np.array(["icu", "ear"]), 0), step.sums(np.array(["onc"]), 0)))
>>> step.apply(np.array(["icu", "onc", "never seen"]), parameters).tolist()
[1, 2, 3]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_core.data import checks
from fedjax_core.data.step import Folder, Sums


@dataclass(frozen=True)
class OrdinalEncode:
    """Encodes a column of text, or of whole numbers, as codes 0, 1, ... of its categories, in int32; any
    other value gets V, the number of categories.

    The categories are given, in the order of their codes, as in `OrdinalEncode("y", categories=("benign",
    "malignant"))`. Use that for labels: nothing has to leave a site for it. Without them, the categories are
    those that clients have, in ascending order. A client then reports only categories with at least `minimum`
    examples, so a category that is rare everywhere has no code of its own."""

    column: str
    minimum: int = 5
    categories: Sequence[str] | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.categories is None:
            return
        given: tuple[Any, ...] = tuple(self.categories)
        kinds = {
            str if isinstance(one, str) else int if isinstance(one, (int, np.integer)) else type(one)
            for one in given
        }
        if (
            isinstance(self.categories, str)
            or len(kinds) != 1
            or not kinds <= {str, int}
            or len(set(given)) != len(given)
        ):
            raise ValueError(
                f"categories= lists different texts, or different whole numbers, in the order of their codes; got {self.categories!r}"
            )
        object.__setattr__(self, "categories", given)

    @property
    def releases(self) -> tuple[str, ...]:
        """The sums that leave a site: none where the categories are given."""
        return ("categories",) if self.categories is None else ()

    def sums(self, x: np.ndarray, min_cell: int) -> Sums:
        if x.dtype.kind not in "iuU" or x.ndim != 1:
            raise ValueError(
                f"OrdinalEncode needs a column of text or of whole numbers, one a row; {self.column!r} is "
                f"{checks.dtype_of(x)}{list(x.shape[1:])}"
            )
        if (
            self.categories is not None
            and len(x)
            and (x.dtype.kind == "U") != isinstance(self.categories[0], str)
        ):
            raise ValueError(
                f"{self!r} lists {type(self.categories[0]).__name__} values, and the column is {checks.dtype_of(x)}: list those it has"
            )
        if self.categories is not None:
            return _vocabulary(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if x.dtype.kind == "u" and x.dtype.itemsize == 8 and x.max(initial=0) >= 2**63:
            raise ValueError(
                f"OrdinalEncode takes whole numbers below 2**63, and {self.column!r} holds a larger one: give them as text, "
                "column.astype(str)"
            )
        values, counts = np.unique(x if x.dtype.kind == "U" else x.astype(np.int64), return_counts=True)
        frequent = counts >= max(min_cell, self.minimum)
        return _vocabulary(values[frequent], counts[frequent])

    def merge(self, a: Sums, b: Sums) -> Sums:
        parts = [one for one in (a, b) if len(one["counts"])]
        if not parts:
            return a
        values, place = np.unique(np.concatenate([categories_in(one) for one in parts]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, place, np.concatenate([one["counts"] for one in parts]))
        return _vocabulary(values, counts)

    def validate(self, sums: Sums, examples: int) -> str | None:
        try:
            values = categories_in(sums)
        except UnicodeDecodeError:
            return "a category is not text in UTF-8"
        if (
            (len(sums["values"]) and len(sums["text"]))
            or len(values) != len(sums["counts"])
            or not (values[:-1] < values[1:]).all()
        ):
            return "the categories are not in ascending order with a count each"
        fine = (sums["counts"] >= self.minimum).all() and sums["counts"].sum() <= examples
        return (
            None
            if fine
            else "a category has fewer than the minimum, or all together more examples than the site"
        )

    def finalize(self, sums: Sums) -> Sums:
        if self.categories is not None:
            sums = _vocabulary(np.array(self.categories), np.zeros(0, np.int64))
        return {"values": sums["values"], "text": sums["text"]}

    def apply(self, x: np.ndarray, parameters: Sums, folder: Folder = None) -> np.ndarray:
        values = categories_in(parameters)
        if not len(values):
            return np.zeros(len(x), np.int32)
        order = np.argsort(values, kind="stable")
        place = np.minimum(np.searchsorted(values, x, sorter=order), len(values) - 1)
        return np.where(values[order[place]] == x, order[place], len(values)).astype(np.int32)


def _vocabulary(values: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Categories as arrays of numbers: whole numbers as they are, text as UTF-8 with a zero after each."""
    text = "".join(f"{one}\0" for one in values.tolist()) if values.dtype.kind == "U" else ""
    whole = np.zeros(0, np.int64) if values.dtype.kind == "U" else values.astype(np.int64)
    return {
        "values": whole,
        "text": np.frombuffer(text.encode(), np.uint8),
        "counts": counts.astype(np.int64),
    }


def categories_in(sums: Sums) -> np.ndarray:
    """The categories of a vocabulary."""
    text = np.asarray(sums["text"]).tobytes()
    return np.array(text.decode().split("\0")[:-1]) if text else np.asarray(sums["values"])
