"""Locks a run's folder for one process: `claim` creates it, checks that it can be written, and locks it.

The lock ends with the process, however that dies, so that nothing has to be removed by hand.

>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as parent, claim(pathlib.Path(parent) / "runs" / "x") as folder:
...     folder.is_dir()
True
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedjax_core.files import lock, make_folder, opener

LOCK = "lock"


@contextmanager
def claim(run_dir: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """The folder, created with its parents and locked until the end of the `with`; raises where it cannot be
    had.

    New folders are as the umask says, or with `private` for their owner alone.
    """
    folder = Path(run_dir).expanduser().absolute()
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise NotADirectoryError(
                f"run_dir {str(run_dir)!r} cannot be a folder, for {part} is a file. Choose another run_dir."
            )
    try:
        make_folder(folder) if private else folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / LOCK, "a+", opener=opener if private else None)  # noqa: SIM115  closed below, after all that needs the lock
    except OSError as error:
        raise PermissionError(
            f"run_dir {str(run_dir)!r} cannot be written ({error}). Choose a folder that you may write to, or run_dir=None to keep nothing."
        ) from error
    with handle:
        _lock(handle.fileno(), folder, run_dir)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield folder


def _lock(descriptor: int, folder: Path, run_dir: object) -> None:
    try:
        lock(descriptor, folder)
    except BlockingIOError as error:
        owner = (folder / LOCK).read_text() or "another process"
        raise RuntimeError(
            f"run_dir {str(run_dir)!r} is in use by {owner}; two runs in one folder would overwrite each other. "
            "Wait for it, stop it, or choose another run_dir."
        ) from error
