"""A site's own table, as columns of raw values: from CSV or Parquet, a NumPy archive, or a DuckDB query.

Values are as they lie there: text of a CSV file is text, so that a code such as "01" stays one.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "a.csv"
>>> _ = path.write_text("alter,geschlecht\\n61,w\\n")
>>> raw_columns(path)
{'alter': ('61',), 'geschlecht': ('w',)}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core.data import tables


def raw_columns(source: Path | None, query: str = "", database: Path | None = None) -> Mapping[str, Sequence[Any]]:
    """{column: its values} of a file, or of a DuckDB query; raises ValueError for a file of another kind or that is not there."""
    if source is None:
        return _queried(query, database)
    if not source.exists():
        raise ValueError(f"{source} is not there: the mapping's source is a path relative to the mapping")
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        if odd := [name for name, x in found.items() if x.ndim != 1]:
            raise ValueError(f"{source}: array {odd[0]!r} has shape {list(found[odd[0]].shape)}, and a column has one value a row")
        return {name: x.tolist() for name, x in found.items()}
    return tables.raw(source)


def _queried(query: str, database: Path | None) -> dict[str, list[Any]]:
    try:
        import duckdb
    except ImportError:
        raise ImportError("to run a query, DuckDB is needed: pip install 'fedjax-core[duckdb]'") from None
    if database is not None and not database.exists():
        raise ValueError(f"{database} is not there: the mapping's database is a path relative to the mapping")
    with duckdb.connect(":memory:" if database is None else str(database), read_only=database is not None) as connection:
        try:
            found = connection.execute(query)
        except duckdb.Error as error:
            raise ValueError(f"DuckDB refuses the query: {error}") from None
        names, rows = [column[0] for column in found.description], found.fetchall()
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}
