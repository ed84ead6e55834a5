"""Shared parts of the client-state stores: rows that travel with a part of a cohort, and checks of a store
beside the `State`."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fedjax_core.round import Kept
from fedjax_core.types import Array, Own


@dataclass
class Carried:
    """Rows that are sent to a worker and come back with its result."""

    rows: Kept  # [at least k, ...], on the host; written to as parts of the cohort come back

    def of(self, places: np.ndarray) -> "Carried":
        """The rows of the clients at these places in the cohort."""
        return Carried(jax.tree.map(lambda x: x[places], self.rows))

    def read(self) -> Kept:
        """The rows, leaves [k, ...]: what a worker begins with."""
        return self.rows

    def write(self, kept: Kept, touched: Array) -> Kept:
        """The rows that a worker sends back: all that it kept."""
        return kept

    def take_back(self, places: np.ndarray, kept: Kept, touched: Array) -> None:
        """Takes the rows of the clients at these places who reported."""
        reported = np.asarray(touched)

        def put(into: np.ndarray, rows: Array) -> None:
            into[places[reported]] = np.asarray(rows)[reported]

        jax.tree.map(put, self.rows, kept)


def check_round(stored: int, round: int) -> None:
    """Raises unless the stored rows belong to a state of this round."""
    if stored != round:
        raise ValueError(
            f"this state is of round {round}, but what clients keep is of round {stored}: with client_state= on the host "
            "a state goes forward only. Begin from init(), or keep client state on the device to go back."
        )


def saved_shapes(first: Own, touched: int) -> dict[str, Any]:
    """The shapes of what a store saves for `touched` clients, whose rows are each like `first`."""
    rows = jax.tree.map(lambda x: np.broadcast_to(x, (touched, *x.shape)), first)
    return {"round": np.int64(0), "who": np.zeros(touched, np.int64), "rows": rows}


def first_row(clients: Any) -> Own:
    """The one row [1, ...] of a new state, on the host: all clients begin with it."""
    return jax.tree.map(lambda x: np.asarray(x[0]), clients)
