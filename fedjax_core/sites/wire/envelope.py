"""The envelope: the signed message between sites and the coordinator, with a header and tensors.

    offset  size
    0       8        magic "fjx-env\\x01"
    8       4        n, length of the header, little-endian
    12      n        header: canonical JSON; has the size and the SHA-256 of the body
    12 + n  64       Ed25519 signature over the header, by the sender's key
    ...     0-63     zeros, up to a multiple of 64, so that arrays can be used where they lie
    ...     size     body: tensors in the safetensors format

The header contains the body's digest, so its signature covers everything. The order of checks is fixed: size,
form, sender, signature, digest, and only then the tensors. Each failure is a `Refused` of its own class; no
bytes raise anything else. Nothing in a message is executed, and no pickle is opened.

>>> import numpy as np
>>> key = SiteKey.make("charite")
>>> header = Header(kind="update", run="heart-1", round=3, exchange=0, sender="charite", recipient="coordinator", sequence=17,
...                 created_unix_ms=1_700_000_000_000, config="ab12", fields={"weight": 303.0, "examples": 303})
>>> message = encode(header, {"['w']": np.ones(3, np.float32)}, key)
>>> envelope = decode(message, Roster({"charite": key.public}), recipient="coordinator")
>>> envelope.header.fields["examples"], envelope.tensors["['w']"].tolist()
(303, [1.0, 1.0, 1.0])
>>> decode(message[:-1] + b"!", Roster({"charite": key.public}), recipient="coordinator")
Traceback (most recent call last):
fedjax_core.sites.wire.envelope.TamperedBody: the tensors of message 17 from 'charite' are not those that it signed...
"""

import hashlib
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from fedjax_core.sites.refusal import NAME, Refused, shown
from fedjax_core.sites.wire.canonical import Bytes, Value, dumps, is_plain, is_scalar, read
from fedjax_core.sites.wire.identity import Roster, SiteKey
from fedjax_core.sites.wire.tensors import (
    ALIGN,
    LIMITS,
    Limits,
    Oversize,
    TrailingBytes,
    check_no_pickle,
    joined,
    pieces,
    unpack,
)

COORDINATOR, SITES = "coordinator", "sites"
"""The sender and the recipient of requests: a broadcast is one message for all sites."""

SCHEMA: Literal[1] = 1
MAGIC = b"fjx-env\x01"
_PURPOSE, _SIGNATURE = "envelope", 64

_DIGITS = re.compile(r"[0-9a-f]{0,64}")
_HEAD = re.compile(r"(0|[1-9][0-9]{0,17}):[0-9a-f]{64}")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class NotAnEnvelope(Refused):
    """The bytes do not begin as an envelope does."""

    code = "not-an-envelope"


class WrongSchema(Refused):
    """The message is in another version of the format."""

    code = "wrong-schema"


class BadHeader(Refused):
    """The header lacks an entry, has one too many, or one of the wrong type."""

    code = "bad-header"


class Truncated(Refused):
    """The message ends before its header says."""

    code = "truncated"


class TamperedBody(Refused):
    """The tensors are not those that the sender signed."""

    code = "tampered-body"


class WrongRecipient(Refused):
    """The message is for another recipient."""

    code = "wrong-recipient"


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The header of a message. `encode` fills in the last four fields."""

    kind: str  # update, train, metrics, ...
    run: str
    round: Count
    exchange: Count
    sender: str
    recipient: str
    sequence: Count  # grows with each message of the sender; see replay.py
    created_unix_ms: Count
    config: str  # hash of the run's configuration: both ends must mean the same run
    # digest of the tensors this answers: an update counts only for the model it was computed from
    answers: str = ""
    # small typed values: weight, examples, losses
    fields: Annotated[dict[str, Value], Meta(max_length=256)] = {}
    head: str | UnsetType = UNSET
    """The head of the sender's audit log, which the other end holds (held.py); missing without a log."""
    schema: Literal[1] = SCHEMA
    key: str = ""  # fingerprint of the sender's key
    size: Count = 0  # bytes of the body
    digest: str = ""  # SHA-256 of the body


class Envelope(NamedTuple):
    """An accepted message."""

    header: Header
    tensors: dict[str, np.ndarray]  # read-only views of the message


def encode(header: Header, tensors: Mapping[str, np.ndarray], key: SiteKey) -> Bytes:
    """The signed message; raises ValueError for an unreadable header, or another sender than the key's."""
    return encode_both(header, tensors, key)[1]


