"""A statistic is two halves: a site's columns -> sums, and at the centre, all sites' sums -> the next step or
the answer.

    ask(source, statistic)  ─►  at each site: statistic.sums(table, limits)  ─►  [sums, sums, ...] in the order of the sites

The site half is a frozen dataclass of plain values, `Statistic`, that travels as JSON. Clients in one process
and sites of a `Federation` run the same site half, and the same centre half adds what comes back, so that
their answers are equal by construction.

`Limits` are a site's own (fedjax_core/sites/site/limits.py). A statistic asks them of every group of people
that its sums tell apart; one that would tell of too few raises `TooFew` before anything is told. Data at hand
have no limits: those of this file demand nothing."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.stats.table import Table

if TYPE_CHECKING:
    from fedjax_core.stats.formula import Design

Sums = Mapping[str, np.ndarray]
"""What one site tells: named arrays, which add up over sites where the statistic says so."""


class TooFew(ValueError):
    """A site has too few people for what is asked of it; the reason is for its own staff."""


class Limits:
    """What must hold of a site's answer. These demand nothing; a site's own raise `TooFew`.

    `who` [rows] are the people of a group's rows, `about` the columns of which something is told of them.
    """

    def group(self, people: np.ndarray, what: str, columns: Iterable[str] = ()) -> None:
        """Asked of each group of rows that a sum tells apart."""

    def model(
        self,
        table: Table,
        design: "Design",
        x: np.ndarray,
        y: np.ndarray | None = None,
        columns: Iterable[str] = (),
    ) -> None:
        """Asked of a model's columns x [rows, P], that `design` made of the table, and of its outcome y."""

    def weights(self, w: np.ndarray, people: np.ndarray) -> None:
        """Asked of the weights [rows] with which rows are in a sum, where whoever asks has a say in them."""

    def cells(
        self,
        name: str,
        cell: np.ndarray,
        shape: tuple[int, ...],
        people: np.ndarray,
        columns: Iterable[str] = (),
    ) -> np.ndarray:
        """How many rows are in each cell of a table, flat; `HIDDEN` where that may not be told. `cell`
        [rows]: which, -1 for none."""
        return np.bincount(cell[cell >= 0], minlength=int(np.prod(shape))).astype(np.int64)

    def sum(self, x: np.ndarray, people: np.ndarray, name: str) -> bool:
        """Whether a sum of values x [rows] of the column may be told, of which nobody's part may be too
        large."""
        return True


HIDDEN = -1
"""In the place of a count that a site does not tell."""


@runtime_checkable
class Statistic(Protocol):
    """The site half: frozen, of plain values. `sums` is pure, and of a table without rows has the same names,
    dtypes and shapes."""

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
    return [
        Table({name: x[a:b] for name, x in columns.items()}, clients.categories, client)
        for client, a, b in cuts
    ]


def ask(source: Source, statistic: Statistic) -> list[Sums]:
    """The sums of each client or site, in their order; raises where one does not tell them."""
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
    """A whole number, as what a site tells."""
    return np.array(number, np.int64)


def total(site_sums: Sequence[Sums]) -> dict[str, np.ndarray]:
    """The sums of all sites, added in their order."""
    return {name: reduce(np.add, [one[name] for one in site_sums]) for name in site_sums[0]}
