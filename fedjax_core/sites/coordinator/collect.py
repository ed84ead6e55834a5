"""Collects the replies of sites in a round, with the round's one deadline and its quorum.

`waiting.py` waits for the replies to one request, `replies.py` authenticates them, and `rules.py` sets
deadlines and quorum. Below the quorum `Paused` is raised, with the reason of each missing site."""

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
"""The least time to wait for a site that was silent, however fast the others are."""


class Paused(RuntimeError):
    """Too few sites reported. Nothing was averaged: the state is what it was, and the round can be run
    again."""


class Collector(Contact):
    """Asks sites, by their positions, and collects their replies, round by round."""

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
        """[N] the number of examples of each site, once known."""
        self.plan: Plan | None = None
        """The plan by which a site goes through its data."""
        self.clients: np.ndarray | None = None
        """[N] the number of clients of each site, if departments are clients; None: one each."""
        self.unknown: dict[int, str] = {}
        """{position: reason} of the sites that have not described themselves yet, and so are asked for
        nothing else."""
        self.absent = Absent(self.names)
        self._counted: dict[int, Future[Reply]] = {}
        self.begin(0)

    def begin(self, number: int, cohort: Iterable[int] = (), parts: int = 1) -> None:
        """Begins round `number`: replies of other rounds, and late ones, are refused.

        The quorum is over the `cohort`, or else over the sites asked. The round's time is divided into
        `parts`, one an exchange."""
        self.replies.begin(number)
        self.replies.reasons.clear()
        self.replies.reasons.update(self.unknown)
        self._until = time.monotonic() + self.rules.deadline_seconds
        self._cohort, self._left = [int(position) for position in cohort], parts
        self.record_late()

    def know(self, sizes: np.ndarray, clients: np.ndarray | None, plan: Plan) -> None:
        """Sets the sites' numbers of examples and of clients (None: one each), and the plan of their work."""
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
        """{position: reply} of the replies that count: all, or, without tensors, those that `use` accepts.

        `request`: one for all sites, or one for each, none of them in parts. `skip` is called for a site that
        answered, or failed for good, without such a reply. It waits at most `seconds`, and no longer than the
        rest of the round. `brief` sites are waited for like silent ones: by `Rules.grace`, and at least
        `least` seconds. `parts`: how many parts of the round's time, as divided by `begin`, this may take."""
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
        """The `Patience` of an exchange that takes `parts` of the rest of the round's time."""
        began, left, self._left = time.monotonic(), self._left, max(1, self._left - parts)
        until = min(self._until, began + (seconds or self.rules.deadline_seconds))
        ours = until if left <= parts else began + (until - began) * parts / left
        return Patience(began, until, ours, left > parts, _GRACE_SECONDS if least is None else least)

    def again(self, position: int) -> Envelope:
        """Fetches and reads a site's accepted reply once more; raises whatever goes wrong.

        A reply in parts may take `deadline_seconds` of its own, as waiting for others may have used up the
        round's."""
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
        """The `Fetch` for replies to this request that come in parts."""
        self._header = header
        return self.fetch(positions, partial(self._requests.part, header), lambda: header.round)

    def clients_of(self, position: int) -> int:
        """The number of clients of the site at this position."""
        return 1 if self.clients is None else int(self.clients[position])

    def quorate(self, positions: Sequence[int], here: Sequence[int]) -> bool:
        """Whether the sites here are enough of those asked."""
        return self.rules.quorate(self.sizes[list(positions)], self.sizes[list(here)])

    def check_quorum(self, number: int, positions: Any, here: list[int], what: str) -> None:
        """Raises `Paused` if the sites here are too few."""
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
