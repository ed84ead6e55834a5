"""The processes of a consortium in a box: a Ray node for the coordinator and one for each site, and the
coordinator's own.

Each has a session, an environment and a log of its own, and its files are for their owner alone (umask 077).
Each ends when its standard input closes, so all of them end with the process that started them, even if that
was killed. Ray's sockets and sessions are in a folder with a short name under the system's temporary one,
removed at the end.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fedjax_core.consortium.setup import Layout
from fedjax_core.files import make_folder, opener, write_whole
from fedjax_core.machine import short_folder
from fedjax_core.sites.own_file import VARIABLE
from fedjax_core.sites.wire.envelope import COORDINATOR

_NODE, _LEAD = "fedjax_core.sites.transport.ray_node", "fedjax_core.consortium.lead"
_STOP_SECONDS, _PREFIX = 15.0, "fc-"
HEAD, LEAD = f"{COORDINATOR}-ray", COORDINATOR


class Failed(RuntimeError):
    """A process of the consortium could not go on; the text says which, with its last output."""


@dataclass
class Process:
    """One process of a consortium, with its log."""

    name: str
    log: Path
    process: subprocess.Popen[str]
    started: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> str:
        """How it ended: the signal that ended it, or its exit code. Waits for the end."""
        code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"code {code}"

    def let_go(self) -> None:
        """Closes its standard input, which ends it."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def close(self) -> None:
        """Closes the pipes of a process that has ended."""
        self.let_go()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def last_words(self) -> str:
        """The end of its log, without the indented lines of code in a traceback."""
        lines = [
            line
            for line in self.log.read_text(errors="replace").splitlines()
            if line.strip() and not line.startswith((" ", "Traceback"))
        ]
        return "\n".join(lines[-5:])[-1500:]


class Processes:
    """Starts and stops the processes of a consortium. Use it in a `with`."""

    def __init__(self, folder: Layout, lead: str = _LEAD) -> None:
        self.folder, self.parts, self.address = folder, dict[str, Process](), ""
        self._lead, self._starts = lead, 0

    def __enter__(self) -> "Processes":
        logs = self.folder.root / "logs"
        make_folder(logs)
        self._sockets, note = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=short_folder())), logs / "sockets"
        # Sockets left by a run that was killed.
        if note.exists() and (left := Path(note.read_text())).name.startswith(_PREFIX):
            shutil.rmtree(left, ignore_errors=True)
        write_whole(note, str(self._sockets))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def start_nodes(self, sites: Sequence[str]) -> None:
        """The coordinator's node, then those of the sites all at once; returns when all are up."""
        self.address = self._hear(self._node(HEAD, COORDINATOR, {"head": True}))
        for part in [self.site_node(name) for name in sites]:
            self._hear(part)

    def site_node(self, name: str) -> Process:
        """Starts the node of a site, which is the only one that has the site's resource."""
        return self._node(name, name, {"address": self.address, "resources": {name: 1}})

    def lead(self) -> Process:
        """Starts the coordinator."""
        return self._start(LEAD, COORDINATOR, [self._lead, str(self.folder.root), self.address])

    def stop(self) -> None:
        """Ends all processes: the coordinator first, the nodes with what runs on them."""
        for part in reversed(self.parts.values()):
            part.let_go()
        until = time.monotonic() + _STOP_SECONDS
        for part in self.parts.values():
            try:
                part.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(part.process.pid, signal.SIGKILL)
                part.process.wait()
            part.close()
        self.parts.clear()

    def _node(self, name: str, whose: str, options: Mapping[str, Any]) -> Process:
        self._starts += 1
        settings = {"name": whose, "temp_dir": str(self._sockets / str(self._starts)), **options}
        return self._start(name, whose, [_NODE, json.dumps(settings)])

    def _start(self, name: str, whose: str, command: Sequence[str]) -> Process:
        log = self.folder.root / "logs" / f"{name}.log"
        # where a study of one's own is
        path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != VARIABLE
        }
        environment |= {
            "PYTHONPATH": path,
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with open(log, "a", opener=opener) as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], env=environment | self.folder.environment(whose), stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if command[0] == _NODE else output, stderr=output, text=True, start_new_session=True, umask=0o077,
            )  # fmt: skip
        if name in self.parts:
            self.parts[name].close()
        self.parts[name] = Process(name, log, process)
        return self.parts[name]

    def _hear(self, part: Process) -> str:
        """Waits for the line that a node prints when it is up."""
        assert part.process.stdout is not None
        line = part.process.stdout.readline().strip()
        if not line:
            part.let_go()
            raise Failed(
                f"the Ray node of {part.name} did not start ({part.ended}):\n{part.last_words()}\n({part.log} says more)"
            )
        return line
