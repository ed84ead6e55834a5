"""Waits for the replies to one request: asks sites again, gives up late ones, and decides when to stop.

    ask all ─► a reply ─► accept: authentic? this request's? the first? ─► use ─► settled
        │        └ damaged, lost: ask again        └ refused: recorded, settled
        └ too large: fetched in parts. A request that is too large is announced, and goes in parts: `requests.py`

Below the quorum, missing sites are asked again while there is time. Requests that nobody waits for any more
are withdrawn if the site has not begun: a site that was away for long would do all of them first.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from fedjax_core.sites.coordinator.absent import ENOUGH
from fedjax_core.sites.coordinator.contact import Contact
from fedjax_core.sites.multipart.fetch import Fetch
from fedjax_core.sites.multipart.manifest import read_manifest
from fedjax_core.sites.protocol.kinds import LACKING, PARTS
from fedjax_core.sites.protocol.request import Record
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.envelope import Envelope, Header, header_of
from fedjax_core.sites.wire.transport import Reply


class Patience(NamedTuple):
    """The time limits for the replies to one request; moments are in seconds of `time.monotonic()`."""

    began: float
    until: float
    """When all waiting ends."""
    ours: float
    """When this exchange has used its part of the round's time; it goes on only while the quorum is not
    there."""
    more: bool
    """Whether more exchanges follow in the round."""
    least: float
    """The least seconds to wait for a site that was silent."""


class Waiting:
    """The replies of sites to one request: those awaited, and those received."""

    def __init__(
        self,
        contact: Contact,
        request: Bytes | Mapping[int, Bytes],
        header: Header,
        number: int,
        positions: Sequence[int],
        fetch: Fetch,
        *,
        use: Callable[[int, Envelope], bool] | None,
        skip: Callable[[int], None] | None,
        patience: Patience,
        hasty: Collection[int],
        most: int,
        quorate: Callable[[list[int]], bool],
        record: Record,
    ) -> None:
        """`request`: one for all, with that `header`, or one for each site, none of them in parts.

        It ends with `most` replies that count; `quorate` says whether the sites here are enough.

        Sites that are `hasty` get only the time of `Patience.least` and `Rules.grace`, once the others are
        there."""
        self.good: dict[int, Envelope] = {}
        """The replies that count, by the sites' positions."""
        self.counted: dict[int, Future[Reply]] = {}
        """The futures that brought them."""
        self._contact, self._number, self._positions, self._fetch = contact, number, positions, fetch
        if isinstance(request, Mapping):
            self._requests, self._headers, self._outgoing = (
                request,
                {position: header_of(request[position]) for position in positions},
                None,
            )
        else:
            self._requests, self._headers = (
                dict.fromkeys(positions, request),
                dict.fromkeys(positions, header),
            )
            self._outgoing = contact.outgoing(request)
        self._use, self._skip, self._quorate, self._record = use, skip, quorate, record
        self._patience, self._most, self._hasty = patience, most, set(hasty)
        self._attempts = dict.fromkeys(positions, 0)
        self._settled: set[int] = set()
        self._there: set[int] = set()  # positions of sites that sent anything
        self._waiting: dict[Future[Reply], int] = {}
        self._heads: dict[
            Future[Reply], Future[Reply]
        ] = {}  # future of a reply in parts -> future of its manifest
        self._took = 0.0  # seconds until the last reply so far

    def wait(self) -> None:
        """Asks all sites and collects their replies; a site that is missing in the end has a reason in
        `Replies.reasons`."""
        attempts = self._contact.rules.attempts
        for position in self._positions:
            self._ask(position)
        for turn in range(attempts):
            self._receive_all()
            missing = [
                position
                for position in self._positions
                if position not in self._settled and position in self._waiting.values()
            ]
            over = turn + 1 == attempts or time.monotonic() >= self._patience.until
            if not missing or over or self._quorate(list(self.good)):
                break
            for position in missing:
                self._record(self._contact.names[position], "asked again", self._number, {})
                self._ask(position)
        self._fetch.close()
        self._leave()

    def _ask(self, position: int) -> None:
        self._attempts[position] += 1
        self._waiting[self._contact.ask(position, self._requests[position], self._outgoing)] = position

    def _receive_all(self) -> None:
        """Receives replies until `most` count, or nothing more is awaited."""
        while self._waiting and len(self.good) < self._most:
            end = self._end()
            done = self._fetch.wait(self._waiting, end, self._contact.rules.idle_seconds)
            now = time.monotonic()
            if done:
                self._took = now - self._patience.began
                for future in sorted(done, key=self._waiting.__getitem__):
                    self._receive(future)
            elif now >= end:
                if now >= self._end():
                    return
            elif not self._contact.goes_on(
                position for position in self._waiting.values() if position not in self._hasty
            ):
                return

    def _end(self) -> float:
        """When to stop waiting, given the replies so far."""
        patience, hasty = self._patience, self._hasty
        if (not patience.more and not hasty) or not self._quorate(list(self.good)):
            return patience.until
        # A site whose parts are arriving is not silent any more.
        hasty.difference_update([position for position in hasty if self._fetch.moved(position)])
        if hasty and hasty.issuperset(self._waiting.values()):
            grace = (self._contact.rules.grace or 0.0) * self._took
            return min(patience.ours, patience.began + max(patience.least, grace))
        return patience.ours

    def _receive(self, future: "Future[Reply]") -> None:
        position, contact = self._waiting.pop(future), self._contact
        if position in self._settled:  # asked twice, and answered twice
            contact.replies.record_late(future, position)
            return
        reply = contact.replies.accept(
            future,
            position,
            self._number,
            self._headers[position],
            self._outgoing,
            skew_seconds=contact.rules.skew_seconds,
        )
        if reply is None:
            if self._attempts[position] < contact.rules.attempts:
                self._ask(position)
        else:
            contact.silent.discard(position)
            self._there.add(position)
            if not self._in_parts(position, reply, future) and self._settle(position, reply, future):
                return
        if self._skip is not None and position not in self._waiting.values():
            self._skip(position)

    def _in_parts(self, position: int, reply: Envelope, future: "Future[Reply]") -> bool:
        """Begins a transfer if the reply comes, or the request goes, in parts; returns whether it does."""
        name = self._contact.names[position]
        if reply.header.kind == PARTS:
            whole = self._fetch.begin(position, name, read_manifest(reply, self._headers[position]))
            self._waiting[whole], self._heads[whole] = position, future
        elif reply.header.kind == LACKING and self._outgoing is not None:
            self._waiting[self._fetch.send(position, name, self._outgoing, self._outgoing.lacking(reply))] = (
                position
            )
        else:
            return False
        return True

    def _settle(self, position: int, reply: Envelope, future: "Future[Reply]") -> bool:
        """Settles a site's reply; returns whether it counts."""
        self._settled.add(position)
        self.counted[position] = self._heads.get(future, future)
        if reply.header.kind != "refusal" and (self._use is None or self._use(position, reply)):
            self.good[position] = reply if self._use is None else reply._replace(tensors={})
            return True
        del self.counted[position]
        return False

    def _leave(self) -> None:
        """Stops waiting for all sites, and notes the reasons of the missing ones."""
        contact = self._contact
        # Once enough replies are here, the others may still be on their way: they are not silent.
        awaited = set(self._waiting.values()) if len(self.good) >= self._most else set()
        contact.silent |= self._attempts.keys() - self._there - awaited
        for future, position in self._waiting.items():
            if position not in self._settled:
                seconds = time.monotonic() - self._patience.began
                contact.replies.reasons[position] = (
                    f"no reply in {seconds:.3g} s" if position in contact.silent else ENOUGH
                )
                self._record(
                    contact.names[position],
                    "missing",
                    self._number,
                    {"reason": contact.replies.reasons[position]},
                )
            contact.leave(future, position)
