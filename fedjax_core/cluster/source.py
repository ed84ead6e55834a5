"""The clients' data for a worker: sent once to each node, or opened from a folder that the node sees.

>>> clients = Clients.from_list([{"x": np.arange(3.0)}])
>>> type(source_of(clients)).__name__
'Sent'
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.types import Columns


class Sent(NamedTuple):
    """The data itself: in Ray's store once a node, where workers read it without a copy."""

    columns: Columns
    offsets: np.ndarray
    ids: np.ndarray

    def open(self) -> Clients:
        """The clients."""
        return Clients(self.columns, self.offsets, self.ids)


class Folder(NamedTuple):
    """A folder that `Clients.save` wrote: on a file system that all nodes share, or a copy under the same
    name on each."""

    path: str
    fingerprint: str

    def open(self) -> Clients:
        """The clients, memory-mapped; raises where the folder holds others."""
        clients = Clients.open(self.path)
        if clients.fingerprint() != self.fingerprint:
            raise ValueError(
                f"{self.path} on this worker's node holds other data than where the simulation was made: its fingerprint is "
                f"{clients.fingerprint()}, expected {self.fingerprint}. Copy the folder to every node, or put it on a shared file system."
            )
        return clients


def source_of(clients: Clients) -> Sent | Folder:
    """The source of these clients for workers: a folder, if all of them were opened from one that is still
    there; else the data itself."""
    folders = {
        Path(name).parent for name in map(_file_of, jax.tree.leaves(clients.columns)) if name is not None
    }
    if len(folders) == 1 and ((folder := folders.pop()) / "clients.json").is_file():
        fingerprint = clients.fingerprint()
        if Clients.open(folder).fingerprint() == fingerprint:
            return Folder(str(folder.resolve()), fingerprint)
    return Sent(clients.columns, clients.offsets, clients.ids)


def _file_of(x: Any) -> str | None:
    """The memory-mapped file in which an array lies."""
    while isinstance(x, np.ndarray):
        if isinstance(x, np.memmap) and x.filename is not None:
            return str(x.filename)
        x = x.base
    return None
