"""Moves large messages part by part: of what is lost or damaged only that is sent again, and what has come
stays.

    manifest ─► ask for IN_FLIGHT parts ─► digest? ─► in its place, and ask for the next ─► ... ─► the reply
                        └ lost: again, a little later     └ damaged: again

    lacking ─► deliver IN_FLIGHT parts ─► the site has it? ─► deliver the next ─► ... ─► announce once more ─► what comes of that

`AT_ONCE` replies are brought at a time, those first that come first in the cohort, so the coordinator has
room for so many; a request goes to all sites at a time, as it is there once. The memory of a reply is taken
as its parts come, whatever length a site says that it has. A message of which a part does not get through
after `TRIES` is given up. Where the site is then asked once more, only the parts that are missing move: of a
request those that it says it lacks, and of a reply those that differ, as in its head after a restart. Nothing
runs beside the caller: all of this is done while it waits for replies, in `wait`.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from fedjax_core.sites.multipart.manifest import Manifest, TamperedPart
from fedjax_core.sites.multipart.requests import OutgoingRequest
from fedjax_core.sites.multipart.transfer import Coming, Going, Transfer
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import Bytes, Scalar
from fedjax_core.sites.wire.envelope import COORDINATOR, decode
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.transport import Reply, Transport, bring, first_of

IN_FLIGHT, AT_ONCE = 2, 4
"""Parts of a message that are under way, and replies that are brought, at a time."""

TRIES, PAUSE_SECONDS = 8, 0.1
"""How often a part is sent, and how long after it was lost for the first time; each time twice as long."""

_Way = tuple[int, type[Transfer]]  # the position of a site, and whether a reply is coming or a request going


class Stuck(ConnectionError):
    """A message did not get through: its parts were lost, damaged or refused, or it kept others waiting."""


class Fetch:
    """The transfers of one exchange, by the positions of sites, in the order in which they are wanted."""

    def __init__(
        self,
        transport: Transport,
        roster: Roster,
        order: Sequence[int],
        request: Callable[[str, int], Bytes],
        record: Callable[[str, str, dict[str, Scalar]], None],
    ) -> None:
        """`request` (the reply's digest, part) is what to send; `record` (site, what, about) is for the audit
        log."""
        self._transport, self._roster, self._request, self._record = transport, roster, request, record
        self._rank = {position: rank for rank, position in enumerate(order)}
        self._all: dict[_Way, Transfer] = {}
        self._queue: list[int] = []
        self._active: set[int] = set()
        # future -> (message, part); part None: the reply to the whole request
        self._flying: dict[Future[Any], tuple[_Way, int | None]] = {}
        self._pauses: set[Future[Any]] = set()
        self._moved: dict[int, int] = {}

    def begin(self, position: int, name: str, manifest: Manifest) -> Future[Reply]:
        """The future of the reply from the site at this position, brought while somebody is in `wait`; read
        it once, it is not kept."""
        way = position, Coming
        self._stop(way)
        transfer = self._all[way] = Coming(name, manifest, self._all.get(way), self._request)
        self._queue.append(position)
        self._start()
        return transfer.done

    def send(
        self, position: int, name: str, outgoing: OutgoingRequest, lacking: Iterable[int]
    ) -> Future[Reply]:
        """The future of what the site at this position replies to a request, once it has got the parts that
        it lacks."""
        way = position, Going
        self._stop(way)
        transfer = self._all[way] = Going(name, outgoing, lacking, self._all.get(way), self._roster)
        if transfer.times > TRIES:
            self._give_up(way, f"{name!r} lacks parts of the request again and again")
        for _ in range(IN_FLIGHT):
            self._next(way)
        return transfer.done

    def wait(
        self, replies: Collection[Future[Reply]], until: float, idle_seconds: float | None
    ) -> set[Future[Reply]]:
        """Those of the replies that are done; none where it is `until`, or where neither a reply nor a part
        moved for `idle_seconds`."""
        moved = time.monotonic()
        while True:
            last = until if idle_seconds is None else min(until, moved + idle_seconds)
            done = first_of(self._transport, [*replies, *self._flying], max(0.0, last - time.monotonic()))
            parts = done & self._flying.keys()
            for future in parts:
                if future in self._flying and self._take(future):  # one before it may have ended the transfer
                    moved = time.monotonic()
            if not done and time.monotonic() < until:
                self._make_room()
            # A part may have completed a reply.
            ready = {future for future in replies if future.done()} if parts else done
            if ready or not done or time.monotonic() >= until:
                return ready

    def moved(self, position: int) -> int:
        """How many parts have come from the site at this position, or gone to it, in all."""
        return self._moved.get(position, 0)

    def drop(self, position: int) -> None:
        """Awaits nothing more of the site at this position, and keeps nothing of it."""
        for way in ((position, Coming), (position, Going)):
            self._stop(way)
            if way in self._all:
                self._all.pop(way).done.cancel()
        self._start()

    def close(self) -> None:
        """Awaits nothing more, and keeps nothing."""
        self._queue.clear()
        for position, _ in list(self._all):
            self.drop(position)

    def _start(self) -> None:
        while self._queue and len(self._active) < AT_ONCE:
            position = min(self._queue, key=self._rank.__getitem__)
            self._queue.remove(position)
            self._active.add(position)
            for _ in range(IN_FLIGHT):
                self._next((position, Coming))

    def _next(self, way: _Way) -> None:
        if self._all[way].wanted:
            self._ask(way, self._all[way].wanted.popleft())

    def _ask(self, way: _Way, i: int) -> None:
        transfer = self._all[way]
        self._flying[self._transport.send(transfer.name, transfer.message(i))] = way, i

    def _take(self, future: "Future[Any]") -> bool:
        """Whether what came is news: of a part that moved, or of a whole message."""
        way, i = self._flying.pop(future)
        transfer = self._all[way]
        if i is None:
            self._conclude(transfer, future)
            return True
        if future in self._pauses:
            self._pauses.remove(future)
            self._ask(way, i)
            return False
        try:
            raw = bring(future)
        except Exception as error:
            self._record(transfer.name, "lost", {"reason": type(error).__name__, "part": i})
            self._again(way, i, PAUSE_SECONDS)
            return False
        if not transfer.take(i, raw):
            self._wrong(way, i, raw)
            return False
        self._moved[way[0]] = self.moved(way[0]) + 1
        transfer.left -= 1
        if transfer.left:
            self._next(way)
        else:
            self._finish(way)
        return True

    def _finish(self, way: _Way) -> None:
        self._stop(way)
        transfer = self._all[way]
        details: dict[str, Scalar] = {
            "bytes": transfer.manifest.length,
            "parts": len(transfer.tries),
            "again": sum(transfer.tries),
        }
        self._record(transfer.name, transfer.over, details)
        if isinstance(transfer, Going):
            self._flying[self._transport.send(transfer.name, transfer.outgoing.announcement)] = way, None
        elif isinstance(transfer, Coming):
            del self._all[way]
            transfer.done.set_result([transfer.assembly.whole].pop)  # the future keeps nothing of it
        self._start()

    def _conclude(self, transfer: Transfer, future: "Future[Any]") -> None:
        """What the site replies to a request that it has all of is what was waited for."""
        if (error := future.exception()) is not None:
            transfer.done.set_exception(error)
        else:
            transfer.done.set_result(future.result())

    def _wrong(self, way: _Way, i: int, raw: Bytes) -> None:
        """Sends the part again, or gives the message up where the site says why it takes or gives no part."""
        transfer, name = self._all[way], self._all[way].name
        try:
            header = decode(raw, self._roster, recipient=COORDINATOR).header
            # A site that could not read what it was sent answers nothing that it knows of.
            if (header.sender, header.kind) != (name, "refusal") or not header.answers:
                raise TamperedPart(f"{name!r} sent something else than was asked of it")
        except Refused:
            self._record(name, "refused", {"code": TamperedPart.code, "reason": transfer.wrong, "part": i})
            self._again(way, i, 0.0)
        else:
            details: dict[str, Scalar] = {k: str(header.fields.get(k))[:500] for k in ("code", "reason")}
            self._record(name, "declined", {**details, "part": i})
            self._give_up(way, f"part {i} of {transfer.what} {name!r} was declined")

    def _again(self, way: _Way, i: int, pause: float) -> None:
        transfer = self._all[way]
        transfer.tries[i] += 1
        if transfer.tries[i] == TRIES:
            self._give_up(way, f"part {i} of {transfer.what} {transfer.name!r} did not get through")
        elif not pause:
            self._ask(way, i)
        else:
            later: Future[Any] = Future()
            timer = threading.Timer(pause * 2 ** (transfer.tries[i] - 1), later.set_result, (None,))
            timer.daemon = True
            timer.start()
            self._flying[later] = way, i
            self._pauses.add(later)

    def _make_room(self) -> None:
        """Gives up what is being brought, and does not come, where other replies wait for that."""
        for position in list(self._active) if self._queue else []:
            self._give_up(
                (position, Coming),
                f"the reply of {self._all[position, Coming].name!r} does not go on, and others wait",
            )

    def _give_up(self, way: _Way, why: str) -> None:
        """What came stays, for when the site is asked once more."""
        self._stop(way)
        self._all[way].wanted.clear()
        self._all[way].done.set_exception(Stuck(why))
        self._start()

    def _stop(self, way: _Way) -> None:
        """Nothing more is awaited of it."""
        for future in [future for future, (whose, _) in self._flying.items() if whose == way]:
            del self._flying[future]
            self._pauses.discard(future)
        if way[1] is Coming:
            self._active.discard(way[0])
            if way[0] in self._queue:
                self._queue.remove(way[0])
