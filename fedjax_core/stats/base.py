"""The two halves of a statistic: a site turns its columns into sums, and the centre turns all sites' sums
into the next step or the result.

    ask(source, statistic)  ─►  at each site: statistic.sums(table, limits)  ─►  [sums, sums, ...] in the order of the sites

The site half, `Statistic`, is a frozen dataclass of plain values that travels as JSON. Clients in one process
and sites of a `Federation` run the same two halves, so their results are equal by construction.

Each site has `Limits` of its own (fedjax_core/sites/site/limits.py). A statistic checks every group of people
that its sums distinguish, and raises `TooFew` before anything leaves where a group is too small. Data in this
process have no limits: the `Limits` of this file demand nothing."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.stats.table import Table

if TYPE_CHECKING:
    from fedjax_core.stats.formula import Design

Sums = Mapping[str, np.ndarray]
"""What one site sends: named arrays, which add up over sites where the statistic says so."""


class TooFew(ValueError):
    """Raised where a site has too few people for a request; the reason is for its own staff."""


class Limits:
    """The conditions on a site's sums. These demand nothing; a site's own raise `TooFew`.

    `people` [rows] are the people of a group's rows, `columns` the columns that the sums describe.
    """

    def group(self, people: np.ndarray, what: str, columns: Iterable[str] = ()) -> None:
        """Checks a group of rows that a sum distinguishes."""

    def model(
        self,
        table: Table,
        design: "Design",
        x: np.ndarray,
        y: np.ndarray | None = None,
        columns: Iterable[str] = (),
    ) -> None:
        """Checks a model's columns x [rows, P], which `design` made of the table, and its outcome y."""

    def weights(self, w: np.ndarray, people: np.ndarray) -> None:
        """Checks the weights [rows] of rows in a sum, where the request influences them."""

    def cells(
        self,
        name: str,
        cell: np.ndarray,
        shape: tuple[int, ...],
        people: np.ndarray,
        columns: Iterable[str] = (),
    ) -> np.ndarray:
        """The number of rows in each cell of a table, flat; `HIDDEN` where the policy hides it. `cell`
        [rows]: each row's cell, -1 for none."""
        return np.bincount(cell[cell >= 0], minlength=int(np.prod(shape))).astype(np.int64)

    def sum(self, x: np.ndarray, people: np.ndarray, name: str) -> bool:
        """Whether the sum of a column's values x [rows] may be reported: no person's part of it may be too
        large."""
        return True


HIDDEN = -1
"""Stands for a count that a site does not report."""


@runtime_checkable
class Statistic(Protocol):
    """The site half: frozen, of plain values. `sums` is pure, with the same names, dtypes and shapes for a
    table without rows."""

    @property
    def columns(self) -> tuple[str, ...]: ...  # the columns that it reads
    def sums(self, table: Table, limits: Limits) -> Sums: ...


@runtime_checkable
class Asks(Protocol):
    """A source that returns every site's sums, in the order of the sites, as a `Federation` does."""

    def statistic(self, statistic: Any) -> list[Sums]: ...
    @property
    def site_names(self) -> Sequence[Any]: ...


Source = Clients | Asks


def tables(clients: Clients) -> list[Table]:
    """Each client's rows as a table of its own."""
    columns, offsets = clients.named_columns, clients.offsets.tolist()
    cuts = zip(clients.ids.tolist(), offsets, offsets[1:], strict=False)
    return [
        Table({name: x[a:b] for name, x in columns.items()}, clients.categories, client)
        for client, a, b in cuts
    ]


def ask(source: Source, statistic: Statistic) -> list[Sums]:
    """The sums of each client or site, in their order; raises where one does not report them."""
    if isinstance(source, Clients):
        return [statistic.sums(table, Limits()) for table in tables(source)]
    if isinstance(source, Asks):
        return source.statistic(statistic)
    raise TypeError(
        f"statistics are of fc.Clients or of a fc.Federation, got {type(source).__name__}: see fc.Clients.from_table"
    )


def names_of(source: Source) -> list[Any]:
    """The names of the clients or sites, in their order."""
    return source.ids.tolist() if isinstance(source, Clients) else list(source.site_names)


def count(number: Any) -> np.ndarray:
    """A whole number as an array, as sites send it."""
    return np.array(number, np.int64)


def total(site_sums: Sequence[Sums]) -> dict[str, np.ndarray]:
    """The sums of all sites, added in their order."""
    return {name: reduce(np.add, [one[name] for one in site_sums]) for name in site_sums[0]}
