"""What clients keep between rounds: rows at the driver, which go with a share and come back with its result, or files of the workers'.

    client_state="device"    at the driver, in the `State`                     }  rows are an argument of a share, and part of its result
    client_state="host"      at the driver, in a store of rows beside it       }
    client_state=<folder>    in files that all nodes see; workers read and write them (`fedjax_core.cluster.rows`)

A worker that dies takes no row with it, and a checkpoint is of one place at one round. Rows are of no single worker, in its memory: who is
in a share must depend on the cohort alone, or last bits would depend on who had worked before; of a cohort drawn at random one row in W
would be where it is wanted among W workers; and a row that only one worker has is lost with it. What rows cost on their way to the
driver and back is told by `meter.report()`, as "client state MB/round": two times the cohort's rows an exchange, and nothing with a folder.
"""

from pathlib import Path

import jax
import numpy as np

from fedjax_core import tree
from fedjax_core.cluster.rows import SharedRows, Stored
from fedjax_core.lanes.program import Collected
from fedjax_core.lanes.tiers import Rows
from fedjax_core.round import Kept, State
from fedjax_core.types import Array


class Sent:
    """Rows [at least K, ...] on the host, sent to workers and back."""

    def __init__(self, kept: Kept) -> None:
        self.kept = jax.tree.map(np.array, kept)  # to be written to

    def of(self, places: np.ndarray) -> Kept:
        """What a share is told of the clients at these places in the cohort: their rows."""
        rows: Kept = jax.tree.map(lambda x: x[places], self.kept)
        return rows

    def take_back(self, places: np.ndarray, collected: Collected) -> None:
        """Takes the rows of those who reported."""
        reported = np.asarray(collected.touched)

        def write(into: np.ndarray, rows: Array) -> None:
            into[places[reported]] = np.asarray(rows)[reported]

        jax.tree.map(write, self.kept, collected.kept)


class InFiles:
    """Rows in files that workers see, of these clients."""

    def __init__(self, rows: SharedRows, who: np.ndarray) -> None:
        self._rows, self._who = rows, who
        self._began, self.now, self._next = (rows.where(who) for _ in range(3))

    def of(self, places: np.ndarray) -> Stored:
        """What a share is told of the clients at these places: where their rows lie, and where they are to be written."""
        stored = self._rows.share(self._who[places], self._began.of(places), self.now.of(places))
        self._next.put(places, stored.there)
        return stored

    def take_back(self, places: np.ndarray, collected: Collected) -> None:
        """Takes the rows of those who reported, which lie where they were to be written."""
        reported = places[np.asarray(collected.touched)]
        self.now.put(reported, self._next.of(reported))


Held = Sent | InFiles
"""What the clients of a cohort keep, exchange by exchange."""


class Keeper:
    """The rows of `clients` clients, where `client_state` says."""

    def __init__(self, clients: int, client_state: str | Path) -> None:
        self._clients = clients
        in_files = client_state not in ("device", "host")
        self.rows = SharedRows((), clients, Path(client_state)) if in_files else Rows.of(client_state, clients)
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

    def read(self, state: State, who: np.ndarray, round: int, room: int) -> Held:
        """What the cohort keeps; `room` is for the largest cohort."""
        if self.rows is None:
            found = self._take(state.clients, self._places(who, room)) if jax.tree.leaves(state.clients) else state.clients
            return Sent(jax.device_get(found))
        self.rows.check_round(round)
        if isinstance(self.rows, SharedRows) and self.rows.nbytes:
            return InFiles(self.rows, who)
        return Sent(self.rows.read(who))

    def write(self, half: State, state: State, who: np.ndarray, held: Held, round: int, room: int, donate: bool) -> State:
        """The state after the round, with what the cohort keeps now."""
        if isinstance(held, InFiles):
            assert isinstance(self.rows, SharedRows)
            self.rows.moved(who, held.now, round + 1)
            return half._replace(clients=self.rows)  # type: ignore[arg-type]
        if self.rows is not None:
            self.rows.write(who, held.kept, round + 1)
            return half._replace(clients=self.rows)  # type: ignore[arg-type]
        if not jax.tree.leaves(held.kept):
            return half._replace(clients=held.kept)
        return half._replace(clients=self._put[donate](state.clients, self._places(who, room), held.kept))

    def _places(self, who: np.ndarray, room: int) -> np.ndarray:
        """The cohort's positions, padded to the room there is with one past the end: [room] int32."""
        return np.pad(who, (0, room - len(who)), constant_values=self._clients).astype(np.int32)
