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
from pathlib import Path

from fedjax_core.files import make_folder, opener
from fedjax_core.files import read_private as read

__all__ = ["read", "write"]


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
