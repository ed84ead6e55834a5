"""Collects the replies of sites in a round: who is asked, whether those who replied are enough, and the
round's one deadline.

How the replies to one request are waited for is in `waiting.py`; what may be heard in `replies.py`; how long
it is waited, and how many are enough, in `rules.py`. Below the quorum `Paused` is raised, which says of each
site that is missing why it is."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from fedjax_core.data.batches import Plan
from fedjax_core.sites.coordinator.absent import Absent, with_reasons
from fedjax_core.sites.coordinator.contact import Contact
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.coordinator.waiting import Patience, Waiting
from fedjax_core.sites.multipart.fetch import Fetch
from fedjax_core.sites.multipart.manifest import read_manifest
from fedjax_core.sites.protocol.kinds import PARTS
from fedjax_core.sites.protocol.request import Record, Requests
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.envelope import COORDINATOR, Envelope, Header, decode, header_of
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.transport import Reply, Transport, bring

_GRACE_SECONDS = 1.0
"""A site that was silent is waited for as long at least, however fast the others are."""


class Paused(RuntimeError):
    """Too few sites reported. Nothing was averaged: the state is what it was, and the round can be run
    again."""


class Collector(Contact):
    """Asks sites, by their positions, and hears their replies, round by round."""

    def __init__(
        self,
        requests: Requests,
        names: Sequence[str],
        transport: Transport,
        roster: Roster,
        rules: Rules,
        record: Record,
    ) -> None:
        super().__init__(requests, names, transport, roster, rules, record)
        self.sizes = np.ones(len(self.names), np.int64)
        """Examples of each site, once they are known."""
        self.plan: Plan | None = None
        """How a site goes through its data."""
        self.clients: np.ndarray | None = None
        """[N] how many clients each site is, where departments are clients; None: each is one."""
        self.unknown: dict[int, str] = {}
        """Sites that have not yet said what they are, so that nothing else is asked of them, each with the
        reason."""
        self.absent = Absent(self.names)
        self._counted: dict[int, Future[Reply]] = {}
        self.begin(0)

    def begin(self, number: int, cohort: Iterable[int] = (), parts: int = 1) -> None:
        """It is now round `number`: what comes of another is refused, and so is what comes late.

        The quorum is that of the `cohort`, or of whoever is asked, and the round's time has so many parts,
        one for an exchange."""
        self.replies.begin(number)
        self.replies.reasons.clear()
        self.replies.reasons.update(self.unknown)
        self._until = time.monotonic() + self.rules.deadline_seconds
        self._cohort, self._left = [int(position) for position in cohort], parts
        self.record_late()

    def know(self, sizes: np.ndarray, clients: np.ndarray | None, plan: Plan) -> None:
        """What sites said of themselves: their examples, how many clients each is (None: one), and the plan
        of their work."""
        self.sizes, self.clients, self.plan = sizes, clients, plan

    def collect(
        self,
        request: Bytes | Mapping[int, Bytes],
        number: int,
        positions: list[int],
        use: Callable[[int, Envelope], bool] | None = None,
        skip: Callable[[int], None] | None = None,
        *,
        seconds: float | None = None,
        brief: Collection[int] = (),
        least: float | None = None,
        parts: int = 1,
    ) -> dict[int, Envelope]:
        """The replies that count, by the sites' positions: all of them, or, without their tensors, reports
        that are of `use`.

        The `request` is one for all, or one a site, none of which is then too large to go at once. `skip` is
        told of a site that has answered, or failed for good, without such a reply. It waits for `seconds` at
        most, if that is less than is left of the round. `brief` ones are waited for as those are that were
        silent: by `Rules.grace`, and `least` seconds. `parts`: how many of the parts into which `begin`
        divides the round's time are for this."""
        for position in positions:
            self.replies.reasons.pop(position, None)
        header = header_of(next(iter(request.values())) if isinstance(request, Mapping) else request)
        most = len(positions) if use is None or self.rules.enough is None else self.rules.enough
        hasty = self.silent.union(brief).intersection(positions) if self.rules.grace is not None else ()
        waiting = Waiting(
            self, request, header, number, positions, self._fetch(header, positions),
            use=use, skip=skip, patience=self._patience(seconds, least, parts), hasty=hasty, most=most,
            quorate=lambda here: self.quorate(self._cohort or positions, here), record=self._record,
        )  # fmt: skip
        self._counted = waiting.counted
        waiting.wait()
        return waiting.good

    def _patience(self, seconds: float | None, least: float | None, parts: int) -> Patience:
        """How long this exchange waits, which has so many parts of what is left of the round's time."""
        began, left, self._left = time.monotonic(), self._left, max(1, self._left - parts)
        until = min(self._until, began + (seconds or self.rules.deadline_seconds))
        ours = until if left <= parts else began + (until - began) * parts / left
        return Patience(began, until, ours, left > parts, _GRACE_SECONDS if least is None else least)

    def again(self, position: int) -> Envelope:
        """The reply of the site at this position that was of use, brought and read once more; raises what
        comes of that.

        In parts it may take `deadline_seconds` of its own, as whoever was waited for before may have used up
        the round's."""
        envelope = decode(bring(self._counted[position]), self._roster, recipient=COORDINATOR)
        if envelope.header.kind != PARTS:
            return envelope
        header, rules = self._header, self.rules
        fetch = self._fetch(header, [position])
        whole = fetch.begin(position, self.names[position], read_manifest(envelope, header))
        fetch.wait([whole], time.monotonic() + rules.deadline_seconds, rules.idle_seconds)
        fetch.close()
        return decode(bring(whole), self._roster, recipient=COORDINATOR)

    def _fetch(self, header: Header, positions: Sequence[int]) -> Fetch:
        """What brings the replies to this request that come in parts."""
        self._header = header
        return self.fetch(positions, partial(self._requests.part, header), lambda: header.round)

    def clients_of(self, position: int) -> int:
        """How many clients the site at this position is."""
        return 1 if self.clients is None else int(self.clients[position])

    def quorate(self, positions: Sequence[int], here: Sequence[int]) -> bool:
        """Whether those here are enough of those asked."""
        return self.rules.quorate(self.sizes[list(positions)], self.sizes[list(here)])

    def check_quorum(self, number: int, positions: Any, here: list[int], what: str) -> None:
        """Raises `Paused` where those here are too few."""
        positions = [int(p) for p in positions]
        if here and self.quorate(positions, here):
            return
        needed, reasons = self.rules.needed(len(positions)), self.replies.reasons
        missing = with_reasons(
            {self.names[p]: reasons.get(p, "no reply") for p in positions if p not in here}
        )
        self._record(
            COORDINATOR,
            "paused",
            number,
            {"reports": len(here), "sites": len(positions), "missing": missing[:1000]},
        )
        share = f" with {self.rules.share:.0%} of the examples" if self.rules.share else ""
        raise Paused(
            f"round {number}, {what}: {len(here)} of {len(positions)} sites reported, and {needed}{share} must. Missing: {missing}. "
            "The state is unchanged: run the round again."
        ) from self.failure(p for p in positions if p not in here)
