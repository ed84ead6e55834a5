"""Reads a dataclass from a hand-written table strictly: only known keys, only values of the declared type.

A misspelt setting that was ignored would be a policy that somebody relies on and nobody enforces.

>>> @dataclasses.dataclass
... class Minimum:
...     examples: int = 0
>>> read(Minimum, {"examples": 50}, "policy")
Minimum(examples=50)
>>> read(Minimum, {"example": 50}, "policy")
Traceback (most recent call last):
ValueError: 'example' is not a setting of a policy; there are examples
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from fedjax_core.sites.refusal import listed, shown


def read(cls: Any, table: Mapping[str, Any], what: str, prefix: str = "") -> Any:
    """The dataclass with a table's values; raises ValueError with the wrong key. `what` names the table."""
    kinds = typing.get_type_hints(cls)
    if unknown := [key for key in table if key not in kinds]:
        raise ValueError(
            f"{listed(prefix + key for key in unknown)} is not a setting of a {what}; there are {', '.join(prefix + k for k in kinds)}"
        )
    if missing := [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in table and f.default is f.default_factory is dataclasses.MISSING
    ]:
        raise ValueError(f"{listed(prefix + key for key in missing)} is missing from the {what}")
    return cls(**{key: _value(kinds[key], value, what, prefix + key) for key, value in table.items()})


def _value(kind: Any, value: Any, what: str, name: str) -> Any:
    if typing.get_origin(kind) is types.UnionType:  # float | None: absent is None
        kind = typing.get_args(kind)[0]
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return read(kind, value, what, f"{name}.")
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError(f"{name} is {shown(value)}; it should be one of {', '.join(typing.get_args(kind))}")
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return tuple(value)
        raise ValueError(f"{name} is {shown(value)}; it should be a list of texts")
    if kind is float and type(value) in (int, float) and value >= 0:
        return float(value)
    if type(value) is kind and kind is not float and not (kind is int and value < 0):
        return value
    wanted = {
        bool: "true or false",
        int: "a whole number, 0 or more",
        float: "a number, 0 or more",
        str: "a text",
    }.get(kind, "a table")
    raise ValueError(f"{name} is {shown(value)}; it should be {wanted}")
