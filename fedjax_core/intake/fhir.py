"""Reads FHIR resources, one a line (NDJSON, as a bulk export writes them), as the columns that paths name.

    source = "export"                   a mapping; a folder of .ndjson files (also .gz), or one
    [[records]]
    resource = "Observation"            each of these resources becomes a row
    where = "status = 'final'"          only those for which this path is true
    [records.columns]
    patient = "subject.reference.replace('Patient/', '')"
    value = "value.ofType(Quantity).value"

Several [[records]] are rows of one table; a column that one of them does not name is missing in its rows.
With the columns subject_id, time, code and numeric_value they are events, and [events] makes features of them
(events.py). A record is left out where its line cannot be read, and where a path finds more than one value,
or one that is no number or text.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "a.ndjson"
>>> _ = path.write_text('{"resourceType": "Patient", "id": "p1", "gender": "female"}\\n{"resourceType": "Patient"\\n')
>>> found = read(path, (Records("Patient", {"id": "id", "sex": "gender"}),))
>>> found.columns, dict(found.left_out)
({'id': ['p1'], 'sex': ['female']}, {'a line that is no JSON': 1})
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedjax_core.intake import paths
from fedjax_core.intake.raw import LeftOut, Raw


@dataclass(frozen=True)
class Records:
    """Which resources become rows, and what each column holds of them."""

    resource: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """{column: path}."""
    where: str = ""

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("it has no columns: write [records.columns] with name = 'path'")
        for path in (*self.columns.values(), *([self.where] if self.where else [])):
            if not isinstance(path, str):
                raise ValueError(f"a path is text, got {path!r}")
            paths.parse(path)


def read(source: Path, records: tuple[Records, ...]) -> Raw:
    """The table of these records, from the resources in a file or in all .ndjson files of a folder."""
    files = (
        sorted(one for one in source.rglob("*") if one.name.endswith((".ndjson", ".ndjson.gz")))
        if source.is_dir()
        else [source]
    )
    if not files:
        raise ValueError(f"{source} has no file that ends in .ndjson or .ndjson.gz")
    names = list(dict.fromkeys(name for one in records for name in one.columns))
    columns: dict[str, list[Any]] = {name: [] for name in names}
    parsed = [
        (
            one.resource,
            paths.parse(one.where) if one.where else None,
            {name: paths.parse(path) for name, path in one.columns.items()},
        )
        for one in records
    ]
    left, lines = LeftOut(), 0
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            lines += 1
            try:
                resource = json.loads(line)
            except ValueError:
                left.add("a line that is no JSON", f"{file}, line {number}")
                continue
            if not isinstance(resource, dict) or "resourceType" not in resource:
                left.add("a line that is no resource", f"{file}, line {number}")
                continue
            for of, where, each in parsed:
                if resource["resourceType"] == of and (
                    where is None or paths.values(where, resource) == [True]
                ):
                    try:
                        row = {name: _one(paths.values(path, resource), name) for name, path in each.items()}
                    except ValueError as error:
                        left.add(str(error), f"{file}, line {number}")
                        continue
                    for name in names:
                        columns[name].append(row.get(name))
    return Raw(columns, source if source.is_dir() else source.parent, lines, left.reasons, tuple(left.where))


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as opened:
            yield from opened
    except (OSError, EOFError) as error:
        raise ValueError(f"{file} cannot be read to its end: {error}") from None


def _one(values: list[Any], name: str) -> Any:
    if len(values) > 1:
        raise ValueError(f"{name!r} has more than one value: say which, with where(...) or first()")
    if values and isinstance(values[0], dict | list):
        raise ValueError(f"{name!r} is no number or text: its path ends too early")
    return values[0] if values else None
