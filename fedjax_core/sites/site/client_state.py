"""A site's own client state, on its disk: one version for each exchange in which its report counted.

    folder/kept-000000000012        SHA-256 of its number and the rest, then safetensors; renamed into place

A request names the version to begin from, and so which reports counted: a late report left a version that is
never named again. A repeated round, after a lost reply or a return to a checkpoint, begins where it began
before. So the request also names the versions that may be asked for again: those of the run's checkpoints,
however rare, and the one with which the round began. All others are removed: a site keeps a few versions, not
one of each round. If nobody says what may be asked again (rounds without `fc.fit`), the last `RECENT` stay as
well.

>>> import numpy as np
>>> keep = ClientStateStore(None)
>>> keep.write(4, {"c": np.ones(2, np.float32)})
>>> keep.read(4, {"c": np.zeros(2, np.float32)})["c"].tolist()
[1.0, 1.0]
>>> keep.make_room({"c": np.zeros(2, np.float32)}, 5, needed=[4], recent=0)
>>> keep.versions
[4]
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from fedjax_core import tree
from fedjax_core.files import make_folder, write_whole
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.tensors import pack, unpack
from fedjax_core.sites.wire.trees import from_tensors, to_tensors

_DIGEST = 32


class LostState(Refused):
    """The requested version is missing or damaged."""

    code = "lost-state"


class NoRoom(Refused):
    """The run needs more disk than the site gives."""

    code = "over-cap"


class ClientStateStore:
    """The versions of one site's own state in one run; in memory without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[int, bytes] = {}
        if folder is not None:
            make_folder(folder)
        # version -> bytes, oldest writes first
        self._sizes = {} if folder is None else _listed(folder)

    @property
    def nbytes(self) -> int:
        """The bytes of all versions."""
        return sum(self._sizes.values())

    @property
    def versions(self) -> list[int]:
        """The stored versions, oldest writes first."""
        return list(self._sizes)

    def read(self, version: int, like: Any) -> Any:
        """Reads a version in the structure of `like`; raises `LostState` if it is missing."""
        if not jax.tree.leaves(like):
            return like
        raw = self._memory.get(version, b"") if self.folder is None else self._read(version)
        digest, body = raw[:_DIGEST], raw[_DIGEST:]
        if _digest(version, body) != digest:
            state = "damaged" if raw else "not there"
            raise LostState(
                f"version {version} of what the site keeps is {state}; restore the site's folder from its backup, or begin another run"
            )
        return from_tensors(unpack(body), like)

    def write(self, version: int, kept: Any) -> None:
        """Writes a version, whole or not at all, over one of the same number."""
        if not jax.tree.leaves(kept):
            return
        body = pack(to_tensors(jax.device_get(kept)))
        raw = _digest(version, body) + body
        if self.folder is None:
            self._memory[version] = raw
        else:
            write_whole(self._path(version), raw)
        self._sizes.pop(version, None)
        self._sizes[version] = len(raw)

    def make_room(
        self, like: Any, version: int, needed: Collection[int], recent: int, most_gb: float | None = None
    ) -> None:
        """Removes versions that nobody asks for again, before this version, of the structure `like`, is
        written.

        The `needed` versions stay, and the `recent` last-written others. A needed version is never removed:
        raises `NoRoom` if these alone, with the versions of other runs, exceed `most_gb`.
        """
        if not jax.tree.leaves(like):
            return
        must = {version, *(one for one in self._sizes if one in needed)}
        if most_gb is not None:
            size, elsewhere = tree.nbytes(like), 0 if self.folder is None else _elsewhere(self.folder)
            capacity = int((most_gb * 1e9 - elsewhere) // size)
            if capacity < len(must):
                also = (
                    f" and {elsewhere / 1e9:.3g} GB are of other runs, whose folders in `kept` may be removed,"
                    if elsewhere
                    else ""
                )
                raise NoRoom(
                    f"the run needs {len(must)} versions of {size / 1e9:.3g} GB of what the site keeps between rounds,{also} and the site "
                    f"gives {most_gb:g} GB (caps.kept_gb): its staff raises that, or the run has fewer checkpoints (fc.fit(keep=))"
                )
            recent = min(recent, capacity - len(must))
        others = [one for one in self._sizes if one not in must]
        for old in others[: max(0, len(others) - recent)]:
            if self.folder is None:
                del self._memory[old]
            else:
                self._path(old).unlink(missing_ok=True)
            del self._sizes[old]

    def _read(self, version: int) -> bytes:
        path = self._path(version)
        return path.read_bytes() if path.exists() else b""

    def _path(self, version: int) -> Path:
        assert self.folder is not None
        return self.folder / f"kept-{version:012d}"


def _digest(version: int, body: bytes) -> bytes:
    """The digest of a version and its number, by which a damaged or misnamed file is noticed."""
    return hashlib.sha256(f"{version}:".encode() + body).digest()


def _elsewhere(folder: Path) -> int:
    """The bytes that are kept for other runs."""
    return sum(sum(_listed(run).values()) for run in folder.parent.iterdir() if run != folder)


def _listed(folder: Path) -> dict[int, int]:
    """{version: bytes} in a run's folder, oldest writes first, as a run that goes back writes lower numbers
    again."""
    versions = [(path.stat(), int(path.name[5:])) for path in folder.glob("kept-" + "[0-9]" * 12)]
    return {version: info.st_size for info, version in sorted(versions, key=lambda one: one[0].st_mtime_ns)}
