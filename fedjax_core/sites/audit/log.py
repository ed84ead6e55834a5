"""`Log`: a tamper-evident audit log, in which a changed, removed, moved or cut-off line shows.

    folder/audit-000001.jsonl    {"entry":{"n":0,"prev":"","time":...,"who":...,"what":...,...},"signature":"..."}
    folder/audit-000002.jsonl    {"entry":{"n":812,"prev":"<SHA-256 of the line before>",...},"signature":"..."}

    line_n = entry_n, sign(entry_n)        entry_n.prev = SHA-256(line_(n-1))        head = "n:SHA-256(line_n)"

Every entry is signed and names the line before it, across files too. A chain cannot show that its end was cut
off, nor that its owner, who has the key, rewrote all of it. For that, others hold its head, one short line,
and `verify` compares. In a federation each end holds the other's head, which comes with every message
(held.py). Entries hold names, digests, sizes, norms and decisions, and no data. `record_sent` records what
left a site, with the values of all fields and of small tensors: the data owner's ledger, to be read with
`show`. Old entries may be removed if an `Anchor` says up to which (retention.py).

>>> import tempfile
>>> from fedjax_core.sites.audit import show, verify
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
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from weakref import WeakSet

from fedjax_core.files import lock, make_folder, opener, sync_folder
from fedjax_core.sites.audit.entries import (
    CUT,
    NOTHING,
    NUMBERS,
    PURPOSE,
    SENT,
    AuditError,
    Entry,
    Head,
    digest,
    files,
    last_line,
    number,
    read,
    spelt,
)
from fedjax_core.sites.audit.held import FILE as HEADS
from fedjax_core.sites.audit.held import Heads, Held
from fedjax_core.sites.wire.canonical import Scalar, in_lines
from fedjax_core.sites.wire.envelope import Envelope
from fedjax_core.sites.wire.identity import PublicKey, SiteKey
from fedjax_core.sites.wire.tensors import NotFinite, measure

log = logging.getLogger("fedjax_core")

_LOCK = "lock"

_OPEN: "WeakSet[Log]" = WeakSet()
"""The logs that are open in this process."""
_HEADS_SECONDS = 5.0  # a signature and a write take 0.3 ms; an entry on the disk takes 2 ms
_SMALL, _FEW = 4096, 64  # most bytes and most tensors whose values an entry has


class Log:
    """A log that is open for writing, by one process at a time. Use it in a `with`.

    `record` returns when the entry is on the disk, unless `wait` is false. The rest of a line that a crash
    left is cut off, and that is recorded. If entries are missing that were there when the log was open
    before, that is recorded too, and `verify` fails."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        key: SiteKey,
        *,
        former: Iterable[PublicKey] = (),
        file_bytes: int = 64 << 20,
    ) -> None:
        """`former`: the owner's earlier keys. A file of more than `file_bytes` is followed by another."""
        self.folder, self.head = Path(folder), NOTHING
        self.durable = NOTHING
        """The head of the entries that are surely on the disk, which may be sent to others."""
        self.held: dict[str, Held] = {}
        """The newest head of each other log, from its owner's messages."""
        self.key, self.keys, self._file_bytes = key, {key.public, *former}, file_bytes
        self._lock: BinaryIO | None = None
        self._file: BinaryIO | None = None
        self._end = 0  # bytes of the file, kept to save two system calls an entry
        self._heads: BinaryIO | None = None
        self._heads_bytes = 0
        self._heads_until = 0.0  # when they may be written next, by time.monotonic
        self._backwards: set[str] = set()

    def __enter__(self) -> "Log":
        make_folder(self.folder)
        self._lock = open(self.folder / _LOCK, "ab", opener=opener)
        try:
            lock(self._lock.fileno(), self.folder)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            if any(one.folder.resolve() == self.folder.resolve() for one in _OPEN):
                raise RuntimeError(
                    f"the audit log {self.folder} is open in this process already: its Federation or site was not closed, as after a "
                    "notebook cell that was run twice. close() that one first, or use it in a `with`."
                ) from None
            raise RuntimeError(
                f"the audit log {self.folder} is being written by another process; two would break its chain. Stop one."
            ) from None
        _OPEN.add(self)
        try:
            self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()
        for file in (self._heads, self._lock):
            if file is not None:
                file.close()
        self._heads = self._lock = None
        _OPEN.discard(self)

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
        """Adds one entry. `about` holds small values: digests, sizes, codes, norms (as text if not finite).

        Without `wait` the entry may reach the disk only with the next one that waits: for entries on which
        nothing depends yet."""
        entry = Entry(
            n=self.head.n + 1, prev=self.head.digest, time=time.time(), key=self.key.public.fingerprint,
            who=who, what=what, run=run, round=round, about=dict(about or {}),
        )  # fmt: skip
        body = spelt(entry)
        # The same text as `dumps` would write.
        line = b'{"entry":%b,"signature":"%b"}' % (
            body,
            self.key.sign(PURPOSE, body).hex().encode(),
        )
        file, start = self._writable(), self._end
        try:
            if file.write(line + b"\n") <= len(line):
                raise OSError(errno.ENOSPC, "only a part of the entry was taken")
            if wait:
                os.fsync(file.fileno())
        except OSError as error:  # a full disk: the partial line must not stay
            file.truncate(start)
            raise OSError(
                error.errno,
                f"could not write to the audit log {file.name}: {error}. Nothing may go on unrecorded: free some space.",
            ) from error
        self.head, self._end = Head(entry.n, digest(line)), start + len(line) + 1
        if wait:
            self._on_disk()

    def hold(self, name: str, run: str, message: int, head: str) -> str | None:
        """Holds the head of another log from a message; a message older than the last one changes nothing.

        If that log has gone back since the last message of this run, returns that in words, once, and keeps
        the former head."""
        now, held = Head.parse(head), self.held.get(name)
        if held is not None and message < held.message:
            return None
        before = held.head if held is not None and held.run == run else NOTHING
        if now.n > before.n or now == before:
            self.held[name] = Held(run, message, now)
            return None
        if name in self._backwards:
            return None
        self._backwards.add(name)
        where = f"entry {now.n}, and ended with entry {before.n}"
        return f"the log of {name} ends with {where}: entries were cut off, or it was written anew"

    def record_sent(
        self,
        envelope: Envelope,
        size: int,
        decision: str = "sent",
        more: Mapping[str, Scalar] | None = None,
        norm: float | None = None,
    ) -> None:
        """Records a message of `size` bytes that leaves: its header, norm, all fields, the tensors if small
        together (4 kB), and `more`.

        `norm`: if it was measured before.
        """
        header, tensors = envelope
        try:
            norm = measure(tensors) if norm is None else norm
        except NotFinite:  # the log records what left, however bad
            norm = math.nan
        details: dict[str, Scalar] = {
            "recipient": header.recipient, "kind": header.kind, "exchange": header.exchange, "sequence": header.sequence,
            "bytes": size, "tensors": len(tensors), "numbers": sum(x.size for x in tensors.values()), "norm": norm,
            "digest": header.digest, **in_lines("fields", sorted(header.fields)), "decision": decision, **(more or {}),
        }  # fmt: skip
        small = len(tensors) <= _FEW and sum(x.nbytes for x in tensors.values()) <= _SMALL
        for name, value in header.fields.items():
            details[f"{SENT}{name}"] = value
        for name, x in tensors.items() if small else ():
            details |= in_lines(f"{NUMBERS}{name}", map(str, x.ravel()))
        self.record(header.sender, "left", run=header.run, round=header.round, about=details)

    def rest(self) -> None:
        """Closes the file being written, so that the files can be changed; the next entry opens it again."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self.durable = self.head
            self._write_heads()

    def _on_disk(self) -> None:
        """Marks all entries as being on the disk; the file of heads follows within seconds, without a
        wait."""
        self.durable = self.head
        if time.monotonic() >= self._heads_until:
            self._write_heads()

    def _write_heads(self) -> None:
        self._heads_until = time.monotonic() + _HEADS_SECONDS
        if self._heads is None:
            self._heads = open(os.open(self.folder / HEADS, os.O_RDWR | os.O_CREAT, 0o600), "wb", buffering=0)  # noqa: SIM115  closed with the log
            self._heads_bytes = os.fstat(self._heads.fileno()).st_size
        text = Heads(self.durable, self.held).signed(self.key)
        # One write, so that a killed process leaves either the old text or the new.
        os.pwrite(self._heads.fileno(), text, 0)
        if len(text) < self._heads_bytes:
            os.ftruncate(self._heads.fileno(), len(text))
        self._heads_bytes = len(text)

    def _open(self) -> None:
        """Finds the end of the chain, and cuts off a line torn by a crash; only the newest file can have
        one."""
        paths = files(self.folder)
        torn = _cut_torn(paths[-1]) if paths else None
        last = last_line(paths)
        if last is not None:
            where, line = last
            self.head = Head(read(line, where, self.keys).n, digest(line))
        wrong = self._missing()
        if torn is not None:
            self.record(self.key.name, "recovered", about=torn)
        if wrong is not None:
            what, details = wrong
            self.record(self.key.name, what, about=details)
            summary = "; ".join(f"{name} {value}" for name, value in details.items())
            log.warning(
                "the audit log %s: %s (%s). Keep it as it is, and compare with whoever holds its head",
                self.folder,
                what,
                summary,
            )

    def _missing(self) -> tuple[str, dict[str, Scalar]] | None:
        """(what, values) of an entry if the log does not lead to the head that it had when last open; None if
        it does."""
        try:
            before = Heads.read(self.folder, self.keys)
        except AuditError as error:
            return "no heads", {"reason": f"{error}, so entries may be missing"[:1000]}
        if before is None:
            return (
                None
                if self.head == NOTHING
                else ("no heads", {"reason": f"{HEADS} is not there, so entries may be missing"})
            )
        self.held = dict(before.held)
        if before.own.n > self.head.n:
            return CUT, {"entries": before.own.n - self.head.n, "head": str(before.own)}
        if before.own.n == self.head.n and before.own != self.head:
            return CUT, {"entries": 1, "head": str(before.own)}
        return None

    def _writable(self) -> BinaryIO:
        """The newest file, or a new one if that is full."""
        if self._lock is None:
            raise RuntimeError(f"the audit log {self.folder} is not open: use it in a `with`")
        if self._file is not None and self._end >= self._file_bytes:
            self.rest()
        if self._file is None:
            paths = files(self.folder)
            full = not paths or paths[-1].stat().st_size >= self._file_bytes
            path = (
                self.folder / f"audit-{number(paths[-1]) + 1 if paths else 1:06d}.jsonl"
                if full
                else paths[-1]
            )
            self._file = open(path, "ab", buffering=0, opener=opener)  # noqa: SIM115  closed with the log
            self._end = os.fstat(self._file.fileno()).st_size
            if full:
                sync_folder(self.folder)
        return self._file


def _cut_torn(path: Path) -> dict[str, Scalar] | None:
    """Cuts off what follows the last newline, and describes it; None if nothing does."""
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole == len(raw):
        return None
    with open(path, "r+b") as file:
        file.truncate(whole)
        os.fsync(file.fileno())
    return {"file": path.name, "bytes": len(raw) - whole, "digest": digest(raw[whole:])}
