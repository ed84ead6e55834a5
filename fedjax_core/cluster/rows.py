"""What clients keep between rounds, in files that all nodes see: whoever works through a share reads and writes its clients' rows there.

    driver   with a share goes where its rows lie and where they are to be written; with its result comes whose were
    worker   reads the rows, works, writes them

A row has a place in each of three files. An exchange writes it where neither the row lies that it is given nor the one that the round
began from, so a share may be done again by another worker, and the state before a round is good until the next one is whole. Each record
begins and ends with a number of that one writing, which the driver knows: what is torn, older, or of another run is not taken for a row.
The files are working storage, with holes where nothing was written; checkpoints hold the rows themselves.
"""

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core.lanes.program import Collected
from fedjax_core.lanes.tiers import Rows
from fedjax_core.round import Kept

FILES = 3


class Where(NamedTuple):
    """Where rows lie."""

    file: np.ndarray  # [k] int8
    record: np.ndarray  # [k] int64
    writing: np.ndarray  # [k] int64, the number that the record begins and ends with

    def of(self, at: np.ndarray) -> "Where":
        """Some of them."""
        return Where(*(x[at] for x in self))

    def put(self, at: np.ndarray, others: "Where") -> None:
        """Writes others in the places of some."""
        for x, other in zip(self, others, strict=True):
            x[at] = other


class Files:
    """Records in the files of `folder`, each a row with such leaves."""

    def __init__(self, folder: Path, leaves: Sequence[np.ndarray]) -> None:
        self.folder, self._names = folder, [str(i) for i in range(len(leaves))]
        rows = [(name, x.dtype, x.shape) for name, x in zip(self._names, leaves, strict=True)]
        self._record = np.dtype([("begins", np.int64), *rows, ("ends", np.int64)])

    def make(self) -> None:
        """Makes the files, empty, in the place of any that are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for f in range(FILES):
            self._path(f).unlink(missing_ok=True)
            self._path(f).touch()

    def read(self, where: Where) -> list[np.ndarray]:
        """The rows there, leaves [k, ...]; raises where one is not what was written."""
        found = np.zeros(len(where.file), self._record)
        raw = found.view(np.uint8).reshape(len(found), self._record.itemsize)
        for k, file in self._each(where, "rb"):
            file.readinto(raw[k])
        wrong = (found["begins"] != where.writing) | (found["ends"] != where.writing)
        if wrong.any():
            raise RuntimeError(
                f"{wrong.sum()} of {len(wrong)} rows in {self.folder} are not what was written there. The driver and all workers must see "
                "one folder under that path, and each run needs its own: choose another client_state= and go on from the newest checkpoint."
            )
        return [found[name] for name in self._names]

    def write(self, where: Where, leaves: Sequence[np.ndarray]) -> None:
        """Writes rows there, leaves [k, ...]."""
        rows = np.zeros(len(where.file), self._record)
        rows["begins"] = rows["ends"] = where.writing
        for name, x in zip(self._names, leaves, strict=True):
            rows[name] = x
        raw = rows.view(np.uint8).reshape(len(rows), self._record.itemsize)
        for k, file in self._each(where, "r+b"):
            file.write(raw[k])

    def _each(self, where: Where, mode: str) -> Iterator[tuple[int, Any]]:
        """(k, the file at the place of row k) of each row."""
        for f in np.unique(where.file):
            with open(self._path(f), mode) as file:
                for k in np.flatnonzero(where.file == f).tolist():
                    file.seek(int(where.record[k]) * self._record.itemsize)
                    yield k, file

    def _path(self, f: int) -> Path:
        return self.folder / f"rows_{f}.bin"


class Stored(NamedTuple):
    """The rows of a share, for whoever works through it."""

    files: Files
    like: Kept  # what one client keeps, leaves with a shape and a dtype
    here: Where
    there: Where

    def read(self) -> Kept:
        """The rows, leaves [k, ...]."""
        found: Kept = jax.tree.unflatten(jax.tree.structure(self.like), self.files.read(self.here))
        return found

    def write(self, collected: Collected) -> Collected:
        """What was collected of the share [k, ...] without the rows, which are stored now for those who reported."""
        reported = np.flatnonzero(collected.touched)
        self.files.write(self.there.of(reported), [np.asarray(x)[reported] for x in jax.tree.leaves(collected.kept)])
        return collected._replace(kept=Kept((), ()))


class SharedRows(Rows):
    """One row a client of a population, each like `first` until it is written, in `folder`, which the workers see too."""

    def where(self, who: np.ndarray) -> Where:
        """Where these clients' rows lie; those that were never written, all in one place."""
        self._settle()
        return self._lies.of(who)

    def share(self, who: np.ndarray, began: Where, here: Where) -> Stored:
        """What a worker is told of these clients' rows, in a round that began with them there, in an exchange that does here."""
        free = [min(set(range(FILES)) - {a, b}) for a, b in zip(began.file, here.file, strict=True)]
        there = Where(np.array(free, np.int8), who.astype(np.int64), np.full(len(who), self._next()))
        return Stored(self._files, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._first), here, there)

    def moved(self, who: np.ndarray, now: Where, round: int) -> None:
        """These clients' rows lie there now, after `round` rounds."""
        self._lies.put(who, now)
        self._written[who] |= now.record < self.population
        self.round = round

    def restored(self, saved: dict[str, Any]) -> "SharedRows":
        """This store, with what was `saved` and nothing else."""
        self._lies = self._beginning()
        super().restored(saved)
        return self

    def _open(self, leaves: list[np.ndarray]) -> None:
        assert self.folder is not None
        if not leaves:
            return
        self._files, self._writings = Files(self.folder.absolute(), leaves), secrets.randbits(60)
        self._files.make()
        self._first_writing = self._next()
        self._lies = self._beginning()
        self._files.write(self._lies.of(np.array([0])), [x[None] for x in leaves])

    def _beginning(self) -> Where:
        """One record, past all others, is everybody's until they have one of their own."""
        N = self.population
        return Where(np.zeros(N, np.int8), np.full(N, N), np.full(N, self._first_writing))

    def _load(self, who: np.ndarray) -> list[np.ndarray]:
        return self._files.read(self._lies.of(who)) if jax.tree.leaves(self._first) else []

    def _store(self, who: np.ndarray, leaves: list[np.ndarray]) -> None:
        if not leaves:
            return
        lies = self._lies.of(who)
        there = self.share(who, lies, lies).there
        self._files.write(there, leaves)
        self._lies.put(who, there)

    def _next(self) -> int:
        """A number that no other writing has."""
        self._writings += 1
        return self._writings
