"""What clients keep between rounds, at the driver: in the `State`, or in a store of rows beside it (`fedjax_core.lanes.tiers`).

    driver: every row, always those of the last whole round  ->  a share's rows go with the share and come back with its result

The rows of a share are an argument of it, so a worker that dies takes nothing with it, and a checkpoint is of one place at one round.
They do not stay with workers, for three reasons. Who is in a share must depend on the cohort alone, or last bits would depend on who
had worked before. Cohorts drawn at random find one row in W where it is wanted among W workers, so the others move anyway. And a row
that is on one worker only is lost with it, unless it is sent to somebody else each round, which is the way back to the driver.
What that costs is told by `meter.report()`, as "client state MB/round": two times the cohort's rows an exchange.
"""

from pathlib import Path

import jax
import numpy as np

from fedjax_core import tree
from fedjax_core.lanes.program import Collected
from fedjax_core.lanes.tiers import Rows
from fedjax_core.round import Kept, State
from fedjax_core.types import Array


class Keeper:
    """The rows of `clients` clients, where `client_state` says."""

    def __init__(self, clients: int, client_state: str | Path) -> None:
        self._clients = clients
        self.rows = Rows.of(client_state, clients)
        """The store, None where the rows are in the state."""
        self.population = clients if self.rows is None else 1
        """Of how many clients a new state is to have rows."""
        self._take = jax.jit(tree.take)
        self._put = {donate: jax.jit(tree.put, donate_argnums=(0,) if donate else ()) for donate in (False, True)}

    def begin(self, state: State) -> State:
        """A new state, with its store where there is one."""
        if self.rows is None:
            return state
        self.rows = self.rows.begin(state.clients)
        return state._replace(clients=self.rows)  # type: ignore[arg-type]

    def read(self, state: State, who: np.ndarray, round: int, room: int) -> Kept:
        """The cohort's rows, on the host and to be written to, [at least K, ...]; `room` is for the largest cohort."""
        if self.rows is not None:
            self.rows.check_round(round)
            found = self.rows.read(who)
        elif not jax.tree.leaves(state.clients):
            return state.clients
        else:
            found = jax.device_get(self._take(state.clients, self._places(who, room)))
        return jax.tree.map(np.array, found)

    def write(self, half: State, state: State, who: np.ndarray, kept: Kept, round: int, room: int, donate: bool) -> State:
        """The state after the round, with the cohort's rows in their places."""
        if self.rows is not None:
            self.rows.write(who, kept, round + 1)
            return half._replace(clients=self.rows)  # type: ignore[arg-type]
        if not jax.tree.leaves(kept):
            return half._replace(clients=kept)
        return half._replace(clients=self._put[donate](state.clients, self._places(who, room), kept))

    def _places(self, who: np.ndarray, room: int) -> np.ndarray:
        """The cohort's positions, padded to the room there is with one past the end: [room] int32."""
        return np.pad(who, (0, room - len(who)), constant_values=self._clients).astype(np.int32)


def take_back(kept: Kept, places: np.ndarray, collected: Collected) -> None:
    """Writes a share's rows, of those clients who reported, to their places in the cohort's."""
    reported = np.asarray(collected.touched)

    def write(into: np.ndarray, rows: Array) -> None:
        into[places[reported]] = np.asarray(rows)[reported]

    jax.tree.map(write, kept, collected.kept)
