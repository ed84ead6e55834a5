"""Waits for the replies of sites: whom to ask again, who is late or lost, and how many are enough.

    ask all ─► a reply ─► accept: authentic? this request's? the first? ─► use ─► settled
        │        └ damaged, lost: ask again        └ refused: recorded, settled
        └ too large to come at once: brought in parts. A request that is too large is announced, and goes in parts: `requests.py`

What may be heard is in `replies.py`; how long it is waited, and how many are enough, in `rules.py`. Below the quorum those who are missing
are asked again while there is time, and then `Paused` is raised, which says of each of them why it is missing. What nobody waits for any
more is taken back where a site has not begun with it: one that was away for long would do all of that first.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from fedjax_core.data.batches import Plan
from fedjax_core.sites.coordinator.absent import ENOUGH, Absent, with_reasons
from fedjax_core.sites.coordinator.replies import Replies
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.multipart.fetch import Fetch
from fedjax_core.sites.multipart.manifest import read_manifest
from fedjax_core.sites.multipart.requests import OutgoingRequest
from fedjax_core.sites.protocol.kinds import LACKING, PARTS
from fedjax_core.sites.protocol.request import Record, Requests
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.envelope import COORDINATOR, Envelope, Header, decode, header_of
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.transport import Reply, Transport, bring, first_of, take_back

_GRACE_SECONDS = 1.0
"""A site that was silent is waited for as long at least, however fast the others are."""


class Paused(RuntimeError):
    """Too few sites reported. Nothing was averaged: the state is what it was, and the round can be run again."""


class Collector:
    """Asks sites, by their positions, and hears their replies."""

    def __init__(
        self, requests: Requests, names: Sequence[str], transport: Transport, roster: Roster, rules: Rules, record: Record
    ) -> None:
        self.names, self.rules = list(names), rules
        self.sizes = np.ones(len(self.names), np.int64)
        """Examples of each site, once they are known."""
        self.plan: Plan | None = None
        """How a site goes through its data."""
        self.clients: np.ndarray | None = None
        """[N] how many clients each site is, where departments are clients; None: each is one."""
        self.unknown: dict[int, str] = {}
        """Sites that have not yet said what they are, so that nothing else is asked of them, each with the reason."""
        self.away: dict[str, str] = dict(getattr(transport, "away", {}))
        """The sites of which the transport knows why they are not there, by their names."""
        self.silent: set[int] = set()
        """Sites that did not answer when they were last waited for, and of which nothing came since."""
        self.replies = Replies(requests.run, self.names, roster, record)
        """Which has the reasons of those whose reply does not count."""
        self.absent = Absent(self.names)
        self._transport, self._roster, self._record, self._requests = transport, roster, record, requests
        self._late: dict[Future[Reply], int] = {}
        self._counted: dict[int, Future[Reply]] = {}
        self._steps: dict[str, int] = {}
        self._outgoing: OutgoingRequest | None = None
        self.begin(0)

    @property
    def part_bytes(self) -> int | None:
        """Messages that are longer move in parts; None where bytes do not travel, as in a store that all processes of a machine share."""
        return None if getattr(self._transport, "near", False) else self.rules.part_bytes

    def begin(self, number: int, cohort: Iterable[int] = (), exchanges: int = 1) -> None:
        """It is now round `number`: what comes of another is refused, and so is what comes late.

        The quorum is that of the `cohort`, or of whoever is asked, and so many exchanges share the round's time.
        """
        self.replies.begin(number)
        self.replies.reasons.clear()
        self.replies.reasons.update(self.unknown)
        self._until = time.monotonic() + self.rules.deadline_seconds
        self._cohort, self._left = [int(at) for at in cohort], exchanges
        while done := first_of(self._transport, self._late, 0.0) if self._late else ():
            for future in done:
                at = self._late.pop(future)
                if self.replies.record_late(future, at):
                    self.silent.discard(at)

    def know(self, sizes: np.ndarray, clients: np.ndarray | None, plan: Plan) -> None:
        """What sites said of themselves: their examples, how many clients each is (None: one), and the plan of their work."""
        self.sizes, self.clients, self.plan = sizes, clients, plan

    def collect(
        self,
        request: Bytes,
        number: int,
        positions: list[int],
        use: Callable[[int, Envelope], bool] | None = None,
        skip: Callable[[int], None] | None = None,
        *,
        seconds: float | None = None,
        brief: Collection[int] = (),
        least: float | None = None,
    ) -> dict[int, Envelope]:
        """The replies that count, by the sites' positions: all of them, or, without their tensors, reports that are of `use`.

        `skip` is told of a site that has answered, or failed for good, without such a reply. It waits for `seconds` at most, if that
        is less than is left of the round. `brief` ones are waited for as those are that were silent: by `Rules.grace`, and `least`
        seconds.
        """
        self._counted = {}
        rules, most = self.rules, len(positions) if use is None or self.rules.enough is None else self.rules.enough
        header, outgoing = header_of(request), self.outgoing(request)
        good: dict[int, Envelope] = {}
        for at in positions:
            self.replies.reasons.pop(at, None)
        asked = dict.fromkeys(positions, 0)
        settled: set[int] = set()
        there: set[int] = set()  # of whom something came, whatever it was
        waiting: dict[Future[Reply], int] = {}
        heads: dict[Future[Reply], Future[Reply]] = {}  # of replies that come in parts
        fetch = self._fetch(header, positions)
        began = time.monotonic()
        until, left, self._left = min(self._until, began + (seconds or self.rules.deadline_seconds)), self._left, max(1, self._left - 1)
        ours = until if left == 1 else began + (until - began) / left  # what this exchange has of the time
        took = 0.0  # to the last reply so far
        hasty = (set(brief) | self.silent) & asked.keys() if rules.grace is not None else set[int]()

        def last() -> float:
            if (left == 1 and not hasty) or not self.quorate(self._cohort or positions, list(good)):
                return until
            hasty.difference_update([at for at in hasty if fetch.moved(at)])  # of which something comes
            if hasty and hasty.issuperset(waiting.values()):
                return min(ours, began + max(_GRACE_SECONDS if least is None else least, (rules.grace or 0.0) * took))
            return ours

        def ask(at: int) -> None:
            asked[at] += 1
            waiting[self.ask(at, request, outgoing)] = at

        for at in positions:
            ask(at)
        for turn in range(rules.attempts):
            while waiting and len(good) < most:
                end = last()
                done = fetch.wait(waiting, end, rules.idle_seconds)
                now = time.monotonic()
                if not done and (now < last() if now >= end else self.goes_on(at for at in waiting.values() if at not in hasty)):
                    continue
                if not done:
                    break
                took = now - began
                for future in sorted(done, key=lambda f: waiting[f]):
                    at = waiting.pop(future)
                    if at in settled:  # asked twice, and answered twice
                        self.replies.record_late(future, at)
                        continue
                    heard = self.replies.accept(future, at, number, header, outgoing, skew_seconds=rules.skew_seconds)
                    if heard is not None:
                        self.silent.discard(at)
                        there.add(at)
                    if heard is not None and heard.header.kind == PARTS:
                        whole = fetch.begin(at, self.names[at], read_manifest(heard, header))
                        waiting[whole], heads[whole] = at, future
                    elif heard is not None and heard.header.kind == LACKING and outgoing is not None:
                        waiting[fetch.send(at, self.names[at], outgoing, outgoing.lacking(heard))] = at
                    elif heard is None and asked[at] < rules.attempts:
                        ask(at)
                    elif heard is not None:
                        settled.add(at)
                        self._counted[at] = heads.get(future, future)
                        if heard.header.kind != "refusal" and (use is None or use(at, heard)):
                            good[at] = heard if use is None else heard._replace(tensors={})
                            continue
                        del self._counted[at]
                    if skip is not None and at not in waiting.values():
                        skip(at)
            missing = [at for at in positions if at not in settled and at in waiting.values()]
            over = turn + 1 == rules.attempts or time.monotonic() >= until
            if not missing or over or self.quorate(self._cohort or positions, list(good)):
                break
            for at in missing:
                self._record(self.names[at], "asked again", number, {})
                ask(at)
        fetch.close()
        awaited = set(waiting.values()) if len(good) >= most else set()  # who may still have answered
        self.silent |= asked.keys() - there - awaited
        for future, at in waiting.items():
            if at not in settled:
                self.replies.reasons[at] = f"no reply in {time.monotonic() - began:.3g} s" if at in self.silent else ENOUGH
                self._record(self.names[at], "missing", number, {"reason": self.replies.reasons[at]})
            self.leave(future, at)
        return good

    def ask(self, at: int, request: Bytes, outgoing: OutgoingRequest | None) -> "Future[Reply]":
        """The reply, once it is there, of the site at this position."""
        return self._transport.send(self.names[at], request if outgoing is None else outgoing.announcement)

    def done(self, future: "Future[Reply]") -> bool:
        """Whether this reply is there now."""
        return bool(first_of(self._transport, [future], 0.0))

    def outgoing(self, request: Bytes) -> OutgoingRequest | None:
        """How a request goes that is too large to go at once; None for others. The last one is kept, for all whom it goes to."""
        part_bytes = self.part_bytes
        if part_bytes is None or len(request) <= part_bytes:
            return None
        last = self._outgoing
        if last is None or last.request is not request or last.manifest.part_bytes != part_bytes:
            last = self._outgoing = OutgoingRequest(request, part_bytes, self._requests)
        return last

    def leave(self, future: "Future[Reply]", at: int) -> None:
        """Nobody waits any more for this reply of the site at this position: it is not begun, or recorded when it comes."""
        self._late[future] = at
        take_back(self._transport, future)

    def goes_on(self, positions: Iterable[int]) -> bool:
        """Whether one of these sites has done steps since it was last looked at."""
        progress: Callable[[str], int] | None = getattr(self._transport, "progress", None)
        if progress is None:
            return False
        now = {self.names[at]: progress(self.names[at]) for at in positions}
        moved = any(steps > self._steps.get(name, 0) for name, steps in now.items())
        self._steps |= now
        return moved

    def again(self, at: int) -> Envelope:
        """The reply of the site at this position that was of use, brought and read once more; raises what comes of that.

        In parts it may take `deadline_seconds` of its own, as whoever was waited for before may have used up the round's.
        """
        heard = decode(bring(self._counted[at]), self._roster, recipient=COORDINATOR)
        if heard.header.kind != PARTS:
            return heard
        header, rules = self._header, self.rules
        fetch = self._fetch(header, [at])
        whole = fetch.begin(at, self.names[at], read_manifest(heard, header))
        fetch.wait([whole], time.monotonic() + rules.deadline_seconds, rules.idle_seconds)
        fetch.close()
        return decode(bring(whole), self._roster, recipient=COORDINATOR)

    def _fetch(self, asked: Header, positions: Sequence[int]) -> Fetch:
        """What brings the replies to this request that come in parts."""
        self._header = asked
        return self.fetch(positions, partial(self._requests.part, asked), lambda: asked.round)

    def fetch(self, positions: Sequence[int], request: Callable[[str, int], Bytes], number: Callable[[], int]) -> Fetch:
        """What brings replies in parts, those first that come first in these positions: `request` (the reply's digest, part) is what to
        send, and `number` is the round that the audit log has it under.
        """
        return Fetch(self._transport, self._roster, positions, request, lambda who, what, about: self._record(who, what, number(), about))

    def clients_of(self, at: int) -> int:
        """How many clients the site at this position is."""
        return 1 if self.clients is None else int(self.clients[at])

    def quorate(self, positions: Sequence[int], here: Sequence[int]) -> bool:
        """Whether those here are enough of those asked."""
        return self.rules.quorate(self.sizes[list(positions)], self.sizes[list(here)])

    def check_quorum(self, number: int, positions: Any, here: list[int], what: str) -> None:
        """Raises `Paused` where those here are too few."""
        positions = [int(p) for p in positions]
        if here and self.quorate(positions, here):
            return
        needed, reasons = self.rules.needed(len(positions)), self.replies.reasons
        missing = with_reasons({self.names[p]: reasons.get(p, "no reply") for p in positions if p not in here})
        self._record(COORDINATOR, "paused", number, {"reports": len(here), "sites": len(positions), "missing": missing[:1000]})
        share = f" with {self.rules.share:.0%} of the examples" if self.rules.share else ""
        raise Paused(
            f"round {number}, {what}: {len(here)} of {len(positions)} sites reported, and {needed}{share} must. Missing: {missing}. "
            "The state is unchanged: run the round again."
        ) from self.failure(p for p in positions if p not in here)

    def failure(self, positions: Iterable[int]) -> Exception | None:
        """What the user's own code raised at one of these sites, where they are in this process."""
        failures: dict[str, Exception] = getattr(self._transport, "failures", {})
        return next((failures[self.names[p]] for p in positions if self.names[p] in failures), None)
