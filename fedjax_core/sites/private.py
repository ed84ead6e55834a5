"""Files that only their owner may read: keys and tokens.

A file that others could have read is as good as published, so it is refused when read, and not only made with care.

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> path = write(Path(folder.name) / "token", b"secret")
>>> read(path)
b'secret'
>>> path.chmod(0o644)
>>> read(path)
Traceback (most recent call last):
PermissionError: ...token has mode 0644 and owner ...: others may have read it...
>>> folder.cleanup()
"""

import os
import stat
from pathlib import Path

from fedjax_core.files import make_folder, opener


def read(path: str | os.PathLike[str], what: str = "it") -> bytes:
    """The file's bytes; raises `PermissionError` where others could have read them."""
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        if stat.S_IMODE(about.st_mode) & 0o077 or about.st_uid != os.geteuid():
            raise PermissionError(
                f"{path} has mode {stat.S_IMODE(about.st_mode):04o} and owner {about.st_uid}: others may have read {what}. "
                f"If they cannot have, chown it and `chmod 600 {path}`; otherwise revoke it and make another."
            )
        return file.read()


def write(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes a file of mode 0600 and returns its path; raises `FileExistsError` where there is one already."""
    path = Path(path)
    make_folder(path.parent)
    with open(path, "xb", opener=opener) as file:
        os.fchmod(file.fileno(), 0o600)  # which a file system's own rules may have widened
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path
