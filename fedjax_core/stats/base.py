"""A statistic is two halves: a site's columns -> sums, and at the centre, all sites' sums -> the next step or the answer.

    ask(source, statistic)  ─►  at each site: statistic.sums(table, limits)  ─►  [sums, sums, ...] in the order of the sites

The site half is a frozen dataclass of plain values, `Statistic`, that travels as JSON. Clients in one process and sites of a `Federation`
run the same site half, and the same centre half adds what comes back, so that their answers are equal by construction.

`Limits` are a site's own. A statistic that would tell of too few people raises `TooFew` before anything is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.stats.table import Table

Sums = Mapping[str, np.ndarray]
"""What one site tells: named arrays, which add up over sites where the statistic says so."""


class TooFew(ValueError):
    """A site has too few people for what is asked of it; the reason is for its own staff."""


@dataclass(frozen=True)
class Limits:
    """The least that a site's answer may be about. The defaults demand nothing: they are of data at hand."""

    cell: int = 0
    """No group of people that a sum tells apart is smaller, unless it is empty."""
    share: float | None = None
    """Of so many parameters for each row at most."""

    def rows(self, count: int, what: str = "rows") -> None:
        """Raises where there are some, and fewer than a cell."""
        if 0 < count < self.cell:
            raise TooFew(f"{count} {what}, and the site's policy asks for {self.cell} at least (minimum.cell)")

    def parameters(self, parameters: int, rows: int) -> None:
        """Raises where there are too many parameters for the rows."""
        if self.share is not None and rows and parameters > self.share * rows:
            raise TooFew(f"{parameters} parameters for {rows} rows, and at most {self.share:.2f} for each may be estimated")

    def matrix(self, x: np.ndarray, names: Sequence[str]) -> None:
        """Raises where a column [rows, P] tells a few rows from all others, as that of a rare level does."""
        if self.cell and len(x):
            for name, column in zip(names, x.T, strict=True):
                _, counts = np.unique(column, return_counts=True)
                self.rows(len(column) - int(counts.max()), f"rows stand out in {name!r}")


@runtime_checkable
class Statistic(Protocol):
    """The site half: frozen, of plain values. `sums` is pure, and of a table without rows has the same names, dtypes and shapes."""

    @property
    def columns(self) -> tuple[str, ...]: ...  # that it reads
    def sums(self, table: Table, limits: Limits) -> Sums: ...


@runtime_checkable
class Asks(Protocol):
    """What can be asked for a statistic, as a `Federation` is: the sums of every site, in their order."""

    def statistic(self, statistic: Any) -> list[Sums]: ...
    @property
    def site_names(self) -> Sequence[Any]: ...


Source = Clients | Asks


def tables(clients: Clients) -> list[Table]:
    """Each client's rows as a table of its own."""
    columns, offsets = clients.named_columns, clients.offsets.tolist()
    cuts = zip(clients.ids.tolist(), offsets, offsets[1:], strict=False)
    return [Table({name: x[a:b] for name, x in columns.items()}, clients.categories, who) for who, a, b in cuts]


def ask(source: Source, statistic: Statistic) -> list[Sums]:
    """The sums of each client or site, in their order; raises where one does not tell them."""
    if isinstance(source, Clients):
        return [statistic.sums(table, Limits()) for table in tables(source)]
    if isinstance(source, Asks):
        return source.statistic(statistic)
    raise TypeError(f"statistics are of fc.Clients or of a fc.Federation, got {type(source).__name__}: see fc.Clients.from_table")


def names_of(source: Source) -> list[Any]:
    """The names of the clients or sites, in their order."""
    return source.ids.tolist() if isinstance(source, Clients) else list(source.site_names)


def count(number: Any) -> np.ndarray:
    """A whole number, as what a site tells."""
    return np.array(number, np.int64)


def total(said: Sequence[Sums]) -> dict[str, np.ndarray]:
    """The sums of all sites, added in their order."""
    return {name: reduce(np.add, [one[name] for one in said]) for name in said[0]}
