"""The coordinator's connection to its sites: sends requests, and fetches replies whole or in parts.

Its users decide how long to wait and for how many: `waiting.py` has one deadline for all sites, `calls.py`
one for each.
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
    """Asks sites, by their positions, and fetches their replies."""

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
        """{name: reason} of the sites that the transport knows to be away."""
        self.silent: set[int] = set()
        """Sites that did not answer when last waited for, and sent nothing since."""
        self.replies = Replies(requests.run, self.names, roster, record)
        """Authenticates replies, and has the reasons of the sites whose reply does not count."""
        self._transport, self._roster, self._record, self._requests = transport, roster, record, requests
        self._late: dict[Future[Reply], int] = {}
        self._steps: dict[str, int] = {}
        self._outgoing: OutgoingRequest | None = None

    @property
    def part_bytes(self) -> int | None:
        """The length above which messages move in parts; None if all sites share a store on one machine."""
        return None if getattr(self._transport, "near", False) else self.rules.part_bytes

    def ask(self, position: int, request: Bytes, outgoing: OutgoingRequest | None) -> "Future[Reply]":
        """Sends a request to the site at this position: the future of its reply."""
        return self._transport.send(
            self.names[position], request if outgoing is None else outgoing.announcement
        )

    def done(self, future: "Future[Reply]") -> bool:
        """Whether this reply has arrived."""
        return bool(first_of(self._transport, [future], 0.0))

    def outgoing(self, request: Bytes) -> OutgoingRequest | None:
        """The transfer of a request that is too large to go at once, kept for the other sites; None for
        others."""
        part_bytes = self.part_bytes
        if part_bytes is None or len(request) <= part_bytes:
            return None
        last = self._outgoing
        if last is None or last.request is not request or last.manifest.part_bytes != part_bytes:
            last = self._outgoing = OutgoingRequest(request, part_bytes, self._requests)
        return last

    def leave(self, future: "Future[Reply]", position: int) -> None:
        """Stops waiting for a reply: the site need not begin the work, and a late reply is only recorded."""
        self._late[future] = position
        take_back(self._transport, future)

    def record_late(self) -> None:
        """Records the late replies that have arrived."""
        while done := first_of(self._transport, self._late, 0.0) if self._late else ():
            for future in done:
                position = self._late.pop(future)
                if self.replies.record_late(future, position):
                    self.silent.discard(position)

    def goes_on(self, positions: Iterable[int]) -> bool:
        """Whether one of these sites has done steps since the last look."""
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
        """A `Fetch` of replies in parts, in the order of these positions.

        `request` (the reply's digest, part) gives the request for a part; `number` gives the round for the
        audit log.
        """
        return Fetch(
            self._transport,
            self._roster,
            positions,
            request,
            lambda party, what, details: self._record(party, what, number(), details),
        )

    def failure(self, positions: Iterable[int]) -> Exception | None:
        """The exception of the user's own code at one of these sites, if they are in this process."""
        failures: dict[str, Exception] = getattr(self._transport, "failures", {})
        return next((failures[self.names[p]] for p in positions if self.names[p] in failures), None)
