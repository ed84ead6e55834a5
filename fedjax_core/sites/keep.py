"""What a site keeps between rounds, on its own disk: one version for each exchange in which its report counted.

    folder/kept-000000000012        SHA-256 of its number and the rest, then safetensors: written beside its place and renamed into it

A request names the version to begin from, and says by that which reports counted: one that came late left a version that is never
named again. A round that is done again, as the reply was lost or the coordinator fell back to a checkpoint, begins where it began.

>>> import numpy as np
>>> keep = Keep(None)
>>> keep.write(4, {"c": np.ones(2, np.float32)})
>>> keep.read(4, {"c": np.zeros(2, np.float32)})["c"].tolist()
[1.0, 1.0]
"""

import hashlib
from pathlib import Path
from typing import Any

import jax

from fedjax_core.files import make_folder, write_whole
from fedjax_core.sites.base import Refused
from fedjax_core.sites.forms import named, place
from fedjax_core.sites.tensors import pack, unpack

_DIGEST = 32


class LostState(Refused):
    """The version that is asked for is not there, or not as it was written."""

    code = "lost-state"


class Keep:
    """The last `versions` versions of what one site keeps in one run; in memory without a folder."""

    def __init__(self, folder: Path | None, versions: int = 64) -> None:
        self.folder, self.versions = folder, versions
        self._memory: dict[int, bytes] = {}
        if folder is not None:
            make_folder(folder)

    def read(self, version: int, like: Any) -> Any:
        """The version in the structure of `like`; raises `LostState` where it is not there."""
        if not jax.tree.leaves(like):
            return like
        raw = self._memory.get(version, b"") if self.folder is None else self._read(version)
        digest, body = raw[:_DIGEST], raw[_DIGEST:]
        if _digest(version, body) != digest:
            state = "damaged" if raw else "not there"
            raise LostState(
                f"version {version} of what the site keeps is {state}; restore the site's folder from its backup, or begin another run"
            )
        return place(unpack(body), like)

    def write(self, version: int, kept: Any) -> None:
        """Stores the version whole, or not at all, over one of that number; those written longest ago go."""
        if not jax.tree.leaves(kept):
            return
        body = pack(named(jax.device_get(kept)))
        raw = _digest(version, body) + body
        if self.folder is None:
            self._memory.pop(version, None)
            self._memory[version] = raw
            for number in list(self._memory)[: -self.versions]:
                del self._memory[number]
            return
        path = self._path(version)
        write_whole(path, raw)
        # By when they were written: a run that fell back to a checkpoint writes lower numbers again.
        for old in sorted(self.folder.glob("kept-" + "[0-9]" * 12), key=lambda path: path.stat().st_mtime_ns)[: -self.versions]:
            old.unlink()

    def _read(self, version: int) -> bytes:
        path = self._path(version)
        return path.read_bytes() if path.exists() else b""

    def _path(self, version: int) -> Path:
        assert self.folder is not None
        return self.folder / f"kept-{version:012d}"


def _digest(version: int, body: bytes) -> bytes:
    """By which a version is known to be whole, and to be that one and not another under its name."""
    return hashlib.sha256(f"{version}:".encode() + body).digest()
