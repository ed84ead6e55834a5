"""One site's rows as a statistic reads them: columns as numbers or as labels of levels, with missing values
marked.

`site` (or `_site`) is a column of every table: the name of the site itself, or of the client where clients
stand for sites.

>>> table = Table({"age": np.array([61.0, np.nan]), "sex": np.array([1, 0])}, {"sex": ("F", "M")}, site="mayo")
>>> table.labels("sex").tolist(), table.labels("site").tolist(), table.missing("age").tolist()
(['M', 'F'], ['mayo', 'mayo'], [False, True])
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SITE = ("site", "_site")
"""Names of the column of site names, where the table has no column of that name."""

KINDS = ("text", "whole", "number")
"""The kinds of columns; a "whole" one has no missing values."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length, each [rows] of numbers, truth values, text, or codes of `categories`; code -1
    and NaN are missing."""

    columns: Mapping[str, np.ndarray]
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    site: Any = ""
    people: np.ndarray | None = None
    """[rows] the person of each row; None: each row is a person."""

    @classmethod
    def empty(cls, names: Iterable[str]) -> "Table":
        """A table with these columns and no rows."""
        return cls({name: np.zeros(0) for name in names})

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values()))) if self.columns else 0

    @property
    def person_ids(self) -> np.ndarray:
        """[rows] the person of each row, numbered where `people` is None."""
        return np.arange(self.rows) if self.people is None else self.people

    def kind(self, name: str) -> str:
        """One of `KINDS`."""
        x = self._column(name)
        if name in self.categories or x.dtype.kind in "Ub":
            return "text"
        return "whole" if x.dtype.kind in "iu" else "number"

    def numbers(self, name: str) -> np.ndarray:
        """[rows] float64, NaN where missing; raises ValueError for a column of text."""
        x = self._column(name)
        if self.kind(name) == "text" and x.dtype.kind != "b":
            raise ValueError(
                f"column {name!r} is text, and a number is needed: compare it with one of its values, {name} == 'value'"
            )
        return x.astype(np.float64)

    def labels(self, name: str) -> np.ndarray:
        """[rows] text, empty where missing: the level of each row, as coefficients' names have it."""
        x = self._column(name)
        if name in self.categories:
            return np.array([*self.categories[name], ""], dtype=str)[x]  # -1 is the last
        if x.dtype.kind == "U":
            return np.char.strip(x)
        values, places = np.unique(x, return_inverse=True)
        return (
            np.array(["" if value != value else str(value) for value in values.tolist()], dtype=str)[places]
            if len(x)
            else x.astype(str)
        )

    def missing(self, name: str) -> np.ndarray:
        """[rows] bool: whether the column's value is missing."""
        x = self._column(name)
        if name in self.categories:
            return x < 0
        if x.dtype.kind == "U":
            return np.char.strip(x) == ""
        return ~np.isfinite(x) if x.dtype.kind == "f" else np.zeros(len(x), bool)

    def where(self, rows: np.ndarray) -> "Table":
        """The table with these rows alone; `rows`: positions or a mask."""
        return Table(
            {name: x[rows] for name, x in self.columns.items()},
            self.categories,
            self.site,
            self.person_ids[rows],
        )

    def complete(self, names: Iterable[str]) -> "Table":
        """The rows where none of these columns is missing."""
        gone = np.zeros(self.rows, bool)
        for name in names:
            gone |= self.missing(name)
        return self.where(~gone) if gone.any() else self

    def _column(self, name: str) -> np.ndarray:
        if name in self.columns:
            x = self.columns[name]
            if x.ndim != 1:
                raise ValueError(
                    f"column {name!r} has {list(x.shape[1:])} numbers in a row, and a statistic needs one: name each by itself"
                )
            return x
        if name in SITE:
            return np.full(self.rows, self.site)
        raise ValueError(f"there is no column {name!r}; there are {', '.join(self.columns)}")
