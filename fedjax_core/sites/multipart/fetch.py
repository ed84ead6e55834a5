"""`Fetch`: transfers large messages part by part, and repeats only the parts that were lost or damaged.

    manifest ─► ask for IN_FLIGHT parts ─► digest? ─► keep it, and ask for the next ─► ... ─► the reply
                        └ lost: again, a little later     └ damaged: again

    lacking ─► deliver IN_FLIGHT parts ─► confirmed? ─► the next ─► ... ─► announce once more ─► the reply

`AT_ONCE` replies are fetched at a time, in the order of the cohort, so the coordinator needs memory for so
many; a request goes to all sites at a time, as it exists once. The memory of a reply is allocated as its
parts arrive, whatever length a site claims. A message with a part that fails `TRIES` times is given up. If
the site is asked once more, only missing parts move: for a request, the parts that the site says it lacks;
for a reply, those that differ, as its header does after a restart. There is no background thread: all of this
happens in `wait`, while the caller waits for replies.
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
"""How many parts of a message are under way at a time, and how many replies are fetched at a time."""

TRIES, PAUSE_SECONDS = 8, 0.1
"""How often a part is sent, and the pause after its first loss, which doubles each time."""

_Way = tuple[int, type[Transfer]]  # (position of the site, class: a reply coming or a request going)


class Stuck(ConnectionError):
    """A message did not get through: parts were lost, damaged or refused, or it kept others waiting."""


class Fetch:
    """The transfers of one exchange, by the positions of sites, in the wanted order."""

    def __init__(
        self,
        transport: Transport,
        roster: Roster,
        order: Sequence[int],
        request: Callable[[str, int], Bytes],
        record: Callable[[str, str, dict[str, Scalar]], None],
    ) -> None:
        """`request` (the reply's digest, part) gives the request for a part; `record` (site, what, details)
        writes to the audit log."""
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
        """Begins to fetch a reply from the site at this position; its future moves on in `wait`, and is read
        once."""
        way = position, Coming
        self._stop(way)
        transfer = self._all[way] = Coming(name, manifest, self._all.get(way), self._request)
        self._queue.append(position)
        self._start()
        return transfer.done

    def send(
        self, position: int, name: str, outgoing: OutgoingRequest, lacking: Iterable[int]
    ) -> Future[Reply]:
        """Begins to send the parts of a request that a site lacks: the future of the site's reply to it."""
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
        """The replies that are done; none at `until`, or if no reply and no part moved for `idle_seconds`."""
        moved = time.monotonic()
        while True:
            last = until if idle_seconds is None else min(until, moved + idle_seconds)
            done = first_of(self._transport, [*replies, *self._flying], max(0.0, last - time.monotonic()))
            parts = done & self._flying.keys()
            for future in parts:
                if future in self._flying and self._take(
                    future
                ):  # an earlier part may have ended the transfer
                    moved = time.monotonic()
            if not done and time.monotonic() < until:
                self._make_room()
            # A part may have completed a reply.
            ready = {future for future in replies if future.done()} if parts else done
            if ready or not done or time.monotonic() >= until:
                return ready

    def moved(self, position: int) -> int:
        """The number of parts that have moved from or to the site at this position."""
        return self._moved.get(position, 0)

    def drop(self, position: int) -> None:
        """Drops all transfers with the site at this position."""
        for way in ((position, Coming), (position, Going)):
            self._stop(way)
            if way in self._all:
                self._all.pop(way).done.cancel()
        self._start()

    def close(self) -> None:
        """Drops all transfers."""
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
        """Takes what arrived; returns whether it is progress, a part that moved or a whole message."""
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
            transfer.done.set_result(
                [transfer.assembly.whole].pop
            )  # the future does not keep the message alive
        self._start()

    def _conclude(self, transfer: Transfer, future: "Future[Any]") -> None:
        """Passes on the site's reply to a request of which it now has all parts."""
        if (error := future.exception()) is not None:
            transfer.done.set_exception(error)
        else:
            transfer.done.set_result(future.result())

    def _wrong(self, way: _Way, i: int, raw: Bytes) -> None:
        """Repeats the part, or gives the message up if the site refuses with a reason."""
        transfer, name = self._all[way], self._all[way].name
        try:
            header = decode(raw, self._roster, recipient=COORDINATOR).header
            # A refusal that answers nothing comes from a site that could not read the message.
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
        """Gives up fetches that stall while other replies wait for their turn."""
        for position in list(self._active) if self._queue else []:
            self._give_up(
                (position, Coming),
                f"the reply of {self._all[position, Coming].name!r} does not go on, and others wait",
            )

    def _give_up(self, way: _Way, why: str) -> None:
        """Ends a transfer with an error; its parts stay, in case the site is asked once more."""
        self._stop(way)
        self._all[way].wanted.clear()
        self._all[way].done.set_exception(Stuck(why))
        self._start()

    def _stop(self, way: _Way) -> None:
        """Stops a transfer."""
        for future in [future for future, (whose, _) in self._flying.items() if whose == way]:
            del self._flying[future]
            self._pauses.discard(future)
        if way[1] is Coming:
            self._active.discard(way[0])
            if way[0] in self._queue:
                self._queue.remove(way[0])
