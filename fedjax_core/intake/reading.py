"""Reads a site's table as the study's fields, and counts the unusable rows by reason.

    raw values  ─missing codes─►  numbers, texts  ─unit, codes, expression─►  fields  ─checks─►  rows that are used

    number      float64, NaN where missing; int64 of whole ones where none is
    category    int32 codes in the schema's order, the same at every site; -1 where missing
    text        text; what names persons must be there in every row
    image       float32 from 0 to 1, of the shape that the schema says; a row without its picture cannot be used

A row cannot be used where a value cannot be read, is outside of its range, or is no category; where a
required field is missing; or where it repeats person and time of a row before. It is counted once, by its
first reason. Where the share of unusable rows, or of records that gave no row, is above the schema's
`max_bad`, no data are given.

>>> schema = Schema.of({"name": "s", "max_bad": 0.5, "fields": {"age": {"range": [0, 110]}, "sex": {"categories": ["female", "male"]}}})
>>> mapping = Mapping.of({"schema": "s", "source": "a", "fields": {"sex": {"codes": {"w": "female"}}}})
>>> found = fields_of({"age": ["61", "NA", "614"], "sex": ["w", "male", "w"]}, mapping, schema)
>>> found.columns["age"].tolist(), found.columns["sex"].tolist(), dict(found.reasons)
([61.0, nan], [0, 1], {"'age' is outside of 0 to 110": 1})
"""

import math
from collections import Counter
from collections.abc import Mapping as Table
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.data.tables import MISSING
from fedjax_core.intake import pictures, units
from fedjax_core.intake.mapping import Mapping, Origin
from fedjax_core.intake.raw import Raw
from fedjax_core.intake.schema import Field, Schema
from fedjax_core.stats import expressions
from fedjax_core.stats.table import Table as Rows


@dataclass(frozen=True)
class Reading:
    """A site's table as the study's fields, with the rows that cannot be used."""

    schema: Schema
    columns: dict[str, np.ndarray]
    """{field: [rows that are used]}."""
    all: dict[str, np.ndarray]
    """The same for all rows, to see what is wrong."""
    bad: np.ndarray
    """[rows] bool: those that cannot be used."""
    reasons: Counter[str]
    """{reason: rows that are left out for it}."""
    strange: dict[str, Counter[str]]
    """{field: {value that could not be read: rows}}, for the site's staff alone."""
    unread: dict[str, np.ndarray]
    """{field: [rows] bool, where there is a value that could not be read}."""

    raw: Raw
    """The table that was read."""

    @property
    def share(self) -> float:
        """The share of rows that cannot be used, or of records that gave no row, if that is larger."""
        return max(float(self.bad.mean()) if len(self.bad) else 0.0, self.raw.share)

    @property
    def too_many(self) -> str:
        """A sentence on how many rows cannot be used, why, and how many the schema allows."""
        of_rows = float(self.bad.mean()) if len(self.bad) else 0.0
        bad, of, what = int(self.bad.sum()), len(self.bad), "rows"
        if self.raw.share > of_rows:
            bad, of, what = sum(self.raw.left_out.values()), self.raw.records, "records"
        reasons = "; ".join(
            f"{reason}: {rows}"
            for reason, rows in (self.reasons if what == "rows" else self.raw.left_out).most_common()
        )
        return (
            f"{bad} of {of} {what} cannot be used, a share of {self.share:.3g}, and the schema allows "
            f"{self.schema.max_bad:g} (max_bad): {reasons}."
        )

    @property
    def clients(self) -> Clients:
        """The used rows as one client; raises ValueError where too many cannot be used."""
        if self.share > self.schema.max_bad:
            raise ValueError(f"{self.too_many} `fedjax-core data check` says more")
        if not len(self.bad) or self.bad.all():
            raise ValueError("the table has no row that can be used")
        categories = {
            name: one.categories for name, one in self.schema.fields.items() if one.kind == "category"
        }
        return Clients(
            self.columns, [0, len(self.bad) - int(self.bad.sum())], ["site"], categories=categories
        )


