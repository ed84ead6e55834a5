"""Files of one owner: written whole or not at all, and for nobody else of the machine to read.

After a crash while a file is written, there is the old one or the new one, never half of either. What is
written here may hold records of patients, or what was computed from them. So files have mode 0600 and folders
0700 from the moment that they are made, whatever the umask, and the umask of the process stays as it is.

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> path = make_folder(Path(folder.name) / "state") / "state.json"
>>> write_whole(path, "{}")
>>> path.read_text(), len(list(path.parent.iterdir()))
('{}', 1)
>>> oct(path.stat().st_mode & 0o777), oct(path.parent.stat().st_mode & 0o777)
('0o600', '0o700')

A key or token that others could have read is as good as published, so it is refused when read, and not only
made with care.

>>> token = write_private(Path(folder.name) / "token", b"secret")
>>> read_private(token)
b'secret'
>>> token.chmod(0o644)
>>> read_private(token)
Traceback (most recent call last):
PermissionError: ...token has mode 0644 and owner ...: others may have read it...
>>> folder.cleanup()
"""

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("fedjax_core")

FILE, FOLDER = 0o600, 0o700
_LACKING = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY)
"""The errors of a file system that lacks the operation asked for."""


def cache_folder() -> Path:
    """The folder for what can be downloaded, compiled or measured again: $FEDJAX_CORE_CACHE, else
    ~/.cache/fedjax_core."""
    return Path(os.environ.get("FEDJAX_CORE_CACHE") or Path.home() / ".cache" / "fedjax_core").expanduser()


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made where it is not there, with those above it: each that is made is for its owner
    alone."""
    path = Path(path)
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(FOLDER, exist_ok=True)
    return path


def opener(path: str, flags: int) -> int:
    """The opener for `open(path, ..., opener=opener)`: a file that it creates is for its owner alone."""
    return os.open(path, flags, FILE)


def write_whole(path: Path, data: str | bytes, *, private: bool = True) -> None:
    """Writes a file whole or not at all; the data is on the disk when this returns. Text is written as UTF-8.

    The file is for its owner alone; without `private` it is as the umask says.
    """
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)  # left by a process that died, whatever its mode
    with open(fresh, "xb", opener=opener if private else None) as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def close_to_others(path: Path) -> None:
    """Removes the rights of everybody but the owner on a file, or on a folder and all that is in it."""
    for one in (path, *path.rglob("*")):
        if not one.is_symlink():
            one.chmod(stat.S_IMODE(one.stat().st_mode) & FOLDER)


def open_to_others(path: Path) -> Iterator[Path]:
    """Yields what others may read or write: a file, or a folder and what is in it. What is in a closed folder
    they cannot get at.

    Rights of the group count on this user's own files only: on others' files they may be what lets this user
    in."""
    status = path.stat()
    others = 0o077 if status.st_uid == os.geteuid() else 0o007
    mode = stat.S_IMODE(status.st_mode) & others
    if mode:
        yield path
    if path.is_dir() and mode & 0o011:
        for one in sorted(path.iterdir()):
            if not one.is_symlink():
                yield from open_to_others(one)


def sync_folder(folder: Path) -> None:
    """Writes a folder's list of files to the disk: what was made, renamed or removed in it.

    Does nothing where the file system cannot do that for a folder, as on Windows shares.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
    finally:
        os.close(descriptor)


def lock(descriptor: int, folder: Path) -> None:
    """Locks an open file for this process, until it ends; raises BlockingIOError where another one holds it.

    Warns where the file system has no locks, as some network file systems, and goes on without.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        log.warning(
            "the file system of %s has no locks (%s): make sure that no other process uses this folder",
            folder,
            error,
        )


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a settings file, whatever the locale; raises ValueError, with the way out, where it is not
    UTF-8.

    A byte order mark, which some editors write before it, is left out.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not text in UTF-8: save it in the encoding UTF-8, which editors offer with `save as`"
        ) from None


def read_private(path: str | os.PathLike[str], what: str = "it") -> bytes:
    """The bytes of a key or token; raises PermissionError where others than its user could have read them.

    A file of root that only root and a group of this process may read is taken too: containers get secrets
    so."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        mode = stat.S_IMODE(status.st_mode)
        own = status.st_uid == os.geteuid() and not mode & 0o077
        given = (
            status.st_uid == 0 != os.geteuid()
            and status.st_gid in {os.getegid(), *os.getgroups()}
            and not mode & 0o037
        )
        if not (own or given):
            raise PermissionError(
                f"{path} has mode {mode:04o} and owner {status.st_uid}: others may have read {what}. If they cannot have, "
                f"`chmod 600 {path}`; where that cannot be done, as on a Windows disk or in a container, copy it to a disk of this "
                f"machine (`install -m 600 {path} COPY`) and name the copy. Otherwise revoke it and make another."
            )
        return file.read()


def write_private(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes a file of mode 0600 and returns its path; raises `FileExistsError` where there is one
    already."""
    path = Path(path)
    make_folder(path.parent)
    with open(path, "xb", opener=opener) as file:
        os.fchmod(file.fileno(), FILE)  # a file system's own rules may have widened the mode
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path
