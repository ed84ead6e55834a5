"""The schema of a site's columns: names, dtypes, shapes and feature names, as messages carry and ends compare
it.

    a site        ["x: float32[2]", "x: age", "x: weight", "y: int32[]"], in its description, with a digest
    the others    have the same list; else the first entry that differs is named, with both sites

>>> import numpy as np
>>> columns(Clients.from_list([{"x": np.ones((2, 30), np.float32), "y": np.zeros(2, np.int32)}]))
{'x': 'float32[30]', 'y': 'int32[]'}
>>> items = items_of({"y": "int32[]", "x": "float32[2]"}, {"x": ("age", "weight")})
>>> as_fields(items)["columns"]
'["x: float32[2]","x: age","x: weight","y: int32[]"]'
>>> difference("charite", as_fields(items), "mayo", as_fields(items_of({"y": "int32[]", "x": "float32[2]"}, {"x": ("weight", "age")})))
"charite has 'x: age' where mayo has 'x: weight': the same features in another order"
"""

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256

from fedjax_core.data.checks import dtype_of
from fedjax_core.data.clients import Clients
from fedjax_core.sites.wire.canonical import Scalar

IN_ANOTHER_ORDER = "the same features in another order"

_KIND = re.compile(r"[a-z]+[0-9]*\[[0-9,]*\]")
_LINE, _LINES = 900, 30  # most bytes in a line, and most lines, of a header; the digest covers the rest


def columns(clients: Clients) -> dict[str, str]:
    """{column: dtype and shape of one example}."""
    return {
        name: f"{dtype_of(x)}[{','.join(map(str, x.shape[1:]))}]" for name, x in clients.named_columns.items()
    }


def items_of(columns: Mapping[str, str], features: Mapping[str, Sequence[str]]) -> list[str]:
    """The schema as a list: the columns sorted by name, each followed by its features in their order."""
    return [
        f"{name}: {what}"
        for column in sorted(columns)
        for name, what in _about(column, columns[column], features)
    ]


def as_fields(items: Sequence[str]) -> dict[str, Scalar]:
    """The schema as fields of a message."""
    lines: list[list[str]] = [[]]
    size = 0
    for item in items:
        size += len(json.dumps(item)) + 1
        if size > _LINE and lines[-1]:
            lines.append([])
            size = len(json.dumps(item)) + 1
        lines[-1].append(item)
    fields: dict[str, Scalar] = {"schema": sha256(json.dumps(list(items)).encode()).hexdigest()[:16]}
    for i, line in enumerate(lines[:_LINES]):
        fields["columns" if i == 0 else f"columns.{i + 1}"] = json.dumps(line, separators=(",", ":"))
    return fields


def difference(
    one: str, fields: Mapping[str, Scalar], other: str, other_fields: Mapping[str, Scalar]
) -> str | None:
    """The first difference between the schemas of two sites, in words that name both; None if they are
    equal."""
    if fields.get("schema") == other_fields.get("schema"):
        return None
    here, there = _read(fields), _read(other_fields)
    if here is None or there is None:
        return f"{one} and {other} have other columns, shapes or dtypes"
    named, bare = features_of(fields), features_of(other_fields)
    for column in named.keys() & bare.keys():
        if bool(named[column]) != bool(bare[column]):
            with_names, without_names = (one, other) if named[column] else (other, one)
            return (
                f"{with_names} names the features of {column!r} and {without_names} does not, so that nobody can tell "
                "whether they are in one order"
            )
    for a, b in zip(here, there, strict=False):
        if a != b:
            if _column(a) != _column(b) and (b not in here or a not in there):
                return (
                    f"{other} has {b!r}, which {one} has not"
                    if b not in here
                    else f"{one} has {a!r}, which {other} has not"
                )
            again = f": {IN_ANOTHER_ORDER}" if sorted(here) == sorted(there) else ""
            return f"{one} has {a!r} where {other} has {b!r}{again}"
    if len(here) != len(there):
        name, more = (one, here[len(there)]) if len(here) > len(there) else (other, there[len(here)])
        return f"{name} has {more!r}, which {other if name == one else one} has not"
    return f"{one} and {other} have other features beyond the first {len(here)} names"


def features_of(fields: Mapping[str, Scalar]) -> dict[str, list[str]]:
    """{column: names of its features} in a site's message, as far as they fitted into it; for texts that
    people read."""
    features: dict[str, list[str]] = {}
    column = ""
    for item in _read(fields) or []:
        head, _, kind = item.rpartition(": ")
        if _KIND.fullmatch(kind):
            column = head
            features[column] = []
        elif item.startswith(f"{column}: "):
            features[column].append(item.removeprefix(f"{column}: "))
    return features


def _column(item: str) -> str:
    return item.rpartition(": ")[0]


def _about(column: str, kind: str, features: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(column, kind), *((column, name) for name in features.get(column, ()))]


def _read(fields: Mapping[str, Scalar]) -> list[str] | None:
    """The schema list in a site's message, as far as it fitted into it; None if it is damaged."""
    items: list[str] = []
    for i in range(_LINES):
        line = fields.get("columns" if i == 0 else f"columns.{i + 1}")
        if line is None and i:
            break
        try:
            part = json.loads(line) if isinstance(line, str) else None
        except (ValueError, RecursionError):
            part = None
        if not (
            isinstance(part, list) and all(isinstance(item, str) and item.isprintable() for item in part)
        ):
            return None
        items += part
    return items
