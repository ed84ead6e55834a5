"""The data of a population: every client's examples in flat columns, cut by offsets.

    client i is rows offsets[i]:offsets[i+1] of every column

Clients are ragged without padding, the columns are any pytree of arrays, and they lie in memory or in
memory-mapped files. Data is checked where it comes in, because a NaN in one client's example is the whole
federation's NaN a hundred rounds later.

>>> clients = Clients.from_list([{"x": np.ones((3, 2)), "y": np.array([0, 1, 1])}, {"x": np.zeros((1, 2)), "y": np.array([1])}])
>>> clients
Clients(2 clients, 4 examples, sizes 1 to 3 (median 2), x: float64[2], y: int64[], 96 B)
>>> clients.sizes.tolist(), clients[0]["y"].tolist()
([3, 1], [0, 1, 1])
>>> first, rest = clients.split(0.7, seed=0)
>>> first.sizes.tolist(), rest.sizes.tolist()
([2, 1], [1, 0])
"""

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core.data import checks, spill, storage, tables
from fedjax_core.data.addresses import addresses_of, words_of
from fedjax_core.data.features import Features, arrange, checked
from fedjax_core.data.fingerprint import fingerprint
from fedjax_core.data.given import features_in
from fedjax_core.data.joining import join, rows_of, whose
from fedjax_core.data.split import Alone, first_part
from fedjax_core.types import Columns


class NoColumn(ValueError, KeyError):
    """A column that is asked for does not exist, or not yet, as preprocessing is to make it."""

    __str__ = ValueError.__str__  # the sentence, where a KeyError shows the repr of it