def read(path: str | Path) -> Reading:
    """The table that a mapping's file names, as the fields of its schema."""
    mapping = Mapping.read(path)
    return fields_of(mapping.raw(), mapping, Schema.read(mapping.schema))


def fields_of(given: Raw | Table[str, Sequence[Any]], mapping: Mapping, schema: Schema) -> Reading:
    """Reads raw columns as the schema's fields; raises ValueError for a missing column, and for a mapping of
    an unknown field."""
    if unknown := [name for name in mapping.fields if name not in schema.fields]:
        raise ValueError(
            f"the mapping has fields.{unknown[0]}, and the schema has no such field; it has {', '.join(schema.fields)}"
        )
    table = given if isinstance(given, Raw) else Raw(given)
    raw, rows = table.columns, table.rows
    why = np.full(rows, "", dtype=object)
    columns, strange, unread = {}, {}, {}
    for name, field in schema.fields.items():
        origin = mapping.fields.get(name, Origin())
        if field.kind == "image":
            columns[name], problems, strange[name], unread[name] = _pictures(name, field, origin, table)
        else:
            columns[name], problems, strange[name], unread[name] = _field(name, field, origin, raw, rows)
        for reason, where in problems.items():
            why[where & (why == "")] = reason
    for name in schema.required:
        why[missing(columns[name], schema.fields[name]) & (why == "")] = f"{name!r} is missing"
    if schema.person:
        why[
            _repeated(
                [columns[one] for one in (schema.person, schema.time) if one], why == "", bool(schema.time)
            )
        ] = "a duplicate"
    bad = why != ""
    used = {name: _whole(x[~bad], schema.fields[name]) for name, x in columns.items()}
    return Reading(schema, used, columns, bad, Counter(why[bad].tolist()), strange, unread, table)


def _field(
    name: str, field: Field, origin: Origin, raw: Table[str, Sequence[Any]], rows: int
) -> tuple[np.ndarray, dict[str, np.ndarray], Counter[str], np.ndarray]:
    """(the field [rows], {reason: rows that it makes unusable}, values that could not be read, [rows] where
    those are)."""
    gone = {*MISSING, *map(_text, (*field.missing, *origin.missing))}
    if origin.expression:
        value = _computed(name, origin, raw, gone)
        texts, absent, wrong = np.full(rows, ""), np.isnan(value), ~np.isfinite(value) & ~np.isnan(value)
    else:
        texts = np.array([_text(one) for one in _column(raw, origin.column or name, name)], dtype=str)
        absent = np.isin(texts, list(gone))
        value, wrong = np.zeros(0), np.zeros(rows, bool)
        if field.kind in ("number", "whole"):
            value, wrong = _numbers(texts, absent)
    if field.kind == "text":
        return np.where(absent, "", texts), {}, Counter(), np.zeros(rows, bool)
    if field.kind == "category":
        if origin.expression:
            texts = np.where(absent, "", np.char.mod("%d", np.nan_to_num(value)))
        named = (
            np.array([origin.codes.get(text, text) for text in texts.tolist()], dtype=str) if rows else texts
        )
        place = {category: i for i, category in enumerate(field.categories)}
        codes = np.array([place.get(one, -1) for one in named.tolist()], np.int32)
        codes[absent] = -1
        wrong = (codes < 0) & ~absent
        return codes, {f"{name!r} is none of its categories": wrong}, Counter(texts[wrong].tolist()), wrong
    value = (
        units.convert(value, origin.unit, field.unit)
        if origin.unit
        else value * origin.factor + origin.offset
    )
    problems = {f"{name!r} is no number": wrong}
    if field.kind == "whole":
        problems[f"{name!r} is no whole number"] = ~absent & ~wrong & (value != np.round(value))
    if field.range:
        with np.errstate(invalid="ignore"):
            outside = (value < field.range[0]) | (value > field.range[1])
        problems[f"{name!r} is outside of {field.range[0]:g} to {field.range[1]:g}"] = outside
    return np.where(wrong, np.nan, value), problems, Counter(texts[wrong].tolist()), wrong


