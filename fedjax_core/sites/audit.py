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
import hashlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from fedjax_core.files import write_whole
from fedjax_core.sites.base import Refused, Scalar, dumps, is_scalar, loads, of_lines, shown
from fedjax_core.sites.gate import NotFinite, measure
from fedjax_core.sites.identity import PublicKey, SiteKey
from fedjax_core.sites.wire import Envelope

_PURPOSE, _PATTERN, _LOCK = "audit", "audit-[0-9]*.jsonl", "lock"
_ANCHOR = "anchor.json"


class AuditError(RuntimeError):
    """The log is not as it was written; the text says in which file and line, and how it differs."""


class Head(NamedTuple):
    """The last line of a log: whoever has it can tell later whether the log still leads there."""

    n: int  # -1 for a log without entries
    digest: str

    @classmethod
    def parse(cls, text: str) -> "Head":
        """The head in its text form; raises ValueError for anything else."""
        n, _, digest = text.strip().partition(":")
        if not (n.isdecimal() and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
            raise ValueError(
                f"{shown(text)} is not the head of a log: it reads like 17:<64 hexadecimal digits>, as `fedjax-core audit head` prints"
            )
        return cls(int(n), digest)

    def __str__(self) -> str:
        return f"{self.n}:{self.digest}"


NOTHING = Head(-1, "")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing that happened."""

    n: int  # 0, 1, 2, ...
    prev: str  # digest of the line before
    time: float  # seconds since 1970, by the clock of whoever wrote it
    key: str  # fingerprint of the key that signs
    who: str
    what: str
    run: str = ""
    round: int | None = None
    about: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A signed word of the log's owner that entries up to `head` were removed on purpose; the log is proven from there."""

    head: Head
    time: float  # when, in seconds since 1970
    key: str  # fingerprint of the key that signs

    def write(self, folder: str | os.PathLike[str], key: SiteKey) -> None:
        """Puts the anchor into a log's folder, whole or not at all."""
        body = {"n": self.head.n, "digest": self.head.digest, "time": self.time, "key": self.key}
        write_whole(anchor_path(folder), dumps({"anchor": body, "signature": key.sign(f"{_PURPOSE} anchor", dumps(body)).hex()}))
        _sync_folder(Path(folder))

    @classmethod
    def read(cls, folder: str | os.PathLike[str], keys: Iterable[PublicKey]) -> "Anchor | None":
        """The anchor of a log, None where nothing was removed; raises `AuditError` where none of the keys made it."""
        path = anchor_path(folder)
        if not path.exists():
            return None
        try:
            found: Any = loads(path.read_bytes(), "the anchor")
            body, signature = found["anchor"], bytes.fromhex(found["signature"])
            anchor = cls(head=Head.parse(f"{body['n']}:{body['digest']}"), time=float(body["time"]), key=str(body["key"]))
        except (ValueError, TypeError, KeyError) as error:
            raise AuditError(f"{path} was edited or damaged: {error if isinstance(error, Refused) else 'it is no anchor'}") from None
        if not any(key.fingerprint == anchor.key and key.fits(f"{_PURPOSE} anchor", dumps(body), signature) for key in keys):
            raise AuditError(f"{path} is not signed with a key of those given: entries were removed by somebody else, or it was edited")
        return anchor


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
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / _LOCK, "ab")
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
        plain = {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x for name, x in (about or {}).items()}
        for name, value in (*plain.items(), ("who", who), ("what", what), ("run", run), ("round", round)):
            if not is_scalar(value):
                raise ValueError(
                    f"{name} of a {what!r} entry is of type {type(value).__name__}, or no single line; record a digest of it instead"
                )
        entry = Entry(
            n=self.head.n + 1, prev=self.head.digest, time=time.time(), key=self.key.public.fingerprint,
            who=who, what=what, run=run, round=round, about=plain,
        )  # fmt: skip
        body = dumps(vars(entry))
        line = b'{"entry":%b,"signature":"%b"}' % (body, self.key.sign(_PURPOSE, body).hex().encode())  # as `dumps` would spell it
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
        self.head = Head(entry.n, _digest(line))

    def record_sent(self, envelope: Envelope, size: int, decision: str = "sent", more: Mapping[str, Scalar] | None = None) -> None:
        """Adds to the ledger that a message of `size` bytes left for its recipient: what it was, how much, its norm, and what is `more`."""
        header, tensors = envelope
        try:
            norm = measure(tensors)
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
        last = _last_line(found)
        if last is not None:
            where, line = last
            self.head = Head(_read(line, where, self.keys).n, _digest(line))
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
            path = self.folder / f"audit-{_number(found[-1]) + 1 if found else 1:06d}.jsonl" if full else found[-1]
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed with the log
            if full:
                _sync_folder(self.folder)
        return self._file


