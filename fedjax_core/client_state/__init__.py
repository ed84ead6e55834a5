"""What clients keep between rounds, one row a client, and where the rows lie.

    "device"        Resident       in the `State` itself, on the device
    "host"          HostRows       beside the `State`, in memory
    a folder        HostRows       beside the `State`, in memory-mapped files: the simulator of one process
    a folder        RecordFiles    beside the `State`, in files that workers read and write: a cluster whose nodes see the folder

The lanes bring the rows of a dispatch to the device and keep them again (`bring`, `keep`). A cluster lends
the rows of a cohort to workers and takes them back (`lend`, `take_back`): it sends them (`Carried`) or says
where they lie (`Records`).

A store beside the `State` is one mutable thing, so such a state goes forward only: a round begun from a state
that the store has left behind is refused. A checkpoint holds the rows of those who ever took part; the files
of a folder are working storage.

No worker owns rows in its memory, for three reasons: shares must depend on the cohort alone, or the last bits
would depend on history; of a random cohort only one row in W would be local anyway; and a dead worker would
take its rows with it."""

from fedjax_core.client_state.base import Carried
from fedjax_core.client_state.host_rows import HostRows
from fedjax_core.client_state.record_files import RecordFiles, Records
from fedjax_core.client_state.resident import Resident

__all__ = ["Carried", "ClientState", "HostRows", "Lent", "RecordFiles", "Records", "Resident"]

ClientState = Resident | HostRows | RecordFiles
"""Where the rows of all clients lie."""

Lent = Carried | Records
"""The rows of a cohort's clients while workers have them, exchange by exchange."""
