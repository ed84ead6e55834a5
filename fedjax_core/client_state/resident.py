"""Client state on the device: every client's row is in the `State` itself, so that a run can go back to a
state."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import tree
from fedjax_core.client_state.base import Carried
from fedjax_core.data.cohort import Cohort
from fedjax_core.round import Kept, State


class Resident:
    """The rows of `population` clients in the `State`."""

    def __init__(self, population: int) -> None:
        self.population = self.fresh_rows = population
        """The number of rows that a new state is made with: all."""
        self._take = jax.jit(tree.take)
        self._put = {
            donate: jax.jit(tree.put, donate_argnums=(0,) if donate else ()) for donate in (False, True)
        }

    def begin(self, state: State) -> tuple["Resident", State]:
        """(the store of a new state, that state with it)."""
        return self, state

    def everyone(self, state: State) -> Kept:
        """The rows of all clients, leaves [N, ...]."""
        return state.clients

    def rows_of(self, state: State, clients: np.ndarray) -> Kept:
        """The rows of these clients [K], leaves [K, ...]."""
        rows: Kept = tree.take(state.clients, jnp.asarray(clients, jnp.int32))
        return rows

    def rows_on_device(self, clients: int) -> int:
        """The number of rows on the device for a dispatch with this many clients."""
        return self.population

    def union(self, cohorts: Sequence[Cohort]) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """(the clients whose rows a dispatch of these rounds needs, the places of each cohort among them);
        None: each row is at its client's position."""
        return np.zeros(0, np.int64), None

    def bring(self, state: State, clients: np.ndarray, round: int, room: int) -> State:
        """The state with the rows of these clients on the device, where they are already."""
        return state

    def keep(self, state: State, clients: np.ndarray, round: int) -> State:
        """The state after a dispatch, with these clients' rows in their places, where they are already."""
        return state

    def lend(self, state: State, clients: np.ndarray, round: int, room: int) -> Carried:
        """Lends the rows of a cohort to workers; `room` is the size of the largest cohort."""
        kept = state.clients
        if jax.tree.leaves(kept):
            kept = jax.device_get(self._take(kept, self._places(clients, room)))
        return Carried(jax.tree.map(np.array, kept))  # to be written to

    def take_back(
        self, after: State, before: State, clients: np.ndarray, lent: Any, round: int, room: int, donate: bool
    ) -> State:
        """The state after `round` rounds, with the cohort's rows put into those of the state before."""
        if not jax.tree.leaves(lent.rows):
            return after._replace(clients=lent.rows)
        return after._replace(
            clients=self._put[donate](before.clients, self._places(clients, room), lent.rows)
        )

    def _places(self, clients: np.ndarray, room: int) -> np.ndarray:
        """[room] int32: the cohort's positions, padded with one past the end."""
        return np.pad(clients, (0, room - len(clients)), constant_values=self.population).astype(np.int32)
