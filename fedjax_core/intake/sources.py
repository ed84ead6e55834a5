"""Reads a site's own table as columns of raw values, from the kind of source that its mapping names.

    a file      CSV, Parquet, a NumPy archive                  tables
    a query     of DuckDB                                      tables
    a folder    pictures: PNG, JPEG, DICOM                     pictures.py
    records     FHIR resources, one a line                     fhir.py
    events      MEDS, or records with its columns              events.py

Values are not converted: text of a CSV file is text, so that a code such as "01" stays one.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "a.csv"
>>> _ = path.write_text("alter,geschlecht\\n61,w\\n")
>>> raw_columns(path).columns
{'alter': ('61',), 'geschlecht': ('w',)}
"""

from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core.data import tables
from fedjax_core.intake import events, fhir, pictures
from fedjax_core.intake.raw import Raw


def raw_columns(
    source: Path | None,
    query: str = "",
    database: Path | None = None,
    *,
    headers: tuple[str, ...] = (),
    records: tuple[fhir.Records, ...] = (),
    features: events.Events | None = None,
    folder: Path = Path("."),
) -> Raw:
    """The raw table of a mapping's source or query; raises ValueError for a missing file, or one of another
    kind.

    `features` are those of events; a query's file names of pictures are relative to `folder`.
    """
    if source is None:
        raw = Raw(_queried(query, database), folder)
    elif not source.exists():
        raise ValueError(f"{source} is not there: the mapping's source is a path relative to the mapping")
    elif records:
        raw = fhir.read(source, records)
    elif features is not None and (source.is_dir() or source.suffix == ".parquet"):
        raw = events.read(source)
    elif source.is_dir():
        raw = pictures.listed(source, headers)
    else:
        raw = Raw(_table(source), source.parent)
    return raw if features is None else events.features(raw, features)


def _table(source: Path) -> dict[str, Any]:
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if odd := [name for name, x in arrays.items() if x.ndim != 1]:
            raise ValueError(
                f"{source}: array {odd[0]!r} has shape {list(arrays[odd[0]].shape)}, and a column has one value a row"
            )
        return {name: x.tolist() for name, x in arrays.items()}
    return tables.raw(source)


def _queried(query: str, database: Path | None) -> dict[str, list[Any]]:
    try:
        import duckdb
    except ImportError:
        raise ImportError("to run a query, DuckDB is needed: pip install 'fedjax-core[duckdb]'") from None
    if database is not None and not database.exists():
        raise ValueError(f"{database} is not there: the mapping's database is a path relative to the mapping")
    with duckdb.connect(
        ":memory:" if database is None else str(database), read_only=database is not None
    ) as connection:
        try:
            result = connection.execute(query)
        except duckdb.Error as error:
            raise ValueError(f"DuckDB refuses the query: {error}") from None
        names, rows = [column[0] for column in result.description], result.fetchall()
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}