def verify(folder: str | os.PathLike[str], keys: Iterable[PublicKey], head: Head | None = None) -> Head:
    """The log's head, once every line is known to be as it was written; raises `AuditError` with the first place where one is not.

    `keys` are those that may have signed, former ones included. With a `head` that was exported before, the log must lead there.
    Where entries were removed on purpose, the rest is proven from the signed `Anchor` on.
    """
    known = set(keys)
    paths, anchor = files(folder), Anchor.read(folder, known)
    if not paths:
        raise AuditError(f"{folder} holds no audit log: there is no file {_PATTERN}")
    removed = NOTHING if anchor is None else anchor.head
    if head is not None and (head.n < removed.n or (head.n == removed.n and head != removed)):
        raise AuditError(
            f"the exported head is entry {head.n}, and the entries up to {removed.n} were removed and anchored as {removed}: "
            "compare with a head exported since, or verify where the old ones were archived"
        )
    last: Head | None = None
    for where, line in _lines(paths):
        entry = _read(line, where, known)
        if last is None:  # a removal that was cut short left more than it should have, which must lead to the anchor
            last = Head(entry.n - 1, entry.prev) if 0 < entry.n <= removed.n else NOTHING if entry.n == 0 else removed
        if entry.n != last.n + 1:
            missing = f"entries {last.n + 1} to {entry.n - 1} are missing" if entry.n > last.n else "an entry was moved or repeated"
            raise AuditError(f"{where} is entry {entry.n}, and entry {last.n + 1} should be there: {missing}")
        if entry.prev != last.digest:
            raise AuditError(f"{where} does not follow from the entry before it, number {last.n}, which was replaced by another")
        last = Head(entry.n, _digest(line))
        if entry.n == removed.n and last != removed:
            raise AuditError(f"{where} is entry {removed.n}, but not the one that the anchor names: the log was written anew")
        if head is not None and entry.n == head.n and last != head:
            raise AuditError(f"{where} is entry {head.n}, but not the one that the exported head names: the log was written anew")
    last = removed if last is None else last
    if last.n < removed.n:
        raise AuditError(f"{paths[-1]} ends with entry {last.n}, before entry {removed.n}, which the anchor names: entries were cut off")
    if head is not None and head.n > last.n:
        raise AuditError(
            f"{paths[-1]} ends with entry {last.n}, but the exported head is entry {head.n}: {head.n - last.n} entries were cut off"
        )
    return last


def show(
    folder: str | os.PathLike[str],
    *,
    who: str | None = None,
    what: str | None = None,
    run: str | None = None,
    round: int | None = None,
    site: str | None = None,
) -> Iterator[Entry]:
    """The entries, oldest first, that agree with what is given; `site`: what it did, and what it was asked.

    Checks no signature; for that there is `verify`.
    """
    wanted = {name: value for name, value in (("who", who), ("what", what), ("run", run), ("round", round)) if value is not None}
    for where, line in _lines(files(folder)):
        entry = _parse(line, where)[0]
        concerns = site is None or site == entry.who or site in of_lines("names", entry.about)
        if concerns and all(getattr(entry, name) == value for name, value in wanted.items()):
            yield entry


def heads(folder: str | os.PathLike[str]) -> Iterator[tuple[float, Head]]:
    """(time, number and digest) of every entry, oldest first. Checks no signature; for that there is `verify`."""
    for where, line in _lines(files(folder)):
        entry = _parse(line, where)[0]
        yield entry.time, Head(entry.n, _digest(line))


def files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(Path(folder).glob(_PATTERN), key=_number)


def anchor_path(folder: str | os.PathLike[str]) -> Path:
    """Where a log's anchor is, where it has one."""
    return Path(folder) / _ANCHOR


def head_of(folder: str | os.PathLike[str]) -> Head:
    """The last entry's number and digest, to be exported. Checks no signature; for that there is `verify`."""
    last = _last_line(files(folder))
    if last is None:
        raise AuditError(f"{folder} holds no audit log: there is no entry in a file {_PATTERN}")
    where, line = last
    return Head(_parse(line, where)[0].n, _digest(line))


def _last_line(paths: list[Path]) -> tuple[str, bytes] | None:
    """(where in words, line) of the last whole line; None where there is none."""
    for path in reversed(paths):
        *lines, _ = path.read_bytes().split(b"\n")
        if lines:
            return f"{path}, line {len(lines)},", lines[-1]
    return None


def _cut_torn(path: Path) -> dict[str, Scalar] | None:
    """Cuts off what follows the last end of a line, and tells what that was; None where there was nothing."""
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole == len(raw):
        return None
    with open(path, "r+b") as file:
        file.truncate(whole)
        os.fsync(file.fileno())
    return {"file": path.name, "bytes": len(raw) - whole, "digest": _digest(raw[whole:])}


def _lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """(where in words, line without its end); raises where the last has no end."""
    for path in paths:
        with open(path, "rb") as file:
            for i, line in enumerate(file, start=1):
                where = f"{path}, line {i},"
                if not line.endswith(b"\n"):
                    raise AuditError(
                        f"{where} has no end: a crash tore it, or it was cut; opening the log to write cuts it off and records that"
                    )
                yield where, line[:-1]


def _read(line: bytes, where: str, known: set[PublicKey]) -> Entry:
    """The entry of a line whose signature fits; raises `AuditError` otherwise."""
    entry, body, signature = _parse(line, where)
    key = next((key for key in known if key.fingerprint == entry.key), None)
    if key is None:
        raise AuditError(
            f"{where} is signed with the key {entry.key}, which is not among those given; add the former keys of this log's owner"
        )
    if not key.fits(_PURPOSE, body, signature):
        raise AuditError(f"{where} was edited: its signature does not fit entry {entry.n}")
    return entry


def _parse(line: bytes, where: str) -> tuple[Entry, bytes, bytes]:
    """(entry, the bytes that are signed, signature)."""
    try:
        found: dict[str, Any] = loads(line, "the line")
        entry, signature = Entry(**found.pop("entry")), bytes.fromhex(text := found.pop("signature"))
    except (Refused, TypeError, KeyError, ValueError, AttributeError) as error:
        said = str(error) if isinstance(error, Refused) else "it is no entry"
        raise AuditError(f"{where} was edited or damaged: {said}") from None
    plain = all(is_scalar(x) for x in (*entry.about.values(), entry.who, entry.what, entry.run, entry.round, entry.time))
    if found or text != signature.hex() or not plain or type(entry.n) is not int:
        raise AuditError(f"{where} was edited: it is not spelt as an entry and its signature are")
    return entry, dumps(vars(entry)), signature


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("audit-")
    return int(digits) if digits.isdecimal() else -1


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
