"""A site's own table before it has the study's fields: columns of raw values, and the records that gave no
row, by reason.

>>> Raw({"age": ["61", "NA"]}).rows
2
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Raw:
    """A table as it was read from a site's files."""

    columns: Mapping[str, Sequence[Any]]
    folder: Path = Path(".")
    """File names of pictures in a column are relative to it."""
    records: int = 0
    """Records that were read one by one and made into rows; 0 where the rows are the records."""
    left_out: Counter[str] = field(default_factory=Counter)
    """{reason: records that gave no row}."""
    where: tuple[str, ...] = ()
    """The first of these records, by file and line, for the site's staff alone."""
    notes: tuple[str, ...] = ()
    """Notes for people on how the rows were made."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values()), ()))

    @property
    def share(self) -> float:
        """The share of records that gave no row because they could not be used."""
        return sum(self.left_out.values()) / self.records if self.records else 0.0


@dataclass
class LeftOut:
    """Counts unusable records by reason, and keeps the places of the first few."""

    reasons: Counter[str] = field(default_factory=Counter)
    where: list[str] = field(default_factory=list)

    def add(self, reason: str, where: str, records: int = 1) -> None:
        """Adds one record, or several; `where` is shown for the first few."""
        self.reasons[reason] += records
        if len(self.where) < 5:
            self.where.append(f"{where}: {reason}")
