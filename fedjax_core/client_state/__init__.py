"""Client state: what clients keep between rounds, one row a client, and the stores that hold the rows.

    "device"        Resident       in the `State` itself, on the device
    "host"          HostRows       beside the `State`, in memory
    a folder        HostRows       beside the `State`, in memory-mapped files: the simulator of one process
    a folder        RecordFiles    beside the `State`, in files that workers read and write: a cluster whose nodes see the folder

Lanes bring the rows of a dispatch to the device and store them afterwards (`bring`, `keep`). A cluster lends
the rows of a cohort to workers and takes them back (`lend`, `take_back`): it sends them (`Carried`) or says
where they are (`Records`).

A store beside the `State` is mutable, so such a state only goes forward: a round from an older state is
refused. A checkpoint holds the rows of all clients who ever took part; the files of a folder are working
storage.

No worker owns rows in its memory, for three reasons: shares must depend on the cohort alone, or the last bits
would depend on history; of a random cohort only one row in W would be local anyway; and a dead worker would
take its rows with it."""

from fedjax_core.client_state.base import Carried
from fedjax_core.client_state.host_rows import HostRows
from fedjax_core.client_state.record_files import RecordFiles, Records
from fedjax_core.client_state.resident import Resident

__all__ = ["Carried", "ClientState", "HostRows", "Lent", "RecordFiles", "Records", "Resident"]

ClientState = Resident | HostRows | RecordFiles
"""A store of all clients' rows."""

Lent = Carried | Records
"""The rows of a cohort's clients while workers have them, exchange by exchange."""
