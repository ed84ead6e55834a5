"""TOML files as dataclasses, strictly: a setting that is misspelt or of another type is refused, naming it
and the file.

>>> @dataclasses.dataclass
... class Source:
...     table: str
...     rows: int = 0
>>> made(Source, {"table": "a.csv", "row": 3}, "mapping.toml")
Traceback (most recent call last):
ValueError: mapping.toml: 'row' is no setting here; there are table, rows
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_core.files import read_text


def table_of(path: Path) -> dict[str, Any]:
    """The content of a TOML file; raises ValueError, naming the file, where it is none."""
    try:
        return tomllib.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None


def made(cls: Any, table: Any, where: str) -> Any:
    """A dataclass from a table of settings; raises ValueError, naming the setting, where one is unknown,
    missing, or of another type."""
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} should be a table of settings, got {table!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := [name for name in table if name not in fields]:
        raise ValueError(f"{where}: {unknown[0]!r} is no setting here; there are {', '.join(fields)}")
    needed = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if lacking := [name for name in needed if name not in table]:
        raise ValueError(f"{where}: {lacking[0]!r} is missing")
    try:
        return cls(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
