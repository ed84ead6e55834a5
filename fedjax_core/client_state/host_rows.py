"""Client state off the device, for populations too large for it: rows in host memory, or in memory-mapped
files.

A row takes room when its client first takes part; a dispatch brings the rows of its cohorts to the device and
takes them back.

>>> rows = HostRows({"c": np.zeros(2, np.float32)}, population=1000)
>>> rows.write(np.array([7]), {"c": np.ones((1, 2), np.float32)}, round=1)
>>> rows.read(np.array([6, 7]))["c"].tolist(), rows.touched
([[0.0, 0.0], [1.0, 1.0]], 1)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_core.client_state.base import Carried, check_round, first_row, saved_shapes
from fedjax_core.data.cohort import Cohort
from fedjax_core.round import Kept, State
from fedjax_core.types import Own


class HostRows:
    """One row a client of a population, each like `first` until it is written; in `folder` where given, else
    in memory."""

    fresh_rows = 1
    """The number of rows that a new state is made with: one, with which all clients begin."""

    def __init__(self, first: Own, population: int, folder: Path | None = None) -> None:
        self.population, self.folder, self.round = population, folder, 0
        self._first = jax.tree.map(np.asarray, first)
        self._structure: Any
        leaves, self._structure = jax.tree.flatten(self._first)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        # Neither takes room before it is written: memory from calloc, and files with holes.
        self._leaves = [
            np.zeros((population, *x.shape), x.dtype)
            if folder is None or not x.size
            else np.memmap(folder / f"rows_{i}.bin", x.dtype, "w+", shape=(population, *x.shape))
            for i, x in enumerate(leaves)
        ]
        self._written = np.zeros(population, bool)
        self._pending: tuple[np.ndarray, Own] | None = None

    @property
    def touched(self) -> int:
        """The number of clients that have a row of their own."""
        self._settle()
        return int(self._written.sum())

    def begin(self, state: State) -> tuple["HostRows", State]:
        """(a store for a new state, which replaces this one; that state with it)."""
        rows = HostRows(first_row(state.clients), self.population, self.folder)
        return rows, state._replace(clients=rows)  # type: ignore[arg-type]

    def read(self, clients: np.ndarray) -> Own:
        """The rows of these clients [K], leaves [K, ...]: copies, which may be written to."""
        self._settle()
        known = self._written[clients]

        def rows(first: np.ndarray, stored: np.ndarray) -> np.ndarray:
            return np.where(known.reshape((-1,) + (1,) * first.ndim), stored[clients], first)

        return self._structure.unflatten(
            [rows(x, s) for x, s in zip(jax.tree.leaves(self._first), self._leaves, strict=True)]
        )

    def write(self, clients: np.ndarray, rows: Own, round: int) -> None:
        """Stores the rows [at least K, ...] of these clients after `round` rounds; fetches them from the
        device when next needed."""
        self._settle()
        self._pending, self.round = (clients, rows), round

    def everyone(self, state: State) -> Kept:
        """The rows of all clients, leaves [N, ...]."""
        return self.read(np.arange(self.population))

    def rows_of(self, state: State, clients: np.ndarray) -> Kept:
        """The rows of these clients [K], leaves [K, ...]."""
        return self.read(clients)

    def rows_on_device(self, clients: int) -> int:
        """The number of rows on the device for a dispatch with this many clients."""
        return min(self.population, clients)

    def union(self, cohorts: Sequence[Cohort]) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """(the clients whose rows a dispatch of these rounds needs, the places of each cohort among them)."""
        clients = np.unique(np.concatenate([np.asarray(c.clients, np.int64) for c in cohorts]))
        return clients, [np.searchsorted(clients, np.asarray(c.clients, np.int64)) for c in cohorts]

    def bring(self, state: State, clients: np.ndarray, round: int, room: int) -> State:
        """The state with these clients' rows, padded to `room` rows."""
        check_round(self.round, round)
        padded = (
            np.pad(clients, (0, max(0, room - len(clients))), mode="edge")
            if len(clients)
            else np.zeros(room, np.int64)
        )
        return state._replace(clients=self.read(padded))

    def keep(self, state: State, clients: np.ndarray, round: int) -> State:
        """The state after a dispatch, with these clients' rows after `round` rounds moved to this store."""
        self.write(clients, state.clients, round)
        return state._replace(clients=self)  # type: ignore[arg-type]

    def lend(self, state: State, clients: np.ndarray, round: int, room: int) -> Carried:
        """Lends the rows of a cohort to workers."""
        check_round(self.round, round)
        return Carried(self.read(clients))

    def take_back(
        self, after: State, before: State, clients: np.ndarray, lent: Any, round: int, room: int, donate: bool
    ) -> State:
        """The state after `round` rounds, with the cohort's rows in this store."""
        self.write(clients, lent.rows, round)
        return after._replace(clients=self)  # type: ignore[arg-type]

    def saved(self) -> dict[str, Any]:
        """The rows that were ever written, and whose they are: what a checkpoint must hold."""
        self._settle()
        clients = np.flatnonzero(self._written)
        return {"round": np.int64(self.round), "who": clients, "rows": self.read(clients)}

    def shapes(self, touched: int) -> dict[str, Any]:
        """The shapes of `saved` for `touched` clients."""
        return saved_shapes(self._first, touched)

    def restored(self, saved: dict[str, Any]) -> "HostRows":
        """This store, with what was `saved` and nothing else."""
        self._pending, self._written[:] = None, False
        self.write(np.asarray(saved["who"]), saved["rows"], int(saved["round"]))
        self._settle()
        return self

    def _settle(self) -> None:
        """Stores the rows that still lie on the device."""
        if self._pending is None:
            return
        (clients, rows), self._pending = self._pending, None
        for stored, x in zip(self._leaves, jax.tree.leaves(jax.device_get(rows)), strict=True):
            stored[clients] = x[: len(clients)]
        self._written[clients] = True
