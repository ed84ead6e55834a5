"""Client state in files that all nodes see: the worker of a part of a cohort reads and writes its clients'
rows there.

    driver   sends with a part where its rows are and where to write them; the result says whose were written
    worker   reads the rows, works, writes them

A row has a place in each of three files. An exchange writes to the file that holds neither its input nor the
row that the round began from. So another worker may repeat a part, and the state before a round is good until
the next one is complete. Each record begins and ends with a number unique to that write, which the driver
knows: a record that is torn, older, or of another run is not taken for a row. The files are working storage,
with holes where nothing was written; checkpoints hold the rows themselves."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_core.client_state.base import Carried, check_round, first_row, saved_shapes
from fedjax_core.round import Kept, State
from fedjax_core.types import Array, Own

FILES = 3
PLACE = np.dtype([("file", np.int8), ("record", np.int64), ("writing", np.int64)])
"""Where a row lies: the file, the record in it, and the number that the record begins and ends with."""


@dataclass
class Records:
    """The rows of some clients of a cohort, in files. The part for a worker has no `writings`, so that it can
    be sent."""

    folder: Path
    like: Kept  # what one client keeps, leaves with a shape and a dtype
    clients: np.ndarray  # [k]
    began: np.ndarray  # [k] PLACE: where the rows lay when the round began
    here: np.ndarray  # [k] PLACE: where they lie
    there: np.ndarray  # [k] PLACE: where they are to be written
    writings: Iterator[int] | None = None  # numbers that no other writing has

    def of(self, places: np.ndarray) -> "Records":
        """The rows of the clients at these places in the cohort, for one exchange."""
        assert self.writings is not None
        clients, began, here = self.clients[places], self.began[places], self.here[places]
        self.there[places] = there = _free(clients, began, here, next(self.writings))
        return Records(self.folder, self.like, clients, began, here, there)

    def read(self) -> Kept:
        """The rows, leaves [k, ...]: what a worker begins with."""
        rows: Kept = jax.tree.unflatten(
            jax.tree.structure(self.like), _read(self.folder, self.like, self.here)
        )
        return rows

    def write(self, kept: Kept, touched: Array) -> Kept:
        """Writes the rows [k, ...] of those who reported; there is nothing to send back."""
        reported = np.flatnonzero(np.asarray(touched))
        _write(
            self.folder,
            self.like,
            self.there[reported],
            [np.asarray(x)[reported] for x in jax.tree.leaves(kept)],
        )
        return Kept((), ())

    def take_back(self, places: np.ndarray, kept: Kept, touched: Array) -> None:
        """Takes the rows of the clients at these places who reported: they are where they were to be
        written."""
        reported = places[np.asarray(touched)]
        self.here[reported] = self.there[reported]


class RecordFiles:
    """One row a client of a population, each like `first` until it is written, in `folder`, which the workers
    see too."""

    fresh_rows = 1
    """The number of rows that a new state is made with: one, with which all clients begin."""

    def __init__(self, first: Own, population: int, folder: Path) -> None:
        self.population, self.folder, self.round = population, folder.absolute(), 0
        self._first = jax.tree.map(np.asarray, first)
        self._like: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._first)
        self._writings = count(secrets.randbits(60))
        self._first_writing = next(self._writings)
        self._lies = self._beginning()
        if leaves := jax.tree.leaves(self._first):
            _make(self.folder)
            _write(self.folder, self._like, self._beginning()[:1], [x[None] for x in leaves])

    @property
    def touched(self) -> int:
        """The number of clients that have a row of their own."""
        return int((self._lies["record"] < self.population).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of one client's row."""
        return sum(x.nbytes for x in jax.tree.leaves(self._first))

    def begin(self, state: State) -> tuple["RecordFiles", State]:
        """(a store for a new state, which replaces this one; that state with it)."""
        files = RecordFiles(first_row(state.clients), self.population, self.folder)
        return files, state._replace(clients=files)  # type: ignore[arg-type]

    def where(self, clients: np.ndarray) -> np.ndarray:
        """[K] PLACE: where these clients' rows are; rows that were never written share one place."""
        return self._lies[clients]

    def read(self, clients: np.ndarray) -> Own:
        """The rows of these clients [K], leaves [K, ...]."""
        leaves = _read(self.folder, self._like, self._lies[clients]) if jax.tree.leaves(self._first) else []
        return jax.tree.unflatten(jax.tree.structure(self._first), leaves)

    def write(self, clients: np.ndarray, rows: Own, round: int) -> None:
        """Stores the rows [K, ...] of these clients after `round` rounds."""
        lies = self._lies[clients]
        there = _free(clients, lies, lies, next(self._writings))
        if leaves := jax.tree.leaves(rows):
            _write(self.folder, self._like, there, leaves)
        self._lies[clients], self.round = there, round

    def everyone(self, state: State) -> Kept:
        """The rows of all clients, leaves [N, ...]."""
        return self.read(np.arange(self.population))

    def rows_of(self, state: State, clients: np.ndarray) -> Kept:
        """The rows of these clients [K], leaves [K, ...]."""
        return self.read(clients)

    def lend(self, state: State, clients: np.ndarray, round: int, room: int) -> Carried | Records:
        """Lends the rows of a cohort to workers; where clients keep nothing, empty rows are sent."""
        check_round(self.round, round)
        if not self.nbytes:
            return Carried(self.read(clients))
        began, here, there = (self._lies[clients] for _ in range(3))  # copies
        return Records(self.folder, self._like, clients, began, here, there, self._writings)

    def take_back(
        self, after: State, before: State, clients: np.ndarray, lent: Any, round: int, room: int, donate: bool
    ) -> State:
        """The state after `round` rounds, with the cohort's rows in these files."""
        if isinstance(lent, Carried):
            self.write(clients, lent.rows, round)
        else:
            self._lies[clients], self.round = lent.here, round
        return after._replace(clients=self)  # type: ignore[arg-type]

    def saved(self) -> dict[str, Any]:
        """The rows that were ever written, and whose they are: what a checkpoint must hold."""
        clients = np.flatnonzero(self._lies["record"] < self.population)
        return {"round": np.int64(self.round), "who": clients, "rows": self.read(clients)}

    def shapes(self, touched: int) -> dict[str, Any]:
        """The shapes of `saved` for `touched` clients."""
        return saved_shapes(self._first, touched)

    def restored(self, saved: dict[str, Any]) -> "RecordFiles":
        """This store, with what was `saved` and nothing else."""
        self._lies = self._beginning()
        self.write(np.asarray(saved["who"]), saved["rows"], int(saved["round"]))
        return self

    def _beginning(self) -> np.ndarray:
        """[N] PLACE: all clients share one record, past all others, until they have one of their own."""
        return np.full(self.population, np.array((0, self.population, self._first_writing), PLACE))


