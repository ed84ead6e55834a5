"""Canonical JSON: the one way in which a value is written as text, for signatures.

Signatures and chains cover bytes, so a value may have only one spelling: JSON as `msgspec` writes it, with
sorted keys, without spaces or NaN. `loads`, and `read` for a value of a known type, refuse every other
spelling, duplicate keys, and nesting that would exhaust the stack.

>>> dumps({"weight": 3.0, "round": 3})
b'{"round":3,"weight":3.0}'
>>> loads(b'{"round": 3}')
Traceback (most recent call last):
fedjax_core.sites.wire.canonical.NonCanonical: the text is not in canonical form (sorted keys, no spaces, finite numbers)...
"""

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from fedjax_core.sites.refusal import Refused, printable

T = TypeVar("T")

Scalar = bool | int | float | str | None  # what a header, an audit entry and a request may hold

Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Text = Annotated[str, Meta(max_length=1024)]
Value = bool | Integer | float | Text | None
"""The type of a `Scalar` for decoding; `is_scalar` checks that text is one line."""

Bytes = bytes | memoryview  # of a message, possibly a view

_LINE = 1000  # characters, fewer than `is_scalar` takes


class NonCanonical(Refused):
    """The same value could be spelt in another way, so a signature over it would not mean one thing."""

    code = "non-canonical"


class DuplicateKey(Refused):
    """An object has one key twice: readers would differ on which counts."""

    code = "duplicate-key"


class TooDeep(Refused):
    """The value has more levels of nesting than the format."""

    code = "too-deep"


def dumps(value: Any) -> bytes:
    """The value as canonical JSON; raises ValueError for a number that is not finite."""
    raw = _ENCODER.encode(value)
    if b"null" in raw:  # None, but also NaN and infinities, are written so
        json.dumps(msgspec.to_builtins(value, enc_hook=_plain), allow_nan=False)
    return raw


def is_plain(raw: bytes) -> bool:
    """Whether canonical JSON is printable ASCII without escapes, so that each of its texts is one line."""
    return raw.isascii() and b"\\" not in raw and b"\x7f" not in raw


def loads(raw: bytes, what: str = "the text", levels: int = 3) -> Any:
    """The value of canonical JSON; raises a `Refused`, naming it `what`, for anything else or deeper
    nesting."""
    value = loads_loosely(raw, what, levels)
    try:
        same = dumps(value) == raw
    except (ValueError, TypeError):  # NaN or an infinity, or text that is not UTF-8
        same = False
    if not same:
        raise NonCanonical(
            f"{what} is not in canonical form (sorted keys, no spaces, finite numbers), so what was signed is not what is read; "
            "write it with fedjax_core.sites"
        )
    return value


def read(
    reader: msgspec.json.Decoder[T], raw: bytes, what: str, levels: int, bad: Callable[[Any, str], Refused]
) -> T:
    """The value of canonical JSON, in the reader's type; raises a `Refused` as `loads`, or `bad(value,
    problem)` for another type."""
    try:
        value = reader.decode(raw)
        problem = "" if dumps(value) == raw else "an entry is missing, or of another type"
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        problem = printable(str(error))[:200]
    if problem:
        raise bad(loads(raw, what, levels), problem)
    return value


def loads_loosely(raw: bytes, what: str, levels: int) -> Any:
    """The value of JSON in any spelling, without duplicate keys and within the levels of nesting."""
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
        deeper = _deeper(value, levels)
    except RecursionError:
        deeper = True
    except _Twice:
        raise DuplicateKey(
            f"{what} has a key twice, and readers would differ on which counts; write it with fedjax_core.sites"
        ) from None
    except ValueError:  # not UTF-8, not JSON, or a number of thousands of digits
        raise NonCanonical(
            f"{what} is not JSON: it is damaged, or was not written by fedjax_core.sites"
        ) from None
    if deeper:
        raise TooDeep(
            f"{what} is nested more deeply than the {levels} levels that it may have; it was not written by fedjax_core.sites"
        )
    return value


def _deeper(value: Any, levels: int) -> bool:
    inner = [value] if isinstance(value, (dict, list)) else []
    for _ in range(levels):
        inner = [
            part
            for one in inner
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, (dict, list))
        ]
    return bool(inner)


class _Twice(Exception):
    """An object has a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _Twice
    return table


def _plain(value: object) -> object:
    """A NumPy float64 or str as the plain Python value; raises TypeError for other types."""
    for kind in (float, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"a value of type {type(value).__name__} has no spelling")


_ENCODER = msgspec.json.Encoder(order="sorted", enc_hook=_plain)
_DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # `json.loads` would make one for every call


def is_scalar(value: object) -> bool:
    """Whether a value may stand in a header or an audit entry: a short line, or a number of 64 bits at
    most."""
    if isinstance(value, str):
        return len(value) <= 1024 and value.isprintable()
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, (bool, float))


def in_lines(field: str, names: Iterable[str]) -> dict[str, Scalar]:
    """Any number of names as fields of short lines: `field`, `field.2`, ...; `of_lines` reads them.

    >>> in_lines("names", ["charite", "mayo"])
    {'names': 'charite mayo'}
    """
    text = " ".join(names)
    lines = [text] if text and len(text) <= _LINE else textwrap.wrap(text, _LINE, break_on_hyphens=False)
    return {field if i == 1 else f"{field}.{i}": line for i, line in enumerate(lines, start=1)}


def of_lines(field: str, fields: Mapping[str, Scalar]) -> list[str]:
    """The names that `in_lines` wrote under this field; none without the field."""
    lines = [value for key, value in fields.items() if key.partition(".")[0] == field]
    return [name for line in lines if isinstance(line, str) for name in line.split()]
