"""The audit log: who did what, in lines of which none can be changed, removed, moved or cut off without it showing.

    folder/audit-000001.jsonl    {"entry":{"n":0,"prev":"","time":...,"who":...,"what":...,...},"signature":"..."}
    folder/audit-000002.jsonl    {"entry":{"n":812,"prev":"<SHA-256 of the line before>",...},"signature":"..."}

    line_n = entry_n, sign(entry_n)        entry_n.prev = SHA-256(line_(n-1))        head = "n:SHA-256(line_n)"

Every entry is signed and names the line before it, across files too. A chain cannot show what was cut from its end, nor that its
owner, who has the key, wrote all of it anew: for that the head is given now and then to somebody else (it is one short line), and
`verify` compares. Entries hold names, digests, sizes, norms and decisions, and no data. What left a site is recorded by `record_sent`:
that is the ledger which its data owner can read with `show`. Old entries may be removed where an `Anchor` says up to which (retention.py).

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> key = SiteKey.make("charite")
>>> with Log(folder.name, key) as log:
...     log.record("site", "joined", run="heart-1")
...     log.record("site", "trained", run="heart-1", round=1, about={"examples": 303})
...     exported = log.head
>>> verify(folder.name, [key.public], head=exported) == exported
True
>>> [(entry.n, entry.what, entry.about) for entry in show(folder.name, round=1)]
[(1, 'trained', {'examples': 303})]
>>> folder.cleanup()
"""

import errno
import fcntl
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fedjax_core.files import make_folder, opener, sync_folder
from fedjax_core.sites.base import Scalar
from fedjax_core.sites.entries import (
    NOTHING,
    PURPOSE,
    AuditError,
    Entry,
    Head,
    digest,
    files,
    head_of,
    heads,
    last_line,
    number,
    read,
    show,
    spelt,
)
from fedjax_core.sites.gate import NotFinite, measure
from fedjax_core.sites.identity import PublicKey, SiteKey
from fedjax_core.sites.proof import Anchor, anchor_path, verify
from fedjax_core.sites.wire import Envelope

__all__ = ["NOTHING", "Anchor", "AuditError", "Entry", "Head", "Log", "anchor_path", "files", "head_of", "heads", "show", "verify"]

_LOCK = "lock"


class Log:
    """A log that is open for writing, by one process at a time. Use it in a `with`.

    `record` returns when the entry is on the disk, unless told not to wait. What a crash left of a last line is cut off, and recorded.
    """

    def __init__(
        self, folder: str | os.PathLike[str], key: SiteKey, *, former: Iterable[PublicKey] = (), file_bytes: int = 64 << 20
    ) -> None:
        """`former` are the keys that this log's owner had before; a file of more than `file_bytes` is followed by another."""
        self.folder, self.head = Path(folder), NOTHING
        self.key, self.keys, self._file_bytes = key, {key.public, *former}, file_bytes
        self._lock: BinaryIO | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Log":
        make_folder(self.folder)
        self._lock = open(self.folder / _LOCK, "ab", opener=opener)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RuntimeError(
                f"the audit log {self.folder} is being written by another process; two would break its chain. Stop one."
            ) from None
        try:
            self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.rest()
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def record(
        self,
        who: str,
        what: str,
        *,
        run: str = "",
        round: int | None = None,
        about: Mapping[str, Scalar] | None = None,
        wait: bool = True,
    ) -> None:
        """Adds one entry. `about` holds small values: digests, sizes, codes, norms; one that is not finite is kept as text.

        Without `wait` the entry may reach the disk with the next one that waits: for what nothing is yet concluded from.
        """
        entry = Entry(
            n=self.head.n + 1, prev=self.head.digest, time=time.time(), key=self.key.public.fingerprint,
            who=who, what=what, run=run, round=round, about=dict(about or {}),
        )  # fmt: skip
        body = spelt(entry)
        line = b'{"entry":%b,"signature":"%b"}' % (body, self.key.sign(PURPOSE, body).hex().encode())  # as `dumps` would spell it
        file = self._writable()
        start = file.tell()
        try:
            if file.write(line + b"\n") <= len(line):
                raise OSError(errno.ENOSPC, "only a part of the entry was taken")
            if wait:
                os.fsync(file.fileno())
        except OSError as error:  # a full disk: what it took of the line must not stay before the next one
            file.truncate(start)
            file.seek(start)
            raise OSError(
                error.errno, f"could not write to the audit log {file.name}: {error}. Nothing may go on unrecorded: free some space."
            ) from error
        self.head = Head(entry.n, digest(line))

    def record_sent(
        self, envelope: Envelope, size: int, decision: str = "sent", more: Mapping[str, Scalar] | None = None, norm: float | None = None
    ) -> None:
        """Adds to the ledger that a message of `size` bytes left for its recipient: what it was, how much, its norm, and what is `more`.

        `norm`: where it was measured before.
        """
        header, tensors = envelope
        try:
            norm = measure(tensors) if norm is None else norm
        except NotFinite:  # the ledger tells what left, however bad
            norm = math.nan
        about: dict[str, Scalar] = {
            "recipient": header.recipient, "kind": header.kind, "exchange": header.exchange, "sequence": header.sequence,
            "bytes": size, "tensors": len(tensors), "numbers": sum(x.size for x in tensors.values()), "norm": norm,
            "digest": header.digest, "fields": " ".join(sorted(header.fields)), "decision": decision, **(more or {}),
        }  # fmt: skip
        self.record(header.sender, "left", run=header.run, round=header.round, about=about)

    def rest(self) -> None:
        """Lets go of the file that is being written, which the next entry opens again: for whoever changes the files."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _open(self) -> None:
        """Finds the end of the chain, and cuts off what a crash left of a line; only the newest file can have such a remainder."""
        found = files(self.folder)
        torn = _cut_torn(found[-1]) if found else None
        last = last_line(found)
        if last is not None:
            where, line = last
            self.head = Head(read(line, where, self.keys).n, digest(line))
        if torn is not None:
            self.record(self.key.name, "recovered", about=torn)

    def _writable(self) -> BinaryIO:
        """The newest file, or a new one where that is full."""
        if self._lock is None:
            raise RuntimeError(f"the audit log {self.folder} is not open: use it in a `with`")
        if self._file is not None and self._file.tell() >= self._file_bytes:
            self.rest()
        if self._file is None:
            found = files(self.folder)
            full = not found or found[-1].stat().st_size >= self._file_bytes
            path = self.folder / f"audit-{number(found[-1]) + 1 if found else 1:06d}.jsonl" if full else found[-1]
            self._file = open(path, "ab", buffering=0, opener=opener)  # noqa: SIM115  closed with the log
            if full:
                sync_folder(self.folder)
        return self._file


def _cut_torn(path: Path) -> dict[str, Scalar] | None:
    """Cuts off what follows the last end of a line, and tells what that was; None where there was nothing."""
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole == len(raw):
        return None
    with open(path, "r+b") as file:
        file.truncate(whole)
        os.fsync(file.fileno())
    return {"file": path.name, "bytes": len(raw) - whole, "digest": digest(raw[whole:])}
