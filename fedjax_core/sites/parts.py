"""A large reply in parts: what a site says of it, and the parts themselves. A large request goes likewise: `announce.py`.

    request, with the field part_bytes  ─►  a reply that is no longer: itself
                                            a longer one: `parts`, signed: its length, and the SHA-256 of every part
    `part` i of that reply              ─►  its bytes, as they are

The digests are signed, so a part is known to be right when it comes, wherever it comes from; and what the parts are put together to
is a message that is signed and digested by itself, and is read as if it had come whole. How they move is in `fetch.py`. A site
has one large reply, its last one; a process that began anew has none, and is to be asked everything again.

>>> digests_of(b"abcdefgh", 3).shape
(3, 32)
>>> contents = Contents(of="", length=8, part_bytes=3, digests=digests_of(b"abcdefgh", 3))
>>> contents.fits(2, b"gh"), contents.fits(2, b"gH"), contents.fits(1, b"gh")
(True, False, False)
>>> assembly = Assembly(contents)
>>> [assembly.take(i, raw) for i, raw in ((2, b"gh"), (0, b"abc"), (1, b"dEf"), (1, b"def"))], bytes(assembly.whole)
([True, True, False, True], b'abcdefgh')
"""

from hashlib import sha256
from typing import NamedTuple

import jax
import numpy as np

from fedjax_core.sites.base import Bytes, Refused, Scalar
from fedjax_core.sites.forms import place
from fedjax_core.sites.request import BadRequest
from fedjax_core.sites.tensors import LIMITS, Limits, Oversize, room
from fedjax_core.sites.wire import Envelope, Header

_DIGEST_BYTES = sha256().digest_size


class Gone(Refused):
    """The site has not, or no longer, the message that a part is of."""

    code = "gone"


class BadParts(Refused):
    """What is said of the parts of a message is not in order."""

    code = "bad-parts"


class TamperedPart(Refused):
    """The part is not the one whose digest was signed."""

    code = "tampered-part"


class Contents(NamedTuple):
    """What is said of one message: its parts, all of one length but the last."""

    of: str  # by what the message is called: SHA-256 of the digests
    length: int
    part_bytes: int
    digests: np.ndarray  # [parts, 32] uint8

    def place(self, i: int) -> slice:
        """Where part `i` belongs."""
        return slice(i * self.part_bytes, min((i + 1) * self.part_bytes, self.length))

    def fits(self, i: int, raw: Bytes) -> bool:
        """Whether this is part `i`."""
        where, view = self.place(i), memoryview(raw).cast("B")
        return len(view) == where.stop - where.start and sha256(view).digest() == self.digests[i].tobytes()

    def fields(self) -> dict[str, Scalar]:
        """Of the envelope that says this, whose tensors are the `digests`."""
        return {"of": self.of, "length": self.length, "part_bytes": self.part_bytes}


class Assembly:
    """A message that is put together of its parts, in whatever order they come; memory is taken with the first of them.

    Of one `before` that did not become whole, the parts that are the same in this one are here.
    """

    def __init__(self, contents: Contents, before: "Assembly | None" = None) -> None:
        self.contents = contents
        self._raw: np.ndarray | None = None
        self.here = np.zeros(len(contents.digests), bool)
        # Of one that is whole others may have views: its memory is not written to any more.
        if before is not None and before.contents[1:3] == contents[1:3] and not before.here.all():
            self._raw, self.here = before._raw, before.here & (before.contents.digests == contents.digests).all(axis=1)

    def take(self, i: int, raw: Bytes) -> bool:
        """Whether this is part `i`, which is then here."""
        if not self.contents.fits(i, raw):
            return False
        if not self.here[i]:
            self._raw = room(self.contents.length) if self._raw is None else self._raw
            self._raw[self.contents.place(i)] = np.frombuffer(raw, np.uint8)
            self.here[i] = True
        return True

    @property
    def whole(self) -> memoryview:
        """The message, of which all parts must be here."""
        assert self._raw is not None and self.here.all()
        return self._raw.data.toreadonly()


class Outbox:
    """The last reply of a site that was too large to travel at once, which the site's ledger has had since it was made."""

    def __init__(self) -> None:
        self._large: tuple[Contents, Bytes] | None = None

    def split(self, request: Header, reply: Bytes) -> Contents | None:
        """What the parts of the reply are, where it is longer than the request wants it at once; it is then kept. None: it is not."""
        part_bytes = request.fields.get("part_bytes")
        if type(part_bytes) is not int or part_bytes < 1 or len(reply) <= part_bytes:
            return None
        said = cut(reply, part_bytes)
        self._large = said, reply
        return said

    def part(self, request: Header) -> Bytes:
        """The part of that reply that is asked for; raises `Gone` where it is another reply's."""
        if self._large is None or request.fields.get("of") != self._large[0].of:
            raise Gone("the site does not have that reply any more; it is to be asked everything again")
        said, reply = self._large
        return reply[said.place(which(request, said))]


def digests_of(message: Bytes, part_bytes: int) -> np.ndarray:
    """[parts, 32] uint8: the SHA-256 of every part."""
    view = memoryview(message)
    digests = b"".join(sha256(view[i : i + part_bytes]).digest() for i in range(0, len(view), part_bytes))
    return np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES)


def cut(message: Bytes, part_bytes: int) -> Contents:
    """The parts that a message is sent in."""
    digests = digests_of(message, part_bytes)
    return Contents(sha256(digests.data).hexdigest(), len(message), part_bytes, digests)


def which(header: Header, contents: Contents) -> int:
    """The part that a request is about."""
    i = header.fields.get("part")
    if type(i) is not int or not 0 <= i < len(contents.digests):
        raise BadRequest("the request needs the field 'part', one of those that there are")
    return i


def contents(said: Envelope, asked: Header, limits: Limits = LIMITS) -> Contents:
    """What an authentic envelope says of the parts of a message, each of the length that was `asked` for.

    Takes no memory for them; raises a `Refused` where it is not in order.
    """
    part_bytes = asked.fields.get("part_bytes")
    if type(part_bytes) is not int or part_bytes < 1:
        raise BadParts("a message comes in parts, and nobody said of how many bytes")
    of, length = said.header.fields.get("of"), said.header.fields.get("length")
    if not isinstance(of, str) or type(length) is not int or length <= part_bytes:
        raise BadParts(f"a message in parts has a digest and is longer than the {part_bytes:,} bytes that may come at once")
    if length > limits.message_bytes:
        raise Oversize(f"the message has {length:,} bytes, and at most {limits.message_bytes:,} are read; raise Limits.message_bytes")
    parts = -(-length // part_bytes)
    found = place(said.tensors, {"digests": jax.ShapeDtypeStruct((parts, _DIGEST_BYTES), np.uint8)})
    return Contents(of, length, part_bytes, np.array(found["digests"]))  # and nothing else of the message