class _PictureSettings(NamedTuple):
    """How a picture's values become numbers from 0 to 1."""

    range: tuple[float, ...]
    factor: float
    offset: float
    resize: bool


def _pictures(
    name: str, field: Field, origin: Origin, table: Raw
) -> tuple[np.ndarray, dict[str, np.ndarray], Counter[str], np.ndarray]:
    """The same for a field of pictures, whose values are names of files."""
    files = [_text(one) for one in _column(table.columns, origin.column or name, name)]
    settings = _PictureSettings(field.range, origin.factor, origin.offset, origin.resize)
    images, why = pictures.read(
        ["" if one in MISSING else one for one in files], table.folder, field.shape, settings
    )
    wrong = why != ""
    return (
        images,
        {f"{name!r} {one}": why == one for one in dict.fromkeys(why[wrong])},
        Counter(np.array(files)[wrong].tolist()),
        wrong,
    )


def _column(raw: Table[str, Sequence[Any]], column: str, name: str) -> Sequence[Any]:
    if column not in raw:
        raise ValueError(
            f"the table has no column {column!r} for the field {name!r}; it has {', '.join(raw)}: say column = ... in the mapping"
        )
    return raw[column]


def _numbers(texts: np.ndarray, absent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(numbers [rows], NaN where there is none; [rows] bool: values that are not numbers)."""
    value, wrong = np.full(len(texts), np.nan), np.zeros(len(texts), bool)
    for i in np.flatnonzero(~absent):
        try:
            value[i] = float(texts[i])
        except ValueError:
            wrong[i] = True
    return value, wrong | (~absent & ~np.isfinite(value))


def _computed(name: str, origin: Origin, raw: Table[str, Sequence[Any]], gone: set[str]) -> np.ndarray:
    """[rows] the expression's values, over columns of numbers, and of text where it compares with text."""
    expression = expressions.parse(origin.expression)
    compared = set(_compared(expression))
    columns = {}
    for column in expressions.columns(expression):
        texts = np.array([_text(one) for one in _column(raw, column, name)], dtype=str)
        absent = np.isin(texts, list(gone))
        columns[column] = np.where(absent, "", texts) if column in compared else _numbers(texts, absent)[0]
    return (
        expressions.evaluate(expression, Rows(columns))
        if columns
        else np.full(len(next(iter(raw.values()), ())), np.nan)
    )


def _compared(expression: expressions.Expression) -> list[str]:
    """The columns that an expression compares with text."""
    kind, *rest = expression
    if kind in ("is", "is not"):
        return [rest[0]]
    return [] if kind in ("number", "column") else [name for one in rest for name in _compared(one)]


def _text(value: Any) -> str:
    """A value as text: 3.0 as "3", so that a code is the same from a CSV file and from a column of
    numbers."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _whole(x: np.ndarray, field: Field) -> np.ndarray:
    """Whole numbers as integers where none is missing, such as identifiers of persons."""
    return x.astype(np.int64) if field.kind == "whole" and not np.isnan(x).any() else x


def missing(x: np.ndarray, field: Field) -> np.ndarray:
    """[rows] bool: where a field has no value."""
    if field.kind == "text":
        return x == ""
    if field.kind == "image":
        return np.isnan(x.reshape(len(x), math.prod(field.shape))[:, 0])
    return x < 0 if field.kind == "category" else np.isnan(x)


def _repeated(keys: list[np.ndarray], fine: np.ndarray, timed: bool) -> np.ndarray:
    """[rows] bool: those that repeat person and time of a row before; without a time no row is a
    duplicate."""
    again = np.zeros(len(fine), bool)
    if timed:
        seen = set()
        for i in np.flatnonzero(fine):
            key = tuple(x[i].item() for x in keys)
            again[i] = key in seen
            seen.add(key)
    return again
