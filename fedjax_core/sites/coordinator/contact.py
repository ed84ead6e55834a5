"""The coordinator's line to its sites: sends a request, reads what is replied, in one piece or in parts, and
stops waiting for it.

How long a reply is waited for, and how many are enough, is for those who use it: `waiting.py` has one
deadline for all sites, `calls.py` one for each.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from fedjax_core.sites.coordinator.replies import Replies
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.multipart.fetch import Fetch
from fedjax_core.sites.multipart.requests import OutgoingRequest
from fedjax_core.sites.protocol.request import Record, Requests
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.transport import Reply, Transport, first_of, take_back


class Contact:
    """Asks sites, by their positions, and brings what they reply."""

    def __init__(
        self,
        requests: Requests,
        names: Sequence[str],
        transport: Transport,
        roster: Roster,
        rules: Rules,
        record: Record,
    ) -> None:
        self.names, self.rules = list(names), rules
        self.away: dict[str, str] = dict(getattr(transport, "away", {}))
        """The sites of which the transport knows why they are not there, by their names."""
        self.silent: set[int] = set()
        """Sites that did not answer when they were last waited for, and of which nothing came since."""
        self.replies = Replies(requests.run, self.names, roster, record)
        """Which has the reasons of those whose reply does not count."""
        self._transport, self._roster, self._record, self._requests = transport, roster, record, requests
        self._late: dict[Future[Reply], int] = {}
        self._steps: dict[str, int] = {}
        self._outgoing: OutgoingRequest | None = None

    @property
    def part_bytes(self) -> int | None:
        """Messages that are longer move in parts; None where bytes do not travel, as in a store that all
        processes of a machine share."""
        return None if getattr(self._transport, "near", False) else self.rules.part_bytes

    def ask(self, position: int, request: Bytes, outgoing: OutgoingRequest | None) -> "Future[Reply]":
        """The reply, once it is there, of the site at this position."""
        return self._transport.send(
            self.names[position], request if outgoing is None else outgoing.announcement
        )

    def done(self, future: "Future[Reply]") -> bool:
        """Whether this reply is there now."""
        return bool(first_of(self._transport, [future], 0.0))

    def outgoing(self, request: Bytes) -> OutgoingRequest | None:
        """How a request goes that is too large to go at once; None for others. The last one is kept, for all
        whom it goes to."""
        part_bytes = self.part_bytes
        if part_bytes is None or len(request) <= part_bytes:
            return None
        last = self._outgoing
        if last is None or last.request is not request or last.manifest.part_bytes != part_bytes:
            last = self._outgoing = OutgoingRequest(request, part_bytes, self._requests)
        return last

    def leave(self, future: "Future[Reply]", position: int) -> None:
        """Nobody waits any more for this reply of the site at this position: it is not begun, or recorded
        when it comes."""
        self._late[future] = position
        take_back(self._transport, future)

    def record_late(self) -> None:
        """Records the replies that came since nobody waited for them."""
        while done := first_of(self._transport, self._late, 0.0) if self._late else ():
            for future in done:
                position = self._late.pop(future)
                if self.replies.record_late(future, position):
                    self.silent.discard(position)

    def goes_on(self, positions: Iterable[int]) -> bool:
        """Whether one of these sites has done steps since it was last looked at."""
        progress: Callable[[str], int] | None = getattr(self._transport, "progress", None)
        if progress is None:
            return False
        now = {self.names[position]: progress(self.names[position]) for position in positions}
        moved = any(steps > self._steps.get(name, 0) for name, steps in now.items())
        self._steps |= now
        return moved

    def fetch(
        self, positions: Sequence[int], request: Callable[[str, int], Bytes], number: Callable[[], int]
    ) -> Fetch:
        """What brings replies in parts, those first that come first in these positions: `request` (the
        reply's digest, part) is what to send, and `number` is the round that the audit log has it under.
        """
        return Fetch(
            self._transport,
            self._roster,
            positions,
            request,
            lambda party, what, details: self._record(party, what, number(), details),
        )

    def failure(self, positions: Iterable[int]) -> Exception | None:
        """What the user's own code raised at one of these sites, where they are in this process."""
        failures: dict[str, Exception] = getattr(self._transport, "failures", {})
        return next((failures[self.names[p]] for p in positions if self.names[p] in failures), None)
