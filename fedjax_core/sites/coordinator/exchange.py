"""One exchange of a round with real sites: broadcast, and add the valid reports in the cohort's order.

    request  ─collect─►  gate ─► finite ─►  expand and add, in the order of the cohort  ─►  conclude

The same set of sites gives the same bits, in whatever order reports arrive. A report is added and dropped
once all before it in the cohort are settled. A report that comes before its turn is validated at once, and
kept while there are few of them (`HELD`); others are dropped, and fetched again when their turn comes, from
the site or the object store where they lie. A kept report stays as it was sent, in place if XLA can use it
there; it is expanded as it is added, into the accumulator's own memory. So the coordinator's memory holds the
accumulator and a few reports, however many sites there are or are late. (An aggregator that keeps reports,
such as the trimmed mean, is an accumulator of all reports.)
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core import tallies
from fedjax_core.data.cohort import Cohort
from fedjax_core.round import Round, State
from fedjax_core.sites.coordinator.collect import Collector
from fedjax_core.sites.coordinator.replies import WrongReply
from fedjax_core.sites.coordinator.reports import Aggregation, Reports, absurd, total_of, training
from fedjax_core.sites.coordinator.server import broadcast
from fedjax_core.sites.protocol.request import Record, Requests, RunContext
from fedjax_core.sites.wire.envelope import Envelope, Header, header_of

HELD, HELD_BYTES = 4, 16 << 20
"""How many reports may wait for their turn in memory: this number, or more while they take fewer bytes than
this together."""


class Result(NamedTuple):
    """The result of an exchange."""

    state: State
    places: list[int]  # in the cohort, of the reports that counted
    metrics: dict[str, Any]


def exchange(
    composed: Round,
    e: int,
    context: RunContext,
    cohort: Cohort,
    places: list[int],
    *,
    requests: Requests,
    collector: Collector,
    data: Mapping[str, str],
    record: Record,
) -> Result:
    """Runs exchange `e` with the sites at these places of the cohort: the new state, and who counted.

    `data`: the fingerprint of each site's data. Raises `Paused` if too few report. An empty cohort asks no
    site."""
    number = int(context.state.round)
    sent, state = broadcast(composed, e, context.state, len(context.version))
    noise = requests.noise(state, e)
    if not len(cohort.clients):
        nobody = np.full(1, len(collector.names))  # one empty place
        nothing = Aggregation(composed, e, state.uplink[e], 0, nobody)
        return Result(
            nothing.conclude(
                state, f"round {number}, exchange {e}", collector.rules, lambda *entry: None, noise
            ),
            [],
            {},
        )
    to = [collector.names[cohort.clients[p]] for p in places]
    request = training(
        composed, sent, number, e, to=to, context=context, requests=requests, collector=collector
    )
    reports = Reports(
        header_of(request),
        composed,
        state.uplink[e],
        requests=requests,
        collector=collector,
        data=data,
        record=record,
    )
    fold = _Fold(
        cohort,
        places,
        reports,
        lambda: Aggregation(composed, e, state.uplink[e], len(cohort.clients), cohort.clients),
        collector,
    )
    replies = collector.collect(request, number, list(fold.turns), fold.use, fold.skip)
    declined = sum(1 for position in fold.turns if position not in replies) - reports.refused
    fold.finish(state.params)
    collector.check_quorum(
        number, cohort.clients, [int(cohort.clients[p]) for p in fold.here], f"exchange {e}"
    )
    state = fold.sums.conclude(state, f"round {number}, exchange {e}", collector.rules, reports.record, noise)
    metrics = fold.sums.metrics | {
        "refused": total_of(reports.refused + fold.lost),
        "missing": total_of(declined),
    }
    return Result(state, fold.here, metrics | tallies.on_the_wire(composed, e, len(fold.here), len(to)))


class _Fold:
    """Adds reports in the order of the cohort, as they arrive."""

    def __init__(
        self,
        cohort: Cohort,
        places: list[int],
        reports: Reports,
        nothing: Callable[[], Aggregation],
        collector: Collector,
    ) -> None:
        """`nothing`: the sums before the first report."""
        # position of the site -> place in the cohort, in the order of the cohort
        self.turns = {int(cohort.clients[p]): p for p in places}
        self.here: list[int] = []
        self.lost = 0  # valid reports that could not be fetched again
        self._cohort, self.reports, self.sums, self._collector = cohort, reports, nothing(), collector
        self._nothing = nothing
        self._left = list(self.turns)
        self._added: dict[int, Header] = {}
        # position -> (header, report); a report of None is fetched again when its turn comes
        self._ready: dict[int, tuple[Header, tuple[Any, float] | None]] = {}
        self._skipped: set[int] = set()

    def use(self, position: int, envelope: Envelope) -> bool:
        """Validates a report; returns whether it may be used."""
        received = self.reports.read(position, envelope)
        if received is None:
            return False
        kept = position == self._left[0] or sum(
            report is not None for _, report in self._ready.values()
        ) < _capacity(received[0])
        self._ready[position] = envelope.header, received if kept else None
        del received  # frees its memory while others are added
        self._go_on()
        return True

    def skip(self, position: int) -> None:
        """Notes that a site has no usable report."""
        self._skipped.add(position)
        self._go_on()

    def finish(self, params: Any) -> None:
        """Adds the rest once no more reports come; if some are absurdly larger than the others, adds all
        again without them."""
        self._skipped.update(position for position in self._left if position not in self._ready)
        self._go_on()
        here = list(self._added)
        sizes = [self.reports.sizes[position] for position in here]
        if aside := {here[i]: what for i, what in absurd(self._collector.rules, sizes, params).items()}:
            for position in sorted(aside):
                self.reports.set_aside(position, aside[position])
            again = {position: header for position, header in self._added.items() if position not in aside}
            self.sums, self.here, self._added = self._nothing(), [], {}
            for position, header in again.items():
                self._add(position, header, None)

    def _go_on(self) -> None:
        while self._left and (self._left[0] in self._ready or self._left[0] in self._skipped):
            position = self._left.pop(0)
            if position in self._ready:
                self._add(position, *self._ready.pop(position))

    def _add(self, position: int, header: Header, report: tuple[Any, float] | None) -> None:
        place, times = self.turns[position], np.float32(self._cohort.counts[self.turns[position]])
        if report is None and (report := self._read_again(position, header)) is None:
            self.lost += 1
            return
        self.sums.add(header, report, place, times, clients=self._collector.clients_of(position))
        self.here.append(place)
        self._added[position] = header

    def _read_again(self, position: int, header: Header) -> tuple[Any, float] | None:
        """Fetches the report with this header again; None if that fails."""
        try:
            envelope = self._collector.again(position)
            if envelope.header != header:
                raise WrongReply(f"{header.sender!r} has another report than the one that was checked")
        except Exception as error:
            self._collector.replies.reasons[position] = (
                f"its report could not be brought again ({type(error).__name__})"
            )
            self.reports.record(header.sender, "lost", {"reason": type(error).__name__})
            return None
        return self.reports.sent(envelope)


def _capacity(update: Any) -> int:
    """The number of updates of this size that may wait in memory."""
    return max(HELD, HELD_BYTES // max(1, sum(x.nbytes for x in jax.tree.leaves(update))))
