"""Large requests in parts, at both ends: announced to all sites, and delivered as far as each lacks them.

    a request longer than part_bytes    ─►  `announce`, signed, one for all: its length, and the SHA-256 of every part
    a site that lacks some of them      ─►  `lacking`: which
    `deliver` part i, one for all       ─►  `delivered`, once its digest fits and it is kept
    `announce` once more                ─►  a site that lacks none reads the request, and this is answered as if it had come whole

So `announce` stands for the request whenever it is sent or repeated, and parts that arrived before a transfer
was cut are not sent twice. The policy is asked before a part comes. A length above `Limits.message_bytes`, or
the policy's `caps.memory_gb`, is refused before memory is allocated. The request has its own signature and
digest, and nothing of it is read before all of it is there. A site keeps one such request, its last one, in
memory; a restarted process lacks all parts. `fetch.py` sends the parts.

>>> from fedjax_core.sites.wire.identity import SiteKey
>>> requests = Requests("heart-1", "ab12", np.zeros((0, 2), np.uint32), SiteKey.make("coordinator"), lambda *entry: None)
>>> going = OutgoingRequest(requests.write("score", 0, to=(), body={"params": np.zeros(1000, np.float32)}), 1500, requests)
>>> len(going.manifest.digests), header_of(going.part(2)).kind
(4, 'deliver')
"""

from functools import lru_cache, partial

import jax
import numpy as np

from fedjax_core.sites.multipart.manifest import (
    Assembly,
    BadParts,
    Gone,
    Manifest,
    TamperedPart,
    manifest_of,
    part_index,
)
from fedjax_core.sites.protocol.kinds import ANNOUNCE, DELIVER
from fedjax_core.sites.protocol.request import Requests
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.envelope import Envelope, Header, header_of
from fedjax_core.sites.wire.replay import Replayed
from fedjax_core.sites.wire.trees import from_tensors

_KEPT = 4
"""How many signed parts are cached, as they go to one site after another."""


class OutgoingRequest:
    """The coordinator's side of a request in parts."""

    def __init__(self, request: Bytes, part_bytes: int, requests: Requests) -> None:
        self.request, self.manifest = request, manifest_of(request, part_bytes)
        self._requests, self._asked = requests, header_of(request)
        # A partial of plain values, not of self, so that there is no reference cycle.
        self.part = lru_cache(_KEPT)(partial(_part, request, self.manifest, self._asked, requests))
        """Gives part `i` in its signed envelope; the last few are cached, for sites that are nearly as
        far."""
        self._announcement: Bytes = b""
        self.digest = header_of(self.announcement).digest
        """The digest by which replies name the announcement."""

    @property
    def announcement(self) -> Bytes:
        """The message sent in place of the request; made anew if another was announced since, as sites accept
        nothing older."""
        if not self._announcement or self._requests.announced != self.manifest.digest:
            fields, tensors = self.manifest.fields(), {"digests": self.manifest.digests}
            self._announcement = self._requests.concerning(self._asked, ANNOUNCE, fields, tensors)
            self._requests.announced = self.manifest.digest
        return self._announcement

    def lacking(self, envelope: Envelope) -> list[int]:
        """The parts that a site says it lacks; raises a `Refused` if the reply is not in order."""
        missing = from_tensors(
            envelope.tensors, {"lacking": jax.ShapeDtypeStruct((len(self.manifest.digests),), np.bool_)}
        )["lacking"]
        if not missing.any():
            raise BadParts("a site that lacks no part of a request answers the request")
        return np.flatnonzero(missing).tolist()


def _part(request: Bytes, manifest: Manifest, header: Header, requests: Requests, i: int) -> Bytes:
    """Part `i` in its envelope."""
    raw = np.frombuffer(request, np.uint8)[manifest.place(i)]
    return requests.concerning(header, DELIVER, {"of": manifest.digest, "part": i}, {"part": raw})


class Inbox:
    """The site's side: the last request that comes in parts."""

    def __init__(self) -> None:
        self.assembly: Assembly | None = None
        self._sequence = 0  # of its announcement

    def announce(self, manifest: Manifest, sequence: int) -> Assembly:
        """The assembly for an announced request; `sequence`: the number of the announcement."""
        before = self.assembly
        if before is not None and sequence < self._sequence:
            raise Replayed("another request has been announced since; a repeat changes nothing")
        coming = (
            before
            if before is not None and before.manifest.digest == manifest.digest
            else Assembly(manifest, before)
        )
        self.assembly, self._sequence = coming, sequence
        return coming

    def deliver(self, envelope: Envelope) -> int:
        """Takes the part in a message, and returns its index."""
        header, coming = envelope.header, self.assembly
        if coming is None or header.fields.get("of") != coming.manifest.digest:
            raise Gone("the site does not wait for parts of that request; it is to be announced again")
        i = part_index(header, coming.manifest)
        where = coming.manifest.place(i)
        raw = from_tensors(
            envelope.tensors, {"part": jax.ShapeDtypeStruct((where.stop - where.start,), np.uint8)}
        )["part"]
        if not coming.take(i, raw.data):
            raise TamperedPart(
                f"what came is not part {i} of the request that was announced; announce it again"
            )
        return i
