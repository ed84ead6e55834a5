"""A study's schema: the fields that every site brings, with unit, range, categories as text, and codes that
mean missing.

    name = "icu"                        schema.toml, the same file at all sites
    outcome = "died"
    person = "patient"                  the person of a row: counted, held out and protected as one
    time = "day"                        two rows that agree in person and time are duplicates
    max_bad = 0.05                      the largest share of rows that may be left out as unusable

    [fields.age]
    unit = "year"
    range = [18, 110]
    missing = [999, -1]
    required = true                     a row without it cannot be used; else its value is missing

    [fields.sex]
    categories = ["female", "male"]     text; the codes are 0, 1, ... in this order at every site

A field without categories is a number, unless it has `kind = "text"` (a person's identifier, for instance),
or `kind = "image"` with `shape = [rows, columns]` or [rows, columns, colours] (pictures.py).

>>> schema = Schema.of({"name": "icu", "outcome": "died", "fields": {"age": {"unit": "year"}, "died": {"categories": ["no", "yes"]}}})
>>> schema.fields["died"].kind, schema.fields["age"].unit
('category', 'year')
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedjax_core.intake.tables import made, table_of

KINDS = ("number", "whole", "category", "text", "image")


@dataclass(frozen=True)
class Field:
    """One field of a schema: its kind, unit, range or categories, missing codes, and shape."""

    kind: str = "number"
    unit: str = ""
    range: tuple[float, ...] = ()
    """(least, most) that can be; values outside make a row unusable."""
    categories: tuple[str, ...] = ()
    missing: tuple[Any, ...] = ()
    """Numbers or texts of the site's own table that stand for no value, beside an empty field and NA."""
    required: bool = False
    shape: tuple[int, ...] = ()
    """A picture's rows and columns of pixels, and its colours (1 or 3) where it has an axis of them."""

    def __post_init__(self) -> None:
        if self.categories and self.kind == "number":
            object.__setattr__(self, "kind", "category")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it should be one of {', '.join(KINDS)}")
        if (self.kind == "category") != bool(self.categories):
            raise ValueError("kind = 'category' goes with categories = [...], and they with no other kind")
        if not all(isinstance(one, str) for one in self.categories) or len(set(self.categories)) != len(
            self.categories
        ):
            raise ValueError(f"categories are different texts, got {list(self.categories)}")
        numbers = all(isinstance(one, int | float) and math.isfinite(one) for one in self.range)
        if self.range and not (len(self.range) == 2 and numbers and self.range[0] <= self.range[1]):
            raise ValueError(f"range is [least, most], got {list(self.range)}")
        if (self.kind == "image") != bool(self.shape):
            raise ValueError(
                "kind = 'image' goes with shape = [rows, columns] or [rows, columns, colours], and it with no other kind"
            )
        sides = all(isinstance(one, int) and one > 0 for one in self.shape)
        if self.shape and not (
            sides and (len(self.shape) == 2 or (len(self.shape) == 3 and self.shape[2] in (1, 3)))
        ):
            raise ValueError(
                f"shape is [rows, columns] or [rows, columns, colours], with 1 or 3 colours, got {list(self.shape)}"
            )
        if self.shape and self.range and self.range[0] == self.range[1]:
            raise ValueError(
                f"range is of the values that become 0 and 1, which differ, got {list(self.range)}"
            )
        if self.kind in ("category", "text") and (self.range or self.unit):
            raise ValueError(f"a field of kind {self.kind!r} has no range and no unit")


@dataclass(frozen=True)
class Schema:
    """The fields of a study."""

    name: str
    fields: Mapping[str, Field]
    outcome: str = ""
    person: str = ""
    time: str = ""
    max_bad: float = 0.0
    file: Path | None = field(default=None, compare=False)

    @classmethod
    def read(cls, path: str | Path) -> "Schema":
        """The schema in a TOML file; raises ValueError, naming the setting, where it is none."""
        return cls.of(table_of(Path(path)), str(path), Path(path))

    @classmethod
    def of(cls, table: Mapping[str, Any], where: str = "the schema", file: Path | None = None) -> "Schema":
        """The schema in a table of settings."""
        fields = table.get("fields", {})
        if not isinstance(fields, Mapping) or not fields:
            raise ValueError(f"{where} has no fields: write a table [fields.NAME] for each")
        each = {name: made(Field, one, f"{where}: fields.{name}") for name, one in fields.items()}
        schema: Schema = made(cls, {**table, "fields": each, "file": file}, where)
        for word in ("outcome", "person", "time"):
            if (name := getattr(schema, word)) and name not in each:
                raise ValueError(f"{where}: {word} = {name!r} is none of the fields {', '.join(each)}")
            if name and each[name].kind == "image":
                raise ValueError(
                    f"{where}: {word} = {name!r} is a field of pictures; it should be of numbers or texts"
                )
        if not (isinstance(schema.max_bad, int | float) and 0 <= schema.max_bad < 1):
            raise ValueError(
                f"{where}: max_bad is a share of rows, from 0 to below 1, got {schema.max_bad!r}"
            )
        return schema

    @property
    def required(self) -> tuple[str, ...]:
        """Fields that a row needs to be used, among them the outcome, the person and pictures."""
        return tuple(
            n
            for n, one in self.fields.items()
            if one.required or one.kind == "image" or n in (self.outcome, self.person)
        )

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, the same for equal schemas."""
        content = (
            self.name,
            sorted((name, repr(one)) for name, one in self.fields.items()),
            self.outcome,
            self.person,
            self.time,
            self.max_bad,
        )
        return sha256(repr(content).encode()).hexdigest()[:16]
