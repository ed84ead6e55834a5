"""Brings large replies part by part: of what is lost or damaged only that is asked for again, and what has come stays.

    contents ─► ask for IN_FLIGHT parts ─► digest? ─► in its place, and ask for the next ─► ... ─► the reply
                        └ lost: again, a little later     └ damaged: again

`AT_ONCE` replies are brought at a time, those first that come first in the cohort, so the coordinator has room for so many. The memory of a
reply is taken as its parts come, whatever length a site says that it has. A reply of which a part does not come after `TRIES` is given up.
Where the site is then asked once more, and answers with the same reply, or with one that differs only in its head, as after a restart,
only the parts that are missing are brought. Nothing runs beside the caller: all of this is done while it waits for replies, in `wait`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from fedjax_core.sites.base import Bytes, Refused, Scalar
from fedjax_core.sites.identity import Roster
from fedjax_core.sites.parts import Contents, TamperedPart
from fedjax_core.sites.tensors import room
from fedjax_core.sites.transport import Reply, Transport, bring, first_of
from fedjax_core.sites.wire import COORDINATOR, decode

IN_FLIGHT, AT_ONCE = 2, 4
"""Parts of a reply that are under way, and replies that are brought, at a time."""

TRIES, PAUSE_SECONDS = 8, 0.1
"""How often a part is asked for, and how long after it was lost for the first time; each time twice as long."""


class Stuck(ConnectionError):
    """A reply did not come: its parts were lost, damaged or refused, or it kept others waiting."""


class _Transfer:
    """One reply on its way."""

    def __init__(self, name: str, contents: Contents, before: "_Transfer | None") -> None:
        self.name, self.contents = name, contents
        self.done: Future[Reply] = Future() if before is None or before.done.done() else before.done
        if before is not None and before.reply is not None and before.contents[1:3] == contents[1:3]:
            self.reply: np.ndarray | None = before.reply
            self.here: np.ndarray = before.here & (before.contents.digests == contents.digests).all(axis=1)
        else:
            self.reply = None
            self.here = np.zeros(len(contents.digests), bool)
        self.wanted = deque(np.flatnonzero(~self.here).tolist())
        self.tries = [0] * len(self.here)


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
        """`request` (the reply's digest, part) is what to send; `record` (site, what, about) is for the audit log."""
        self._transport, self._roster, self._request, self._record = transport, roster, request, record
        self._rank = {at: rank for rank, at in enumerate(order)}
        self._all: dict[int, _Transfer] = {}
        self._queue: list[int] = []
        self._active: set[int] = set()
        self._flying: dict[Future[Any], tuple[int, int]] = {}  # of which reply and part
        self._pauses: set[Future[Any]] = set()

    def begin(self, at: int, name: str, contents: Contents) -> Future[Reply]:
        """The future of the reply from the site at this position, brought while somebody is in `wait`; read it once, it is not kept."""
        self._stop(at)
        transfer = self._all[at] = _Transfer(name, contents, self._all.get(at))
        self._queue.append(at)
        self._start()
        return transfer.done

    def wait(self, replies: Collection[Future[Reply]], until: float, idle_seconds: float | None) -> set[Future[Reply]]:
        """Those of the replies that are done; none where it is `until`, or where neither a reply nor a part came for `idle_seconds`."""
        moved = time.monotonic()
        while True:
            last = until if idle_seconds is None else min(until, moved + idle_seconds)
            done = first_of(self._transport, [*replies, *self._flying], max(0.0, last - time.monotonic()))
            for future in done & self._flying.keys():
                if future in self._flying and self._take(future):  # one before it may have ended the transfer
                    moved = time.monotonic()
            if not done and time.monotonic() < until:
                self._make_room()
            found = {future for future in replies if future.done()}
            if found or not done or time.monotonic() >= until:
                return found

    def here(self, at: int) -> int:
        """How many parts have come of the reply that is brought from the site at this position."""
        return int(self._all[at].here.sum()) if at in self._all else 0

    def drop(self, at: int) -> None:
        """Awaits nothing more of the site at this position, and keeps nothing of it."""
        self._stop(at)
        if at in self._all:
            self._all.pop(at).done.cancel()
        self._start()

    def close(self) -> None:
        """Awaits nothing more, and keeps nothing."""
        self._queue.clear()
        for at in list(self._all):
            self.drop(at)

    def _start(self) -> None:
        while self._queue and len(self._active) < AT_ONCE:
            at = min(self._queue, key=self._rank.__getitem__)
            self._queue.remove(at)
            self._active.add(at)
            for _ in range(IN_FLIGHT):
                self._next(at)

    def _next(self, at: int) -> None:
        if self._all[at].wanted:
            self._ask(at, self._all[at].wanted.popleft())

    def _ask(self, at: int, i: int) -> None:
        transfer = self._all[at]
        self._flying[self._transport.send(transfer.name, self._request(transfer.contents.of, i))] = at, i

    def _take(self, future: "Future[Any]") -> bool:
        """Whether what came is a part that was missing."""
        at, i = self._flying.pop(future)
        transfer = self._all[at]
        if future in self._pauses:
            self._pauses.remove(future)
            self._ask(at, i)
            return False
        try:
            raw = bring(future)
        except Exception as error:
            self._record(transfer.name, "lost", {"reason": type(error).__name__, "part": i})
            self._again(at, i, PAUSE_SECONDS)
            return False
        if not transfer.contents.fits(i, raw):
            self._wrong(at, i, raw)
            return False
        if transfer.reply is None:
            transfer.reply = room(transfer.contents.length)
        transfer.reply[transfer.contents.place(i)] = np.frombuffer(raw, np.uint8)
        transfer.here[i] = True
        if transfer.here.all():
            self._finish(at)
        else:
            self._next(at)
        return True

    def _finish(self, at: int) -> None:
        self._stop(at)
        transfer = self._all.pop(at)
        about: dict[str, Scalar] = {"bytes": transfer.contents.length, "parts": len(transfer.here), "again": sum(transfer.tries)}
        self._record(transfer.name, "came in parts", about)
        assert transfer.reply is not None
        transfer.done.set_result([transfer.reply.data].pop)  # the future keeps nothing of it
        self._start()

    def _wrong(self, at: int, i: int, raw: Bytes) -> None:
        """Asks again, or gives the reply up where the site says why it gives no part."""
        name = self._all[at].name
        try:
            header = decode(raw, self._roster, recipient=COORDINATOR).header
            if (header.sender, header.kind) != (name, "refusal"):
                raise TamperedPart(f"{name!r} sent something else than a part of its reply")
        except Refused:
            self._record(name, "refused", {"code": TamperedPart.code, "reason": "not the part that the site signed", "part": i})
            self._again(at, i, 0.0)
        else:
            about: dict[str, Scalar] = {k: str(header.fields.get(k))[:500] for k in ("code", "reason")}
            self._record(name, "declined", {**about, "part": i})
            self._give_up(at, f"{name!r} declined to send part {i} of its reply")

    def _again(self, at: int, i: int, pause: float) -> None:
        transfer = self._all[at]
        transfer.tries[i] += 1
        if transfer.tries[i] == TRIES:
            self._give_up(at, f"part {i} of the reply of {transfer.name!r} did not come")
        elif not pause:
            self._ask(at, i)
        else:
            later: Future[Any] = Future()
            timer = threading.Timer(pause * 2 ** (transfer.tries[i] - 1), later.set_result, (None,))
            timer.daemon = True
            timer.start()
            self._flying[later] = at, i
            self._pauses.add(later)

    def _make_room(self) -> None:
        """Gives up what is being brought, and does not come, where other replies wait for that."""
        for at in list(self._active) if self._queue else []:
            self._give_up(at, f"the reply of {self._all[at].name!r} does not go on, and others wait")

    def _give_up(self, at: int, why: str) -> None:
        """What came stays, for when the site is asked once more."""
        self._stop(at)
        self._all[at].done.set_exception(Stuck(why))
        self._start()

    def _stop(self, at: int) -> None:
        """Nothing more is awaited of it."""
        for future in [future for future, (whose, _) in self._flying.items() if whose == at]:
            del self._flying[future]
            self._pauses.discard(future)
        self._active.discard(at)
        if at in self._queue:
            self._queue.remove(at)
