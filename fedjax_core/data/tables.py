"""Reads a table, CSV, Parquet or columns by name, as the columns of clients: numbers with NaN where one is
missing, text as codes.

    number    float64, or int64 where all are whole and none is missing
    text      int32 codes of the sorted categories of the whole table, one coding for all clients; -1 where a value is missing
    missing   an empty field, NA, NaN, N/A or null; None, NaN and masked values in columns that are given

Spaces around text mean nothing. Values are kept as they are: what is missing is refused where it is used, and
not filled in here.

>>> read({"age": [61, None], "sex": ["F", "M "]})
Table(columns={'age': array([61., nan]), 'sex': array([0, 1], dtype=int32)}, categories={'sex': ('F', 'M')})
"""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_core.data.given import columns_of

MISSING = frozenset(("", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>"))
"""Text that stands for a value that is missing."""


class Table(NamedTuple):
    """The columns of a table, and the categories whose codes are in those that were text."""

    columns: dict[str, np.ndarray]  # each [rows]
    categories: dict[str, tuple[str, ...]]


def read(table: Any) -> Table:
    """The table in a file (.csv, .csv.gz, .tsv or .parquet), in a mapping {name: column}, or in a data frame.

    Raises ValueError for a file of another kind, lines of other lengths, and columns of different lengths or
    more than one axis."""
    named = raw(Path(table)) if isinstance(table, str | os.PathLike) else columns_of(table)
    if not isinstance(named, Mapping) or not named:
        raise TypeError(
            f"a table is the path of a file, a mapping of columns or a data frame, got {type(table).__name__}"
        )
    columns: dict[str, np.ndarray] = {}
    categories: dict[str, tuple[str, ...]] = {}
    for name, column in named.items():
        columns[str(name)], texts = _column(column, str(name))
        if texts is not None:
            categories[str(name)] = texts
    lengths = {name: len(x) for name, x in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a table need one length, got {lengths}")
    return Table(columns, categories)


def by_client(table: Table, by: str) -> tuple[Table, np.ndarray, Any]:
    """(the rows in the order of their clients, offsets [N+1], ids): a client for each value of the column
    `by`, in sorted order."""
    if by not in table.columns:
        raise ValueError(f"by={by!r} names no column of the table; there are {', '.join(table.columns)}")
    x = table.columns[by]
    missing = (x < 0) if by in table.categories else np.isnan(x.astype(np.float64))
    if missing.any():
        raise ValueError(
            f"column {by!r} is missing in {int(missing.sum())} of {len(x)} rows, first in row {int(np.argmax(missing))}, so they belong "
            "to no client: fill it in, or leave these rows out"
        )
    values, counts = np.unique(x, return_counts=True)
    rows = np.argsort(x, kind="stable")
    ids: Any = [table.categories[by][code] for code in values] if by in table.categories else values
    if by not in table.categories and ((values < 0).any() or (values != np.round(values)).any()):
        ids = [f"{value:g}" for value in values]
    elif by not in table.categories:
        ids = values.astype(np.int64)
    ordered = Table({name: column[rows] for name, column in table.columns.items()}, table.categories)
    return ordered, np.concatenate([[0], np.cumsum(counts)]), ids


def raw(path: Path, only: Sequence[str] | None = None) -> dict[str, Any]:
    """{column: its values as they lie in the file}: text, of CSV; raises ValueError for a file of another
    kind.

    `only` names the columns that are read of a Parquet file.
    """
    kind = "".join(path.suffixes[-2:]).lower()
    if kind.endswith(".parquet"):
        try:
            from pyarrow import parquet
        except ImportError:
            raise ImportError(
                "to read Parquet, pyarrow is needed: pip install 'fedjax-core[tables]'"
            ) from None
        content = parquet.read_table(path, columns=None if only is None else list(only))
        return {name: content.column(name).to_pylist() for name in content.column_names}
    if not kind.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        raise ValueError(
            f"{path} is not a table that is read here: give .csv, .tsv (also .gz) or .parquet, or a mapping of columns"
        )
    if kind.endswith(".gz"):
        import gzip

        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            return _of_lines(csv.reader(file, delimiter="\t" if ".tsv" in kind else ","), path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        return _of_lines(csv.reader(file, delimiter="\t" if kind.endswith(".tsv") else ","), path)


def _of_lines(lines: Any, path: Path) -> dict[str, Any]:
    names = [name.strip() for name in next(lines, [])]
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"{path} needs a first line with a name for each column, all different, got {names[:20]}"
        )
    rows = [line for line in lines if line]
    if (odd := next((i for i, line in enumerate(rows) if len(line) != len(names)), None)) is not None:
        raise ValueError(
            f"{path}: row {odd} has {len(rows[odd])} fields, and there are {len(names)} columns; does text with a comma lack its quotes?"
        )
    return dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {name: () for name in names}


def _column(column: Any, name: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """(the column as numbers or codes, the categories of codes)."""
    masked = np.ma.getmaskarray(column) if isinstance(column, np.ma.MaskedArray) else None
    whole = column.data if isinstance(column, np.ma.MaskedArray) else column
    values = list(whole.to_numpy(object) if hasattr(whole, "to_numpy") else whole)
    array = np.asarray(column) if isinstance(column, np.ndarray) else None
    if (array is not None and array.ndim != 1) or any(
        isinstance(one, list | tuple | np.ndarray) for one in values[:1]
    ):
        raise ValueError(f"column {name!r} has more than one value in a row: give each a column of its own")
    missing = np.array([_missing(value) for value in values], bool)
    if masked is not None:
        missing |= masked
    present = [value for value, gone in zip(values, missing, strict=True) if not gone]
    if (numbers := _numbers(present)) is not None:
        if len(numbers) == len(values):
            return numbers, None
        full = np.full(len(values), np.nan)
        full[~missing] = numbers
        return full, None
    texts = [str(value).strip() for value in present]
    categories = tuple(sorted(set(texts)))
    code = {text: i for i, text in enumerate(categories)}
    codes = np.full(len(values), -1, np.int32)
    codes[~missing] = [code[text] for text in texts]
    return codes, categories


def _missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in MISSING
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    """The values as int64 or float64; None where one of them is no number. Truth values are text, as is what
    has no value at all."""
    if any(isinstance(value, bool | np.bool_) for value in values):
        return None
    try:
        array = np.array([float(value) for value in values], np.float64)
    except (TypeError, ValueError):
        return None
    if len(values) and all(map(_whole, values)) and np.abs(array).max() < 2.0**53:
        return array.astype(np.int64)
    return array


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) or (
        isinstance(value, str) and value.strip().lstrip("+-").isdigit()
    )
