"""What clients keep between rounds, for populations too large for the device: in host memory, or in files.

    device          every client's row in the `State`, on the device
    host, folder    a row is made when its client first takes part; a dispatch brings the rows of its cohorts and takes them back

The rows are one mutable store beside the `State`, which therefore goes forward only: a round begun from a state that the store has
left behind is refused. A checkpoint holds the rows of those who ever took part; the files of a folder are working storage.

>>> rows = Rows({"c": np.zeros(2, np.float32)}, population=1000)
>>> rows.write(np.array([7]), {"c": np.ones((1, 2), np.float32)}, round=1)
>>> rows.read(np.array([6, 7]))["c"].tolist(), rows.touched
([[0.0, 0.0], [1.0, 1.0]], 1)
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_core.types import Own


class Rows:
    """One row a client of a population, each like `first` until it is written; in `folder` where given, else in memory."""

    def __init__(self, first: Own, population: int, folder: Path | None = None) -> None:
        self.population, self.folder, self.round = population, folder, 0
        self._first = jax.tree.map(np.asarray, first)
        self._structure: Any
        leaves, self._structure = jax.tree.flatten(self._first)
        self._open(leaves)
        self._written = np.zeros(population, bool)
        self._pending: tuple[np.ndarray, Own] | None = None

    @classmethod
    def of(cls, client_state: str | Path, population: int) -> "Rows | None":
        """The store for a setting "host" or a folder, to be filled by `begin`; None for "device"."""
        return None if client_state == "device" else cls((), population, None if client_state == "host" else Path(client_state))

    def begin(self, clients: Any) -> "Rows":
        """A store in the same place for rows that all begin as the first of `clients` [1, ...]."""
        return type(self)(jax.tree.map(lambda x: np.asarray(x[0]), clients), self.population, self.folder)

    def check_round(self, round: int) -> None:
        """Raises where the rows are not those of a state of this round."""
        if self.round != round:
            raise ValueError(
                f"this state is of round {round}, but what clients keep is of round {self.round}: with client_state= on the host "
                "a state goes forward only. Begin from init(), or keep client state on the device to go back."
            )

    @property
    def touched(self) -> int:
        """How many clients have a row of their own."""
        self._settle()
        return int(self._written.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of one client's row."""
        return sum(x.nbytes for x in jax.tree.leaves(self._first))

    def read(self, who: np.ndarray) -> Own:
        """The rows of these clients [K], leaves [K, ...]."""
        self._settle()
        known = self._written[who]

        def rows(first: np.ndarray, stored: np.ndarray) -> np.ndarray:
            return np.where(known.reshape((-1,) + (1,) * first.ndim), stored, first)

        return self._structure.unflatten([rows(x, s) for x, s in zip(jax.tree.leaves(self._first), self._load(who), strict=True)])

    def write(self, who: np.ndarray, rows: Own, round: int) -> None:
        """The rows of these clients are now these, [at least K, ...], after `round` rounds; fetched from the device when next needed."""
        self._settle()
        self._pending, self.round = (who, rows), round

    def saved(self) -> dict[str, Any]:
        """What a checkpoint must hold: the rows that were ever written, and whose they are."""
        self._settle()
        who = np.flatnonzero(self._written)
        return {"round": np.int64(self.round), "who": who, "rows": self.read(who)}

    def shapes(self, touched: int) -> dict[str, Any]:
        """The shapes of `saved` for so many clients."""
        rows = jax.tree.map(lambda x: np.broadcast_to(x, (touched, *x.shape)), self._first)
        return {"round": np.int64(0), "who": np.zeros(touched, np.int64), "rows": rows}

    def restored(self, saved: dict[str, Any]) -> "Rows":
        """This store, with what was `saved` and nothing else."""
        self._pending, self._written[:] = None, False
        self.write(np.asarray(saved["who"]), saved["rows"], int(saved["round"]))
        self._settle()
        return self

    def _settle(self) -> None:
        if self._pending is None:
            return
        (who, rows), self._pending = self._pending, None
        self._store(who, [x[: len(who)] for x in jax.tree.leaves(jax.device_get(rows))])
        self._written[who] = True

    def _open(self, leaves: list[np.ndarray]) -> None:
        """Room for rows of such leaves."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        # Neither takes room before it is written: memory from calloc, and files with holes.
        self._leaves = [
            np.zeros((self.population, *x.shape), x.dtype)
            if self.folder is None or not x.size
            else np.memmap(self.folder / f"rows_{i}.bin", x.dtype, "w+", shape=(self.population, *x.shape))
            for i, x in enumerate(leaves)
        ]

    def _load(self, who: np.ndarray) -> list[np.ndarray]:
        """What is stored for these clients, leaves [K, ...]; anything for those who have no row yet."""
        return [stored[who] for stored in self._leaves]

    def _store(self, who: np.ndarray, leaves: list[np.ndarray]) -> None:
        """Stores these clients' rows, leaves [K, ...]."""
        for stored, x in zip(self._leaves, leaves, strict=True):
            stored[who] = x
