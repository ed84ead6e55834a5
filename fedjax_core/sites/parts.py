"""A large reply in parts: what a site says of it, and the parts themselves.

    request, with the field part_bytes  ─►  a reply that is no longer: itself
                                            a longer one: `parts`, signed: its length, and the SHA-256 of every part
    `part` i of that reply              ─►  its bytes, as they are

The digests are signed, so a part is known to be right when it comes, wherever it comes from; and what the parts are put together to
is a message that is signed and digested by itself, and is read as if it had come whole. How they are brought is in `fetch.py`. A site
has one large reply, its last one; a process that began anew has none, and is to be asked everything again.

>>> digests_of(b"abcdefgh", 3).shape
(3, 32)
>>> contents = Contents(of="", length=8, part_bytes=3, digests=digests_of(b"abcdefgh", 3))
>>> contents.fits(2, b"gh"), contents.fits(2, b"gH"), contents.fits(1, b"gh")
(True, False, False)
"""

from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedjax_core.sites.base import Bytes, Refused
from fedjax_core.sites.request import BadRequest
from fedjax_core.sites.tensors import LIMITS, Limits, Oversize, named, place
from fedjax_core.sites.wire import Envelope, Header, encode

if TYPE_CHECKING:
    from fedjax_core.sites.site import Site

PARTS = "parts"
"""The kind of a reply that says what the parts are."""

_DIGEST_BYTES = sha256().digest_size


class Gone(Refused):
    """The site has not, or no longer, the reply of which a part is asked."""

    code = "gone"


class BadParts(Refused):
    """What a site says of the parts of its reply is not in order."""

    code = "bad-parts"


class TamperedPart(Refused):
    """The part is not the one that the site signed."""

    code = "tampered-part"


class Large(NamedTuple):
    """A reply that a site gives in parts."""

    of: str  # SHA-256 of the reply
    part_bytes: int
    reply: Bytes


class Contents(NamedTuple):
    """What a `parts` envelope says: the parts of one reply, all of one length but the last."""

    of: str
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


def digests_of(reply: Bytes, part_bytes: int) -> np.ndarray:
    """[parts, 32] uint8: the SHA-256 of every part."""
    view = memoryview(reply)
    digests = b"".join(sha256(view[i : i + part_bytes]).digest() for i in range(0, len(view), part_bytes))
    return np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES)


def split(site: "Site", request: Header, reply: Bytes) -> Bytes:
    """What a site answers with: the reply, or, where it is longer than the request wants it at once, what its parts are."""
    part_bytes = request.fields.get("part_bytes")
    if type(part_bytes) is not int or part_bytes < 1 or len(reply) <= part_bytes:
        return reply
    site.large = Large(sha256(reply).hexdigest(), part_bytes, reply)
    said = site.header(PARTS, request, {"of": site.large.of, "length": len(reply)})
    return encode(said, named({"digests": digests_of(reply, part_bytes)}), site.key)


def part(site: "Site", envelope: Envelope) -> Bytes:
    """One part of the site's last large reply, which its ledger has had since it was made."""
    fields, large = envelope.header.fields, site.large
    if large is None or fields.get("of") != large.of:
        raise Gone("the site does not have that reply any more; it is to be asked everything again")
    i = fields.get("part")
    if type(i) is not int or not 0 <= i * large.part_bytes < len(large.reply):
        raise BadRequest("the request needs the field 'part', one of those that there are")
    return large.reply[i * large.part_bytes : (i + 1) * large.part_bytes]


def contents(said: Envelope, asked: Header, limits: Limits = LIMITS) -> Contents:
    """What an authentic `parts` envelope says in answer to the request that was `asked`; raises a `Refused` where it is not in order."""
    part_bytes = asked.fields.get("part_bytes")
    if type(part_bytes) is not int:
        raise BadParts("the reply comes in parts, which it was not asked for")
    of, length = said.header.fields.get("of"), said.header.fields.get("length")
    if not isinstance(of, str) or type(length) is not int or length <= part_bytes:
        raise BadParts(f"a reply in parts has a digest and is longer than the {part_bytes:,} bytes that may come at once")
    if length > limits.message_bytes:
        raise Oversize(f"the reply has {length:,} bytes, and at most {limits.message_bytes:,} are read; raise Limits.message_bytes")
    parts = -(-length // part_bytes)
    found = place(said.tensors, {"digests": np.empty((parts, _DIGEST_BYTES), np.uint8)})
    return Contents(of, length, part_bytes, found["digests"])