class Clients:
    """N clients' examples. `from_list`, `from_arrays`, `from_parts`, `from_table` and `open` build it; it and
    its arrays do not change."""

    def __init__(
        self,
        columns: Columns,
        offsets: Any,
        ids: Any = None,
        *,
        features: Features | None = None,
        categories: Features | None = None,
    ) -> None:
        """Like `from_arrays`, without looking for NaN."""
        named = features_in(columns) | dict(features or {})
        self._leaves, self._structure, self._names = checks.flat(columns)
        self.offsets: np.ndarray = checks.offsets_of(offsets, checks.rows(self._leaves, self._names))
        """[N+1] int64: client i is rows offsets[i]:offsets[i+1]."""
        self.ids: np.ndarray = checks.ids_of(ids, len(self.offsets) - 1)
        """[N] integers or strings: the clients' names, which address their randomness."""
        self.features: dict[str, tuple[str, ...]] = checked(named, self.named_columns)
        """{column: the names of the numbers in each of its rows}, where they are known."""
        known = {*self.named_columns, *(name for of in self.features.values() for name in of)}
        self.categories: dict[str, tuple[str, ...]] = {
            name: tuple(these) for name, these in dict(categories or {}).items() if name in known
        }
        """{column, or feature of one: the texts whose codes it holds, for all clients alike}; code -1 is a
        missing value."""
        if not self.examples:
            owner = (
                f"client {self.ids[0].item()!r} has"
                if len(self) == 1
                else f"there are {len(self)} clients, but"
            )
            raise ValueError(f"the dataset is empty: {owner} not one example; give at least one client data")

    @classmethod
    def from_list(
        cls,
        columns: Iterable[Columns],
        ids: Any = None,
        *,
        features: Features | None = None,
        allow_nan: bool = False,
    ) -> "Clients":
        """Clients from each one's columns: [{"x": x0, "y": y0}, {"x": x1, "y": y1}, ...]. A client may have
        no examples.

        `features={"x": ["age", "weight"]}` names the numbers in a row of `x`; sites compare them, and
        `arranged` uses them. A data frame has names of its own, and its columns are put into the order of the
        first client's."""
        each = list(columns)
        if not each:
            raise ValueError(
                "the dataset is empty: the list holds no clients; give one entry of columns for each client"
            )
        ids = checks.ids_of(ids, len(each))
        named = features_in(each[0]) | dict(features or {})
        joined, offsets = join(each, ids, named)
        return cls.from_arrays(joined, offsets, ids, features=named, allow_nan=allow_nan)

    @classmethod
    def from_arrays(
        cls,
        columns: Columns,
        offsets: Any,
        ids: Any = None,
        *,
        features: Features | None = None,
        allow_nan: bool = False,
    ) -> "Clients":
        """Clients from flat columns: client i has rows offsets[i]:offsets[i+1]. Nothing is copied."""
        clients = cls(columns, offsets, ids, features=features)
        if not allow_nan:
            clients.check_finite()
        return clients

    @classmethod
    def from_parts(
        cls,
        columns: Columns,
        parts: Sequence[Any],
        ids: Any = None,
        *,
        features: Features | None = None,
        allow_nan: bool = False,
    ) -> "Clients":
        """Clients from flat columns and each one's row numbers, as the functions of `partition` return them.
        Copies the rows."""
        leaves, structure, names = checks.flat(columns)
        rows = rows_of(parts, checks.rows(leaves, names))
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        named = features_in(columns) | dict(features or {})
        return cls.from_arrays(
            structure.unflatten([leaf[rows] for leaf in leaves]),
            offsets,
            ids,
            features=named,
            allow_nan=allow_nan,
        )

    @classmethod
    def from_table(cls, table: Any, by: str) -> "Clients":
        """Clients from the rows of one table, a client for each value of the column `by`, in the order of
        these values.

        `table`: the path of a .csv or .parquet file, a mapping {name: column} or a data frame. Text becomes
        codes of categories, one coding for all clients (`categories`); a missing value is NaN, or code -1,
        and is refused where it is used."""
        grouped, offsets, ids = tables.by_client(tables.read(table), by)
        return cls(grouped.columns, offsets, ids, categories=grouped.categories)

    @classmethod
    def open(cls, folder: str | Path, *, check: bool = False) -> "Clients":
        """The clients that `save` wrote to a folder, memory-mapped: rows are read when used. `check` looks
        for NaN, in all of them."""
        columns, offsets, ids, features, categories = storage.read(folder)
        clients = cls(columns, offsets, ids, features=features, categories=categories)
        if check:
            clients.check_finite()
        return clients

    def save(self, folder: str | Path) -> None:
        """Writes the clients to a folder that does not exist yet: whole, or not at all. Columns must be
        dicts, lists and tuples.

        The folder is for its owner alone, as are those above it that are made, for they may hold records of
        patients. To share data with other users of a machine or cluster: `chmod -R go+rX FOLDER`.
        """
        storage.write(folder, self.columns, self.offsets, self.ids, self.features, self.categories)

    @property
    def columns(self) -> Columns:
        """The flat columns: each leaf [examples, ...]."""
        return self._structure.unflatten(self._leaves)

    @property
    def named_columns(self) -> dict[str, np.ndarray]:
        """The flat columns by their names; of columns within columns, "outer.inner"."""
        return dict(zip(self._names, self._leaves, strict=True))

    @cached_property
    def sizes(self) -> np.ndarray:
        """[N] int64: how many examples each client has."""
        sizes = np.diff(self.offsets)
        sizes.flags.writeable = False
        return sizes

    @cached_property
    def addresses(self) -> np.ndarray:
        """[N, 2] uint32: each client's address for randomness, (high, low) words of its id (addresses.py)."""
        return addresses_of(self.ids)

    @property
    def examples(self) -> int:
        """The number of examples of all clients together."""
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """The number of bytes that the columns take."""
        return sum(leaf.nbytes for leaf in self._leaves)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, position: int) -> Columns:
        """The columns of the client at this position: views of the flat columns."""
        try:
            i = operator.index(position)
        except TypeError:
            raise TypeError(
                f"clients[{position!r}]: one client is taken by its position, an integer; "
                "for several use clients.select(positions), for a flat column clients.columns[name]"
            ) from None
        if not -len(self) <= i < len(self):
            raise IndexError(
                f"there is no client {i}: there are {len(self)}, at positions 0 to {len(self) - 1}"
            )
        start, stop = self.offsets[i % len(self)], self.offsets[i % len(self) + 1]
        return self._structure.unflatten([leaf[start:stop] for leaf in self._leaves])

    def __iter__(self) -> Iterator[Columns]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        columns = ", ".join(
            f"{name}: {checks.dtype_of(leaf)}{list(leaf.shape[1:])}"
            for name, leaf in self.named_columns.items()
        )
        sizes = f"sizes {self.sizes.min():,} to {self.sizes.max():,} (median {np.median(self.sizes):,.0f})"
        return f"Clients({len(self):,} clients, {self.examples:,} examples, {sizes}, {columns}, {_in_words(self.nbytes)})"

    def select(self, positions: Any) -> "Clients":
        """The clients at these positions, in this order, with their ids. Copies their rows, unless they lie
        next to each other."""
        positions = checks.positions(positions, len(self))
        offsets = np.concatenate([[0], np.cumsum(self.sizes[positions])])
        if (np.diff(positions) == 1).all():
            rows: Any = slice(self.offsets[positions[0]], self.offsets[positions[-1] + 1])
        else:
            rows = np.arange(offsets[-1]) + np.repeat(
                self.offsets[positions] - offsets[:-1], self.sizes[positions]
            )
        return self._with([leaf[rows] for leaf in self._leaves], offsets, self.ids[positions])

    def take(self, rows: np.ndarray, folder: str | Path | None = None) -> "Clients":
        """The same clients with these rows of the flat columns alone, ascending. Copies them.

        Large copies of memory-mapped columns go to a file without a name, on the disk of the `folder` or the
        system's for such."""
        return self._with(
            [spill.taken(leaf, rows, folder) for leaf in self._leaves],
            np.searchsorted(rows, self.offsets),
            self.ids,
        )

    def split(
        self, fraction: float, seed: int = 0, *, by: str | None = None, stratify: str | None = None
    ) -> tuple["Clients", "Clients"]:
        """(first, rest): each client's examples divided at random, `fraction` of them (to the nearest, half
        up) in `first`.

        `by` names the column of persons: all examples of a person are then in one part, and `fraction` is
        that of persons. `stratify` names the column of classes: each class is then divided so, and is in both
        parts at every client that has it. Drawn by (seed, client's id): a client's division does not depend
        on the other clients or their order. Both parts have all clients, some perhaps without examples, and
        keep the order of the rows. Copies the rows."""
        chosen = self.drawn(fraction, seed, by=by, stratify=stratify)
        if chosen.all() or not chosen.any():
            raise ValueError(
                f"split({fraction}) leaves one part without examples: the largest client has {self.sizes.max()}. "
                "Choose a fraction nearer to a half."
            )
        return self.take(np.flatnonzero(chosen)), self.take(np.flatnonzero(~chosen))

    def drawn(
        self, fraction: float, seed: int = 0, *, by: str | None = None, stratify: str | None = None
    ) -> np.ndarray:
        """[examples] bool: the examples in the first part of such a `split`."""
        groups, what = (
            None if name is None else self.column_of(name, word)
            for name, word in ((by, "by"), (stratify, "stratify"))
        )
        try:
            return first_part(self.offsets, self._words, fraction, seed, by=groups, stratify=what)
        except Alone as alone:
            raise ValueError(
                f"class {alone.value} of column {stratify!r} has one example (or person) at {whose(alone.client, self.ids)[:-2]}, "
                "and it cannot be in both parts: put rare classes together, leave that client or example out, or split without stratify="
            ) from None

    def with_columns(self, columns: Columns) -> "Clients":
        """The same clients with other columns of as many rows, which are not copied. Does not look for NaN.

        A column of the same name and width keeps the names of its features.
        """
        replaced = type(self)(columns, self.offsets, self.ids)
        same = {
            name: features
            for name, features in self.features.items()
            if name in replaced.named_columns and replaced.named_columns[name].shape[1:] == (len(features),)
        }
        return type(self)(
            columns, self.offsets, self.ids, features=same | replaced.features, categories=self.categories
        )

    def with_ids(self, ids: Any) -> "Clients":
        """The same clients under other ids, and so with other draws."""
        return type(self)(self.columns, self.offsets, ids, features=self.features, categories=self.categories)

    def arranged(self, features: Features) -> "Clients":
        """The clients with the features of each of these columns in this order, by their names.

        A missing column is made, as a matrix, of the columns named like its features, which are then no
        longer separate columns: `arranged({"x": ["age", "weight"]})`. Raises, naming it, where a feature is
        missing or there is another one."""
        columns, names = arrange(self.columns, self.features, features, self.categories)
        return type(self)(columns, self.offsets, self.ids, features=names, categories=self.categories)

    def without(self, *names: str) -> "Clients":
        """The clients without these columns: what nothing learns from, such as a patient's number by which
        they were split."""
        columns = self.columns
        if not names:
            return self
        if not isinstance(columns, dict) or (odd := [name for name in names if name not in columns]):
            raise ValueError(
                f"there is no column {odd[0] if isinstance(columns, dict) else names[0]!r} to leave out; there are {', '.join(self._names)}"
            )
        return self.with_columns({name: x for name, x in columns.items() if name not in names})

    def map(self, fn: Callable[[Columns], Columns], *, allow_nan: bool = False) -> "Clients":
        """The clients with fn(one client's columns) for columns: a site's own standardisation, new features,
        rows left out.

        Clients without examples are mapped too, so that every client has the same columns.
        """
        return type(self).from_list((fn(columns) for columns in self), self.ids, allow_nan=allow_nan)

    def check_finite(self, missing: Collection[str] = ()) -> None:
        """Raises where a floating column holds NaN, an infinity, or a number whose square float32 cannot
        hold.

        Names column, client and row. In the columns `missing` NaN is a missing value. Reads all data.
        """
        checks.finite(self._leaves, self._names, self.offsets, self.ids, missing)

    def check_numbers(self, but: Collection[str] = (), *, whole: bool = True) -> None:
        """Raises where a column is text, or changes in the 32 bits that a model works on; skips the columns
        `but`.

        Names column, client and row. NaN and infinities are allowed. Without `whole`, checks only what needs
        no reading of all data.
        """
        checks.numbers(self._leaves, self._names, self.offsets, self.ids, but, whole)

    def check_labels(self, name: str, classes: int) -> None:
        """Raises unless the column holds integers from 0 to classes - 1; names label, client and row. Reads
        the column."""
        if name not in self._names:
            raise NoColumn(
                f"there is no column {name!r} to hold labels; the columns are {', '.join(self._names)}"
            )
        checks.labels(self._leaves[self._names.index(name)], name, classes, self.offsets, self.ids)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name structure, dtypes, shapes, offsets, ids and contents, alike in
        memory and memory-mapped.

        Of data larger than 64 MB only evenly spaced blocks of rows are read, 64 MB in all: a change between
        them goes unseen."""
        known = self.categories | self.features
        named = [f"{name}:{','.join(known[name])}" if name in known else name for name in self._names]
        return fingerprint(self._leaves, named, self.offsets, self.addresses)

    @property
    def _words(self) -> np.ndarray:
        return words_of(self.ids)

    def column_of(self, name: str, word: str) -> np.ndarray:
        """A column that groups examples, by persons or classes; raises where it cannot. `word` is the
        argument that named it."""
        if name not in self._names:
            raise ValueError(f"{word}={name!r} names no column; the columns are {', '.join(self._names)}")
        return checks.groups(self.named_columns[name], name, word)

    def _with(self, leaves: list[np.ndarray], offsets: np.ndarray, ids: np.ndarray) -> "Clients":
        return type(self)(
            self._structure.unflatten(leaves),
            offsets,
            ids,
            features=self.features,
            categories=self.categories,
        )


def _in_words(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"
