"""A large request in parts, at both ends: announced to all sites alike, and delivered to each as far as it lacks it.

    a request longer than part_bytes    ─►  `announce`, signed, one for all: its length, and the SHA-256 of every part
    a site that lacks some of them      ─►  `lacking`: which
    `deliver` part i, one for all       ─►  `delivered`, once its digest fits and it is kept
    `announce` once more                ─►  a site that lacks none reads the request, and this is answered as if it had come whole

So `announce` stands for the request wherever that is asked, or asked again, and what came before a transfer was cut is not sent twice.
The policy is asked before a part comes. A length above `Limits.message_bytes`, or the policy's `caps.memory_gb`, is refused before
memory is taken. The request is signed and digested by itself, and nothing of it is read before all of it is there. A site has one such
request, its last one, in memory; a process that began anew lacks all. How parts are sent is in `fetch.py`.

>>> from fedjax_core.sites.identity import SiteKey
>>> requests = Requests("heart-1", "ab12", np.zeros((0, 2), np.uint32), SiteKey.make("coordinator"), lambda *about: None)
>>> going = Outgoing(requests.write("score", 0, to=(), body={"params": np.zeros(1000, np.float32)}), 1500, requests)
>>> len(going.contents.digests), header_of(going.part(2)).kind
(4, 'deliver')
"""

from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from fedjax_core.sites.base import Bytes
from fedjax_core.sites.caps import OverCap
from fedjax_core.sites.forms import named, place
from fedjax_core.sites.guard import Replayed
from fedjax_core.sites.parts import Assembly, BadParts, Contents, Gone, TamperedPart, contents, cut, which
from fedjax_core.sites.request import Requests
from fedjax_core.sites.wire import Envelope, Header, encode, header_of

if TYPE_CHECKING:
    from fedjax_core.sites.site import Site

ANNOUNCE, LACKING, DELIVER, DELIVERED = "announce", "lacking", "deliver", "delivered"
"""The kinds of both requests and their replies."""

_KEPT = 4
"""Parts that are kept signed, as they go to one site after another."""


class Outgoing:
    """A request that goes in parts, as the coordinator has it."""

    def __init__(self, request: Bytes, part_bytes: int, requests: Requests) -> None:
        self.request, self.contents = request, cut(request, part_bytes)
        self._requests, self._asked = requests, header_of(request)
        self.part = lru_cache(_KEPT)(partial(_part, request, self.contents, self._asked, requests))  # knows no self: no cycle to collect
        """Part `i` as it is sent, the same bytes to all sites that are nearly as far."""
        self._announcement: Bytes = b""
        self.digest = header_of(self.announcement).digest
        """By which replies name it."""

    @property
    def announcement(self) -> Bytes:
        """What is sent in the place of the request: made anew where another was since, as sites hear of nothing older than the last."""
        if not self._announcement or self._requests.announced != self.contents.of:
            fields, tensors = self.contents.fields(), {"digests": self.contents.digests}
            self._announcement = self._requests.concerning(self._asked, ANNOUNCE, fields, tensors)
            self._requests.announced = self.contents.of
        return self._announcement

    def lacking(self, said: Envelope) -> list[int]:
        """The parts that a site says it lacks; raises a `Refused` where that is not in order."""
        found = place(said.tensors, {"lacking": jax.ShapeDtypeStruct((len(self.contents.digests),), np.bool_)})["lacking"]
        if not found.any():
            raise BadParts("a site that lacks no part of a request answers the request")
        return np.flatnonzero(found).tolist()


def _part(request: Bytes, contents: Contents, asked: Header, requests: Requests, i: int) -> Bytes:
    """Part `i` in its envelope."""
    raw = np.frombuffer(request, np.uint8)[contents.place(i)]
    return requests.concerning(asked, DELIVER, {"of": contents.of, "part": i}, {"part": raw})


class Incoming(NamedTuple):
    """A request that comes in parts, as a site has it."""

    sequence: int  # of its announcement
    assembly: Assembly


def announce(site: "Site", envelope: Envelope) -> Bytes:
    """Which parts the site lacks of the request that is announced; where it lacks none, the answer to the request."""
    header, before, cap = envelope.header, site.incoming, site.terms.policy.caps.memory_gb
    said = contents(envelope, header)
    if cap is not None and said.length > cap * 1e9:
        raise OverCap(f"the request has {said.length:,} bytes, and the site gives {cap:g} GB of memory to all of its work (caps.memory_gb)")
    if before is not None and header.sequence < before.sequence:
        raise Replayed("another request has been announced since; a repeat changes nothing")
    assembly = None if before is None else before.assembly
    if assembly is None or assembly.contents.of != said.of:
        assembly = Assembly(said, assembly)
    site.incoming = Incoming(header.sequence, assembly)
    if assembly.here.all():
        return site.handle(assembly.whole)
    return encode(site.header(LACKING, header, {"of": said.of}), named({"lacking": ~assembly.here}), site.key)


def deliver(site: "Site", envelope: Envelope) -> Bytes:
    """That the site has the part that this brings."""
    header, coming = envelope.header, site.incoming
    if coming is None or header.fields.get("of") != coming.assembly.contents.of:
        raise Gone("the site does not wait for parts of that request; it is to be announced again")
    said = coming.assembly.contents
    i = which(header, said)
    where = said.place(i)
    raw = place(envelope.tensors, {"part": jax.ShapeDtypeStruct((where.stop - where.start,), np.uint8)})["part"]
    if not coming.assembly.take(i, raw.data):
        raise TamperedPart(f"what came is not part {i} of the request that was announced; announce it again")
    return encode(site.header(DELIVERED, header, {"of": said.of, "part": i}), {}, site.key)
