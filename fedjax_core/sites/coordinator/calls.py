"""`Calls`: the outstanding requests of asynchronous rounds, each with its own retries and deadline.

    begin(site, version, request) ─► Call ─► next() ─► its reply
                                       │ └ damaged, lost: asked again       └ too large, or the request: in parts
                                       └ no reply within `deadline_seconds`, no progress for `idle_seconds`: given up

Every site has its own deadline, from its own request on. If a site was asked twice, its first reply counts,
whichever request it answers. A site that is given up is free, and may get a new request; what it still sends
for the old one is refused as late.
"""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from fedjax_core.sites.coordinator.contact import Contact
from fedjax_core.sites.multipart.manifest import read_manifest
from fedjax_core.sites.multipart.requests import OutgoingRequest
from fedjax_core.sites.protocol.kinds import LACKING, PARTS
from fedjax_core.sites.protocol.request import Record, Requests
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.envelope import Envelope, Header, header_of
from fedjax_core.sites.wire.transport import Reply


@dataclass
class Call:
    """A request that a site works on."""

    version: int  # of the model that was sent
    request: Bytes
    header: Header
    replies: "list[Future[Reply]]"  # the awaited futures, one for each time that the site was asked
    until: float  # when the call is given up, by time.monotonic()
    look: float  # when to check for progress
    outgoing: OutgoingRequest | None  # the request's transfer, if in parts
    times: int = 1  # how often the site was asked
    parts: int = 0  # parts moved by the last check


class Completed(NamedTuple):
    """A site that is free again, with its reply."""

    position: int
    version: int
    header: Header
    reply: Envelope | None  # None: no valid reply; the reason is recorded


class Calls:
    """The outstanding calls, by the sites' positions."""

    def __init__(self, requests: Requests, contact: Contact, record: Record) -> None:
        self.number = 0
        """The newest version, which is the round number of entries in the audit log."""
        self._contact, self._record = contact, record
        self._all: dict[int, Call] = {}
        self._fetch = contact.fetch(
            range(len(contact.names)),
            lambda digest, part: requests.part(self._large[digest], digest, part),
            lambda: self.number,
        )
        self._large: dict[str, Header] = {}  # digest of a reply in parts -> its request's header

    def begin(self, position: int, version: int, request: Bytes) -> None:
        """Asks the site at this position to train from this version."""
        header, now, rules = header_of(request), time.monotonic(), self._contact.rules
        self._record(
            self._contact.names[position], "began", self.number, {"version": version, "digest": header.digest}
        )
        until = now + rules.deadline_seconds
        outgoing = self._contact.outgoing(request)
        reply, moved = self._contact.ask(position, request, outgoing), self._fetch.moved(position)
        self._all[position] = Call(
            version, request, header, [reply], until, self._next_look(until), outgoing, parts=moved
        )

    def next(self, oldest: int) -> Completed | None:
        """Waits for the next site that is free again; None if none is at work. Large reports from below
        `oldest` are not fetched.

        Of several replies at once, the one from the oldest model comes first, then the first by position."""
        while self._all:
            waiting = {reply: position for position, call in self._all.items() for reply in call.replies}
            done = self._fetch.wait(waiting, min(call.look for call in self._all.values()), None)
            if done:
                reply = min(
                    (r for r in waiting if r in done),
                    key=lambda r: (self._all[waiting[r]].version, waiting[r]),
                )
                completed = self._receive(waiting[reply], reply, oldest)
            else:
                completed = self._look()
            if completed is not None:
                return completed
        return None

    def clear(self) -> None:
        """Stops waiting for all sites."""
        for position in list(self._all):
            self._leave(position)

    def _receive(self, position: int, reply: "Future[Reply]", oldest: int) -> Completed | None:
        call = self._all[position]
        call.replies.remove(reply)
        envelope = self._contact.replies.accept(
            reply,
            position,
            self.number,
            call.header,
            call.outgoing,
            skew_seconds=self._contact.rules.skew_seconds,
        )
        if envelope is None and call.times < self._contact.rules.attempts:
            self._ask_again(position)
            return None
        if envelope is not None and envelope.header.kind == PARTS and call.version >= oldest:
            manifest = read_manifest(envelope, call.header)
            self._large[manifest.digest] = call.header
            _await(call, self._fetch.begin(position, self._contact.names[position], manifest))
            return None
        if (
            envelope is not None
            and envelope.header.kind == LACKING
            and call.outgoing is not None
            and call.version >= oldest
        ):
            _await(
                call,
                self._fetch.send(
                    position, self._contact.names[position], call.outgoing, call.outgoing.lacking(envelope)
                ),
            )
            return None
        if envelope is None and call.replies:
            return None
        self._leave(position)
        refused = envelope is None or envelope.header.kind == "refusal"
        return Completed(position, call.version, call.header, None if refused else envelope)

    def _look(self) -> Completed | None:
        """Looks at the sites that are due: asks silent ones again, and returns the first that is given up."""
        now = time.monotonic()
        for position in [position for position, call in self._all.items() if call.look <= now]:
            call, moved, name = (
                self._all[position],
                self._fetch.moved(position),
                self._contact.names[position],
            )
            if now < call.until and (self._contact.goes_on([position]) or moved > call.parts):
                call.parts, call.look = moved, self._next_look(call.until)
            elif now < call.until and call.times < self._contact.rules.attempts:
                self._record(name, "asked again", self.number, {"version": call.version})
                self._ask_again(position)
            else:
                reason = "no reply in time" if now >= call.until else "no sign of life"
                self._contact.replies.reasons[position] = reason
                self._record(name, "missing", self.number, {"reason": reason, "version": call.version})
                self._leave(position)
                return Completed(position, call.version, call.header, None)
        return None

    def _ask_again(self, position: int) -> None:
        """Sends the same bytes again; a site that has answered them gives the same reply."""
        call = self._all[position]
        call.times += 1
        call.replies.append(self._contact.ask(position, call.request, call.outgoing))
        call.look = self._next_look(call.until)

    def _next_look(self, until: float) -> float:
        idle = self._contact.rules.idle_seconds
        return until if idle is None else min(until, time.monotonic() + idle)

    def _leave(self, position: int) -> None:
        call = self._all.pop(position)
        self._fetch.drop(position)
        self._large = {
            digest: header
            for digest, header in self._large.items()
            if any(header is f.header for f in self._all.values())
        }
        for reply in call.replies:
            self._contact.leave(reply, position)


def _await(call: Call, moved: "Future[Reply]") -> None:
    """Adds a transfer in parts to the awaited replies, unless it goes on from before the site was asked
    again."""
    if moved not in call.replies:
        call.replies.append(moved)
