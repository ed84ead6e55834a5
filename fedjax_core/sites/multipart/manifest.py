"""`Manifest` and `Assembly`: the parts of a large request or reply, and their assembly into the message.

    the message is longer than part_bytes  ─►  its length, and the SHA-256 of every part, in an envelope that is signed

The digests are signed, so each part can be verified when it arrives, wherever it comes from. The assembled
message has its own signature and digest, and is read as if it had come whole. `fetch.py` moves the parts.

>>> digests_of(b"abcdefgh", 3).shape
(3, 32)
>>> manifest = Manifest(digest="", length=8, part_bytes=3, digests=digests_of(b"abcdefgh", 3))
>>> manifest.fits(2, b"gh"), manifest.fits(2, b"gH"), manifest.fits(1, b"gh")
(True, False, False)
>>> assembly = Assembly(manifest)
>>> [assembly.take(i, raw) for i, raw in ((2, b"gh"), (0, b"abc"), (1, b"dEf"), (1, b"def"))], bytes(assembly.whole)
([True, True, False, True], b'abcdefgh')
"""

from hashlib import sha256
from typing import NamedTuple

import jax
import numpy as np

from fedjax_core.sites.protocol.request import BadRequest
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import Bytes, Scalar
from fedjax_core.sites.wire.envelope import Envelope, Header
from fedjax_core.sites.wire.tensors import LIMITS, Limits, Oversize, aligned_buffer
from fedjax_core.sites.wire.trees import from_tensors

_DIGEST_BYTES = sha256().digest_size


class Gone(Refused):
    """The site does not have, or no longer has, the message of a part."""

    code = "gone"


class BadParts(Refused):
    """The manifest of a message is not in order."""

    code = "bad-parts"


class TamperedPart(Refused):
    """The part is not the one whose digest was signed."""

    code = "tampered-part"


class Manifest(NamedTuple):
    """The description of one message in parts, all of one length but the last."""

    digest: str  # the message's name: SHA-256 of the digests
    length: int
    part_bytes: int
    digests: np.ndarray  # [parts, 32] uint8

    def place(self, i: int) -> slice:
        """The place of part `i` in the message."""
        return slice(i * self.part_bytes, min((i + 1) * self.part_bytes, self.length))

    def fits(self, i: int, raw: Bytes) -> bool:
        """Whether this is part `i`."""
        where, view = self.place(i), memoryview(raw).cast("B")
        return len(view) == where.stop - where.start and sha256(view).digest() == self.digests[i].tobytes()

    def fields(self) -> dict[str, Scalar]:
        """The fields of the manifest's envelope, whose tensors are the `digests`."""
        return {"of": self.digest, "length": self.length, "part_bytes": self.part_bytes}


class Assembly:
    """A message assembled from its parts, in any order; memory is allocated with the first part.

    Parts of an unfinished assembly `before` that are the same in this one are taken over.
    """

    def __init__(self, manifest: Manifest, before: "Assembly | None" = None) -> None:
        self.manifest = manifest
        self._raw: np.ndarray | None = None
        self.here = np.zeros(len(manifest.digests), bool)
        # Others may have views of a finished assembly, so its memory is not written to any more.
        if before is not None and before.manifest[1:3] == manifest[1:3] and not before.here.all():
            self._raw, self.here = (
                before._raw,
                before.here & (before.manifest.digests == manifest.digests).all(axis=1),
            )

    def take(self, i: int, raw: Bytes) -> bool:
        """Takes part `i`; returns whether it fits."""
        if not self.manifest.fits(i, raw):
            return False
        if not self.here[i]:
            self._raw = aligned_buffer(self.manifest.length) if self._raw is None else self._raw
            self._raw[self.manifest.place(i)] = np.frombuffer(raw, np.uint8)
            self.here[i] = True
        return True

    @property
    def whole(self) -> memoryview:
        """The assembled message; all parts must be here."""
        assert self._raw is not None and self.here.all()
        return self._raw.data.toreadonly()


def digests_of(message: Bytes, part_bytes: int) -> np.ndarray:
    """[parts, 32] uint8: the SHA-256 of every part."""
    view = memoryview(message)
    digests = b"".join(sha256(view[i : i + part_bytes]).digest() for i in range(0, len(view), part_bytes))
    return np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES)


def manifest_of(message: Bytes, part_bytes: int) -> Manifest:
    """The manifest of a message."""
    digests = digests_of(message, part_bytes)
    return Manifest(sha256(digests.data).hexdigest(), len(message), part_bytes, digests)


def part_index(header: Header, manifest: Manifest) -> int:
    """The index of the part that a request names."""
    i = header.fields.get("part")
    if type(i) is not int or not 0 <= i < len(manifest.digests):
        raise BadRequest("the request needs the field 'part', one of those that there are")
    return i


def read_manifest(envelope: Envelope, request: Header, limits: Limits = LIMITS) -> Manifest:
    """Reads a manifest from an authentic envelope, for parts of the length that the `request` asked for.

    Allocates no memory for the parts; raises a `Refused` if the manifest is not in order.
    """
    part_bytes = request.fields.get("part_bytes")
    if type(part_bytes) is not int or part_bytes < 1:
        raise BadParts("a message comes in parts, and nobody said of how many bytes")
    digest, length = envelope.header.fields.get("of"), envelope.header.fields.get("length")
    if not isinstance(digest, str) or type(length) is not int or length <= part_bytes:
        raise BadParts(
            f"a message in parts has a digest and is longer than the {part_bytes:,} bytes that may come at once"
        )
    if length > limits.message_bytes:
        raise Oversize(
            f"the message has {length:,} bytes, and at most {limits.message_bytes:,} are read; raise Limits.message_bytes"
        )
    parts = -(-length // part_bytes)
    tensors = from_tensors(
        envelope.tensors, {"digests": jax.ShapeDtypeStruct((parts, _DIGEST_BYTES), np.uint8)}
    )
    # A copy of the digests, so that the rest of the message can be freed.
    return Manifest(digest, length, part_bytes, np.array(tensors["digests"]))
