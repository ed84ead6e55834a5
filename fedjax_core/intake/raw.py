"""A site's own table before it has the study's fields: columns of values as they lie there, and the records
that gave no row, by reason.

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
    """What was read of a site's files."""

    columns: Mapping[str, Sequence[Any]]
    folder: Path = Path(".")
    """Names of pictures in a column are relative to it."""
    records: int = 0
    """Records that were read one by one, of which rows were made; 0 where the rows are the records."""
    left_out: Counter[str] = field(default_factory=Counter)
    """{reason: records that gave no row}."""
    where: tuple[str, ...] = ()
    """The first of these records, by file and line, for the site's staff alone."""
    notes: tuple[str, ...] = ()
    """What else a person should know of how the rows were made."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values()), ()))

    @property
    def share(self) -> float:
        """Of the records, how many gave no row because they could not be used."""
        return sum(self.left_out.values()) / self.records if self.records else 0.0


@dataclass
class LeftOut:
    """Counts records that cannot be used by reason, and keeps where the first of them are."""

    reasons: Counter[str] = field(default_factory=Counter)
    where: list[str] = field(default_factory=list)

    def add(self, reason: str, where: str, records: int = 1) -> None:
        """One more, or several; `where` is shown for the first few."""
        self.reasons[reason] += records
        if len(self.where) < 5:
            self.where.append(f"{where}: {reason}")
