"""Pins the first task that a site is asked for, under tasks.mode = "first-use", in a file of its folder, for
good.

>>> import tempfile
>>> path = f"{tempfile.mkdtemp()}/{PINNED}"
>>> pinned(path), pin(path, "3f9a"), pinned(path)
(None, None, '3f9a')
"""

import os
from functools import lru_cache
from pathlib import Path

PINNED = "pinned"
"""The file in a site's folder that names the pinned task."""


def pinned(path: str | os.PathLike[str]) -> str | None:
    """The task that `pin` wrote to this file; None if there is none yet."""
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return None
    return _pinned(os.fspath(path), now.st_ino, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=16)
def _pinned(path: str, *file: int) -> str:
    """The file's text, cached: it is needed at every request and never written again."""
    return Path(path).read_text().strip()


def pin(path: str | os.PathLike[str], task: str) -> None:
    """Pins a task for good; raises FileExistsError if one is pinned already, or another process is faster."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FileExistsError(
            f"{path} pins a task already; remove the file to let the next one in, or add its hash to tasks.allowed"
        ) from None
    with open(descriptor, "w") as file:
        file.write(task + "\n")
        file.flush()
        os.fsync(file.fileno())