def encode_both(header: Header, tensors: Mapping[str, np.ndarray], key: SiteKey) -> tuple[Header, Bytes]:
    """(the completed header, the signed message), as `encode`."""
    header, head, body = _filled(header, tensors, key)
    return header, joined([*_opening(head, key), *body])


class Draft:
    """A message without the head of its sender's log yet, so that the log can record it before it is
    signed."""

    def __init__(self, header: Header, tensors: Mapping[str, np.ndarray], key: SiteKey) -> None:
        """Raises as `encode`."""
        self.header, self._head, self.body = _filled(header, tensors, key)
        self._key = key

    def size(self, entry: int | None = None) -> int:
        """The bytes of the message, if its head is this entry of a log."""
        more = 0 if entry is None else len(f',"head":"{entry}:"') + 64
        start = len(MAGIC) + 4 + len(self._head) + more + _SIGNATURE
        return start + -start % ALIGN + self.header.size

    def signed(self, head: str | None = None) -> Bytes:
        """The signed message, with this head."""
        raw = self._head if head is None else dumps(msgspec.structs.replace(self.header, head=head))
        return joined([*_opening(raw, self._key), *self.body])


def _filled(
    header: Header, tensors: Mapping[str, np.ndarray], key: SiteKey
) -> tuple[Header, bytes, list[Any]]:
    """(the completed header, its bytes, the body's bytes in pieces)."""
    if key.name != header.sender:
        raise ValueError(
            f"the header names {header.sender!r} as sender, but the key is of {key.name!r}; a site signs for itself alone"
        )
    body, digest = pieces(tensors), hashlib.sha256()
    for piece in body:
        digest.update(piece)
    header = msgspec.structs.replace(
        header, key=key.public.fingerprint, size=sum(map(len, body)), digest=digest.hexdigest()
    )
    try:
        if _written(head := dumps(header)) != header:
            raise ValueError("an entry is of a type that does not travel")
    except (ValueError, TypeError) as error:
        raise ValueError(f"the message cannot be sent: {_odd_field(header.fields) or error}") from None
    return header, head, body


def seal(head: bytes, body: bytes, key: SiteKey) -> bytes:
    """A message of any header and body bytes, signed as they are: tests forge messages with it."""
    return b"".join([*_opening(head, key), body])


def _opening(head: bytes, key: SiteKey) -> list[bytes]:
    """Everything before the body: magic, header, signature and padding."""
    padding = -(len(MAGIC) + 4 + len(head) + _SIGNATURE) % ALIGN
    return [MAGIC, len(head).to_bytes(4, "little"), head, key.sign(_PURPOSE, head), bytes(padding)]


def decode(message: Bytes, roster: Roster, *, recipient: str, limits: Limits = LIMITS) -> Envelope:
    """Verifies that a message is whole, authentic and for `recipient`, and reads it; else raises a `Refused`.

    `ReplayGuard` checks its time, and `validate` whether its numbers may be used. No tensor is copied: the
    message stays in memory as long as its tensors do.
    """
    view = memoryview(message).cast("B").toreadonly()
    if len(view) > limits.message_bytes:
        raise Oversize(
            f"the message has {len(view):,} bytes, and at most {limits.message_bytes:,} are read; raise Limits.message_bytes"
        )
    head, start = _read_head(view, limits)
    header = _parse(head)
    roster.verify(header.sender, header.key, _PURPOSE, head, bytes(view[start : start + _SIGNATURE]))
    whose = f"message {header.sequence} from {header.sender!r}"
    if header.recipient != recipient:
        raise WrongRecipient(
            f"{whose} is for {header.recipient!r}, not for {recipient!r}; it was delivered to the wrong place"
        )
    begin = start + _SIGNATURE + -(start + _SIGNATURE) % ALIGN
    body = view[begin:]
    if len(body) < header.size:
        raise Truncated(f"{whose} ends {header.size - len(body):,} bytes early; ask for it again")
    if len(body) > header.size:
        raise TrailingBytes(
            f"{whose} has {len(body) - header.size:,} bytes after its end, which nobody signed; ask for it again"
        )
    if any(view[start + _SIGNATURE : begin]) or hashlib.sha256(body).hexdigest() != header.digest:
        raise TamperedBody(
            f"the tensors of {whose} are not those that it signed: they were changed on their way; ask for it again"
        )
    return Envelope(header, unpack(body, limits))


def header_of(message: Bytes) -> Header:
    """The header of one's own message; verifies nothing."""
    return _parse(_read_head(memoryview(message), LIMITS)[0])


