"""The lines of an audit log: an entry's fields, its one spelling, its signature, and the log's files.

    folder/audit-000001.jsonl    {"entry":{"n":0,"prev":"","time":...,"who":...,"what":...,...},"signature":"..."}

    line_n = entry_n, sign(entry_n)        entry_n.prev = SHA-256(line_(n-1))        head = "n:SHA-256(line_n)"

`log.py` writes them, `proof.py` proves them.

>>> line = b'{"entry":{"about":{},"key":"k","n":0,"prev":"","round":3,"run":"r","time":1.0,"what":"left","who":"charite"},"signature":"00"}'
>>> entry, signed, signature = parse(line, "here")
>>> entry.who, entry.what, entry.round, Head(entry.n, digest(line)) == Head.parse(f"0:{digest(line)}")
('charite', 'left', 3, True)
"""

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from fedjax_core.sites.refusal import Refused, shown
from fedjax_core.sites.wire.canonical import Integer, Text, Value, dumps, is_plain, is_scalar, of_lines
from fedjax_core.sites.wire.canonical import read as read_json
from fedjax_core.sites.wire.identity import PublicKey

PURPOSE, PATTERN = "audit", "audit-[0-9]*.jsonl"
CUT = "cut"
"""The `what` of an entry that records that entries before it are missing."""
REQUEST_BYTES = "request_bytes"
"""The bytes of the body of the request that a message answers: what a site received, beside `bytes`, what it sent."""
SENT, NUMBERS = "sent.", "numbers."
"""The prefixes of values that left a site: fields, as in `sent.loss`, and tensors, as in `numbers.['w']`."""


class AuditError(RuntimeError):
    """The log is not as it was written; the text names the file, the line and the difference."""


class Head(NamedTuple):
    """The number and digest of a log's last line, to check later that the log still leads there."""

    n: int  # -1 for a log without entries
    digest: str

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Reads a head in its text form; raises ValueError for anything else."""
        if not (match := _HEAD.fullmatch(text.strip())):
            raise ValueError(
                f"{shown(text)} is not the head of a log: it reads like 17:<64 hexadecimal digits>, as `fedjax-core audit head` prints"
            )
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.n}:{self.digest}"


NOTHING = Head(-1, "")
_HEAD = re.compile(r"([0-9]+):([0-9a-f]{64})")


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that happened."""

    n: Annotated[int, Meta(ge=0)]  # 0, 1, 2, ...
    prev: str  # digest of the line before
    time: float  # seconds since 1970, by the writer's clock
    key: str  # fingerprint of the key that signs
    who: Text
    what: Text
    run: Text = ""
    round: Integer | None = None
    about: dict[str, Value] = {}


def show(
    folder: str | os.PathLike[str],
    *,
    who: str | None = None,
    what: str | None = None,
    run: str | None = None,
    round: int | None = None,
    site: str | None = None,
) -> Iterator[Entry]:
    """The entries that match the arguments, oldest first; `site`: entries by it, and requests to it.

    Checks no signature; `verify` does.
    """
    wanted = {
        name: value
        for name, value in (("who", who), ("what", what), ("run", run), ("round", round))
        if value is not None
    }
    for where, line in lines(files(folder)):
        entry = parse(line, where)[0]
        concerns = site is None or site == entry.who or site in of_lines("names", entry.about)
        if concerns and all(getattr(entry, name) == value for name, value in wanted.items()):
            yield entry


def heads(folder: str | os.PathLike[str]) -> Iterator[tuple[float, Head]]:
    """(time, head) of every entry, oldest first. Checks no signature; `verify` does."""
    for where, line in lines(files(folder)):
        entry = parse(line, where)[0]
        yield entry.time, Head(entry.n, digest(line))


def head_of(folder: str | os.PathLike[str]) -> Head:
    """The head of a log, to be exported. Checks no signature; `verify` does."""
    last = last_line(files(folder))
    if last is None:
        raise AuditError(f"{folder} holds no audit log: there is no entry in a file {PATTERN}")
    where, line = last
    return Head(parse(line, where)[0].n, digest(line))


def files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(Path(folder).glob(PATTERN), key=number)


def lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """(place in words, line without newline) of each line; raises `AuditError` if the last has no newline."""
    for path in paths:
        with open(path, "rb") as file:
            for i, line in enumerate(file, start=1):
                where = f"{path}, line {i},"
                if not line.endswith(b"\n"):
                    raise AuditError(
                        f"{where} has no end: a crash tore it, or it was cut; opening the log to write cuts it off and records that"
                    )
                yield where, line[:-1]


def last_line(paths: list[Path]) -> tuple[str, bytes] | None:
    """(place in words, line) of the last whole line; None if there is none."""
    for path in reversed(paths):
        *lines, _ = path.read_bytes().split(b"\n")
        if lines:
            return f"{path}, line {len(lines)},", lines[-1]
    return None


def read(line: bytes, where: str, known: set[PublicKey]) -> Entry:
    """The entry of a line, once its signature is verified; raises `AuditError` otherwise."""
    entry, body, signature = parse(line, where)
    key = next((key for key in known if key.fingerprint == entry.key), None)
    if key is None:
        raise AuditError(
            f"{where} is signed with the key {entry.key}, which is not among those given; add the former keys of this log's owner"
        )
    if not key.fits(PURPOSE, body, signature):
        raise AuditError(f"{where} was edited: its signature does not fit entry {entry.n}")
    return entry


def parse(line: bytes, where: str) -> tuple[Entry, bytes, bytes]:
    """Reads a line: (entry, the bytes that are signed, signature)."""
    try:
        entry, signature = msgspec.structs.astuple(
            read_json(_LINE, line, "the line", 3, lambda value, problem: Refused("it is no entry"))
        )
    except Refused as refusal:
        raise AuditError(f"{where} was edited or damaged: {refusal}") from None
    if not all(map(is_scalar, (*entry.about.values(), entry.who, entry.what, entry.run))):
        raise AuditError(f"{where} was edited: it is not spelt as an entry and its signature are")
    return entry, dumps(entry), bytes.fromhex(signature)


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    entry: Entry
    signature: Annotated[str, Meta(pattern=r"^([0-9a-f]{2})*\Z")]


_LINE, _ENTRY = msgspec.json.Decoder(_Line), msgspec.json.Decoder(Entry)


def spelt(entry: Entry) -> bytes:
    """The entry's one spelling, with non-finite numbers as text; raises ValueError for values that `parse`
    would not read."""
    try:
        body = dumps(entry)
        if is_plain(body) and _ENTRY.decode(body) == entry:
            return body
    except (ValueError, TypeError, msgspec.MsgspecError):  # the value is named below
        pass
    details = {
        name: str(x) if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in entry.about.items()
    }
    for name, value in (
        *details.items(),
        ("who", entry.who),
        ("what", entry.what),
        ("run", entry.run),
        ("round", entry.round),
    ):
        if not is_scalar(value):
            raise ValueError(
                f"{name} of a {entry.what!r} entry is of type {type(value).__name__}, or no single line; record a digest of it instead"
            )
    return dumps(msgspec.structs.replace(entry, about=details))


def digest(line: bytes) -> str:
    """The SHA-256 of a line without its newline, by which the next line names it."""
    return hashlib.sha256(line).hexdigest()


def number(path: Path) -> int:
    """The number of a log's file; -1 if its name has none."""
    digits = path.stem.removeprefix("audit-")
    return int(digits) if digits.isdecimal() else -1
