"""A site's mapping: where its own table is, and how its columns become the fields of the study's schema.

    schema = "schema.toml"              mapping.toml; paths are relative to it
    source = "patients.csv"             .csv, .tsv (also .gz), .parquet, .npz; a folder of pictures (pictures.py),
                                        of FHIR resources (fhir.py) or of events (events.py); or, with DuckDB:
    query = "SELECT * FROM read_csv('a.csv') JOIN ..."
    database = "omop.duckdb"            opened to be read only; without it the query names files itself

    [fields.age]
    column = "alter"                    not set: the column has the field's name
    [fields.creatinine]
    column = "krea"
    factor = 0.01131                    or unit = "..." of the site's column, if it is a known one
    [fields.sex]
    column = "geschlecht"
    codes = { w = "female", m = "male" }
    [fields.bmi]
    expression = "kg / (cm / 100) ** 2"     of the site's columns: numbers, + - * / **,
                                            comparisons, log, exp, sqrt; never code

>>> mapping = Mapping.of({"schema": "s.toml", "source": "a.csv", "fields": {"age": {"column": "alter", "unit": "month"}}})
>>> mapping.fields["age"].column
'alter'
"""

from collections.abc import Mapping as Table
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedjax_core.intake.events import Events, Feature
from fedjax_core.intake.fhir import Records
from fedjax_core.intake.raw import Raw
from fedjax_core.intake.sources import raw_columns
from fedjax_core.intake.tables import made, table_of
from fedjax_core.stats.expressions import parse


@dataclass(frozen=True)
class Origin:
    """The origin of one field: a site's column or expression, and its conversion."""

    column: str = ""
    expression: str = ""
    unit: str = ""
    factor: float = 1.0
    offset: float = 0.0
    """Added after the factor."""
    codes: Table[str, str] = field(default_factory=dict)
    """{the site's value, as text: the schema's category}."""
    missing: tuple[Any, ...] = ()
    resize: bool = False
    """Whether pictures of another size are resized to the schema's."""

    def __post_init__(self) -> None:
        if self.column and self.expression:
            raise ValueError("a field is of a column or of an expression, and this says both")
        if self.unit and (self.factor != 1.0 or self.offset):
            raise ValueError("unit says how to convert, and so do factor and offset: leave one of them out")
        if self.expression:
            parse(self.expression)
        if not all(isinstance(value, str) for value in self.codes.values()):
            raise ValueError("codes are { site's value = category as text }")


@dataclass(frozen=True)
class Mapping:
    """How a site's table becomes the study's fields."""

    schema: Path
    fields: Table[str, Origin] = field(default_factory=dict)
    source: Path | None = None
    query: str = ""
    database: Path | None = None
    headers: tuple[str, ...] = ()
    """DICOM headers that become columns; no other is read."""
    records: tuple[Records, ...] = ()
    events: Events | None = None
    file: Path | None = field(default=None, compare=False)

    @classmethod
    def read(cls, path: str | Path) -> "Mapping":
        """The mapping in a TOML file; raises ValueError, naming the setting, where it is none."""
        return cls.of(table_of(Path(path)), str(path), Path(path))

    @classmethod
    def of(cls, table: Table[str, Any], where: str = "the mapping", file: Path | None = None) -> "Mapping":
        """The mapping in a table of settings."""
        fields = table.get("fields", {})
        if not isinstance(fields, Table):
            raise ValueError(f"{where}: fields should be tables [fields.NAME]")
        each = {name: made(Origin, one, f"{where}: fields.{name}") for name, one in fields.items()}
        beside = Path(".") if file is None else file.parent
        paths = {
            name: beside / Path(table[name]).expanduser()
            for name in ("schema", "source", "database")
            if name in table
        }
        records, events = table.get("records", []), table.get("events")
        if not isinstance(records, list):
            raise ValueError(f"{where}: records are written [[records]], each of one kind of resource")
        read: dict[str, Any] = {"records": [made(Records, one, f"{where}: records") for one in records]}
        if events is not None:
            features = events.get("features", {}) if isinstance(events, Table) else None
            if not isinstance(features, Table):
                raise ValueError(f"{where}: events is a table [events], with tables [events.features.NAME]")
            taken = {
                name: made(Feature, one, f"{where}: events.features.{name}") for name, one in features.items()
            }
            read["events"] = made(Events, {**events, "features": taken}, f"{where}: events")
        mapping: Mapping = made(cls, {**table, **paths, **read, "fields": each, "file": file}, where)
        if (mapping.source is None) == (not mapping.query):
            raise ValueError(
                f"{where} needs source = 'a file', or query = 'SELECT ...' for DuckDB, and one of them alone"
            )
        if (mapping.records or mapping.headers) and mapping.source is None:
            raise ValueError(
                f"{where}: records and headers are of files, so source = ... names them, and not a query"
            )
        return mapping

    def raw(self) -> Raw:
        """Reads the site's own table, which this mapping names."""
        beside = Path(".") if self.file is None else self.file.parent
        more: dict[str, Any] = {
            "headers": self.headers,
            "records": self.records,
            "features": self.events,
            "folder": beside,
        }
        return raw_columns(self.source, self.query, self.database, **more)