def _read_head(view: memoryview, limits: Limits) -> tuple[bytes, int]:
    """(the header's bytes, the offset of the signature)."""
    if view[: len(MAGIC) - 1] != MAGIC[:-1]:
        check_no_pickle(view)
        raise NotAnEnvelope(
            "the bytes do not begin as a message of fedjax_core does; something else was sent, or sent to the wrong place"
        )
    if view[: len(MAGIC)] != MAGIC:
        raise WrongSchema(
            "the message is in another version of the envelope than is read here; install one version at all sites"
        )
    size = int.from_bytes(view[len(MAGIC) : len(MAGIC) + 4], "little")
    if size > limits.header_bytes:
        raise Oversize(
            f"the header has {size:,} bytes, and at most {limits.header_bytes:,} are read; raise Limits.header_bytes"
        )
    start = len(MAGIC) + 4 + size
    if len(view) < start + _SIGNATURE:
        raise Truncated("the message ends within its header or signature; ask for it again")
    return bytes(view[start - size : start]), start


def _parse(head: bytes) -> Header:
    return _checked(read(_HEADER, head, "the header", 2, _bad), head)


def _written(head: bytes) -> Header:
    """As `_parse`, for bytes written here, which are canonical."""
    try:
        return _checked(_HEADER.decode(head), head)
    except msgspec.MsgspecError:
        return _parse(head)  # raises what is wrong


def _checked(header: Header, head: bytes) -> Header:
    """The header itself, after checks that its type does not express; raises a `Refused` otherwise."""
    _check_names(header.kind, header.run, header.sender, header.recipient)
    _check_digits(config=header.config, key=header.key)
    # Not through the cached check: no message has these digests twice.
    if not (_DIGITS.fullmatch(header.answers) and _DIGITS.fullmatch(header.digest)):
        _check_digits(answers=header.answers, digest=header.digest)
    # Checked here, as msgspec would take 9 us for it.
    if header.head is not UNSET and not _HEAD.fullmatch(header.head):
        raise BadHeader(
            f"the header is not in order: head is {shown(header.head)}; it should be the head of a log, n:<64 hexadecimal digits>"
        )
    _check_fields(*header.fields)
    if not is_plain(head) and (odd := _odd_field(header.fields)):
        raise BadHeader(f"the header is not in order: {odd}")
    return header


def _odd_field(fields: Mapping[str, object]) -> str | None:
    """The problem of the first value that may not stand in a header; None if there is none."""
    for name, value in fields.items():
        if not is_scalar(value) or (isinstance(value, float) and not math.isfinite(value)):
            return f"field {shown(name)} is no finite number of 64 bits, truth value, or line of text; send other things as a tensor"
    return None


@lru_cache(maxsize=1024)
def _check_names(kind: str, run: str, sender: str, recipient: str) -> None:
    """Raises unless all four are names (cached)."""
    for name, text in (("kind", kind), ("run", run), ("sender", sender), ("recipient", recipient)):
        if not NAME.fullmatch(text):
            raise BadHeader(
                f"the header is not in order: {name} is {shown(text)}; it should be a name of 1 to 64 letters, digits, '-' and '_'"
            )


@lru_cache(maxsize=1024)
def _check_digits(**texts: str) -> None:
    """Raises unless all are hexadecimal digits (cached)."""
    for name, text in texts.items():
        if not _DIGITS.fullmatch(text):
            raise BadHeader(
                f"the header is not in order: {name} is {shown(text)}; it should be hexadecimal digits, at most 64"
            )


@lru_cache(maxsize=64)
def _check_fields(*names: str) -> None:
    """Raises unless all are names of fields (cached)."""
    for name in names:
        if not _FIELD.fullmatch(name):
            raise BadHeader(
                f"the header is not in order: field {shown(name)} has no proper name: use up to 64 letters, digits, '_', '-' and '.'"
            )


def _bad(value: Any, problem: str) -> Refused:
    """The error for a header that cannot be read: its decoded `value`, and the `problem`."""
    if not isinstance(value, dict):
        return BadHeader("the header is no table; the message was not written by fedjax_core.sites")
    if (theirs := value.get("schema")) != SCHEMA or type(theirs) is not int:
        return WrongSchema(
            f"the message is of schema {shown(theirs)}, and {SCHEMA} is read here; install one version at all sites"
        )
    fields = value.get("fields")
    odd = _odd_field(fields) if isinstance(fields, dict) else None
    return BadHeader(f"the header is not in order: {odd or problem}")


_HEADER = msgspec.json.Decoder(Header)
