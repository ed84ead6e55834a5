"""Files of one owner: written whole or not at all, and for nobody else of the machine to read.

Whatever dies while a file is written, there is the old one or the new one, never half of either. What is written here may hold records of
patients, or what was computed from them. So files have mode 0600 and folders 0700 from the moment that they are made, whatever the umask,
and the umask of the process stays as it is.

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> path = make_folder(Path(folder.name) / "state") / "state.json"
>>> write_whole(path, "{}")
>>> path.read_text(), len(list(path.parent.iterdir()))
('{}', 1)
>>> oct(path.stat().st_mode & 0o777), oct(path.parent.stat().st_mode & 0o777)
('0o600', '0o700')
>>> folder.cleanup()
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

FILE, FOLDER = 0o600, 0o700


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made where it is not there, with those above it: each that is made is for its owner alone."""
    path = Path(path)
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(FOLDER, exist_ok=True)
    return path


def opener(path: str, flags: int) -> int:
    """For `open(path, ..., opener=opener)`: a file that is made by that is for its owner alone."""
    return os.open(path, flags, FILE)


def write_whole(path: Path, data: str | bytes, *, private: bool = True) -> None:
    """Puts the data where the file is or is to be; they are on the disk when this returns. Text is written as UTF-8.

    The file is for its owner alone; without `private` it is as the umask says.
    """
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)  # of a process that died, whatever its mode
    with open(fresh, "xb", opener=opener if private else None) as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def close_to_others(path: Path) -> None:
    """Takes from everybody but the owner what they may do with a file or folder, and with all that is in it."""
    for one in (path, *path.rglob("*")):
        if not one.is_symlink():
            one.chmod(stat.S_IMODE(one.stat().st_mode) & FOLDER)


def open_to_others(path: Path) -> Iterator[Path]:
    """Of a folder and all that is in it, or of a file: what others may read or write. What is in a closed folder they cannot get at.

    The group of a file counts where the file is this user's own: to others' files it may be by the group that this user is let in.
    """
    about = path.stat()
    others = 0o077 if about.st_uid == os.geteuid() else 0o007
    mode = stat.S_IMODE(about.st_mode) & others
    if mode:
        yield path
    if path.is_dir() and mode & 0o011:
        for one in sorted(path.iterdir()):
            if not one.is_symlink():
                yield from open_to_others(one)


def sync_folder(folder: Path) -> None:
    """Has on the disk which files the folder has: what was made, renamed or removed in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
