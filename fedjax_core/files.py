"""A file is written whole or not at all: whatever dies meanwhile, there is the old one or the new one, never half of either.

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> path = Path(folder.name) / "state.json"
>>> write_whole(path, "{}")
>>> path.read_text(), len(list(path.parent.iterdir()))
('{}', 1)
>>> folder.cleanup()
"""

import os
from pathlib import Path


def write_whole(path: Path, data: str | bytes) -> None:
    """Puts the data where the file is or is to be; they are on the disk when this returns. Text is written as UTF-8."""
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def sync_folder(folder: Path) -> None:
    """Has on the disk which files the folder has: what was made, renamed or removed in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