def _free(clients: np.ndarray, began: np.ndarray, here: np.ndarray, writing: int) -> np.ndarray:
    """[k] PLACE: where to write each client's row: in neither the file that it `began` the round in nor the
    one that it is in (`here`)."""
    free = np.empty(len(clients), PLACE)
    taken = np.stack([began["file"], here["file"]])
    free["file"] = np.argmin([(taken == f).any(axis=0) for f in range(FILES)], axis=0)
    free["record"], free["writing"] = clients, writing
    return free


def _make(folder: Path) -> None:
    """Creates the files empty, in place of existing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for f in range(FILES):
        _path(folder, f).unlink(missing_ok=True)
        _path(folder, f).touch()


def _read(folder: Path, like: Any, where: np.ndarray) -> list[np.ndarray]:
    """Reads the rows at these places, leaves [k, ...]; raises where one is not what was written."""
    record = _record(like)
    records = np.zeros(len(where), record)
    raw = records.view(np.uint8).reshape(len(records), record.itemsize)
    for k, file in _each(folder, record.itemsize, where, "rb"):
        file.readinto(raw[k])
    wrong = (records["begins"] != where["writing"]) | (records["ends"] != where["writing"])
    if wrong.any():
        raise RuntimeError(
            f"{wrong.sum()} of {len(wrong)} rows in {folder} are not what was written there. The driver and all workers must see "
            "one folder under that path, and each run needs its own: choose another client_state= and go on from the newest checkpoint."
        )
    return [records[name] for name in record.names[1:-1]]  # type: ignore[index]


def _write(folder: Path, like: Any, where: np.ndarray, leaves: Sequence[np.ndarray]) -> None:
    """Writes rows to these places, leaves [k, ...]."""
    record = _record(like)
    rows = np.zeros(len(where), record)
    rows["begins"] = rows["ends"] = where["writing"]
    for name, x in zip(record.names[1:-1], leaves, strict=True):  # type: ignore[index]
        rows[name] = x
    raw = rows.view(np.uint8).reshape(len(rows), record.itemsize)
    for k, file in _each(folder, record.itemsize, where, "r+b"):
        file.write(raw[k])


def _record(like: Any) -> np.dtype:
    """One record: a row's leaves between two copies of its writing's number."""
    rows = [(str(i), x.dtype, x.shape) for i, x in enumerate(jax.tree.leaves(like))]
    return np.dtype([("begins", np.int64), *rows, ("ends", np.int64)])


def _each(folder: Path, size: int, where: np.ndarray, mode: str) -> Iterator[tuple[int, Any]]:
    """Yields (k, the file positioned at row k's record); a record has `size` bytes."""
    for f in np.unique(where["file"]):
        with open(_path(folder, f), mode) as file:
            for k in np.flatnonzero(where["file"] == f).tolist():
                file.seek(int(where["record"][k]) * size)
                yield k, file


def _path(folder: Path, f: int) -> Path:
    return folder / f"rows_{f}.bin"
