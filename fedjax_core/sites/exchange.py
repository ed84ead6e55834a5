"""One exchange of a round with real sites: broadcast, and the reports of those who count, added in the order of the cohort.

    request  ─collect─►  gate ─► finite ─►  expand and add, in the order of the cohort  ─►  conclude

The same set of sites gives the same bits, whoever came first. A report is added and dropped when all before it in the cohort are
settled. One that comes before its turn is checked at once, and kept while there are few of them (`HELD`); others are dropped and
brought again when their turn comes, from the site or the object store where they lie. What is kept is what was sent, where it lies if XLA
can take it there; it is expanded as it is added, into the accumulator's own memory. So the coordinator has the accumulator and a few
reports, however many sites there are and whoever of them is late. (An aggregator that is not additive, as the trimmed mean, is an
accumulator of all reports.)
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core.data.cohorts import Cohort
from fedjax_core.metrics import Mean, Sum
from fedjax_core.round import Round, State
from fedjax_core.sites import gate
from fedjax_core.sites.base import Scalar
from fedjax_core.sites.collect import Collector, Rules, WrongReply
from fedjax_core.sites.local import LEFT
from fedjax_core.sites.request import About, Record, Requests
from fedjax_core.sites.server import Server, server_half
from fedjax_core.sites.tensors import kinds
from fedjax_core.sites.wire import COORDINATOR, Envelope, Header, header_of

log = logging.getLogger("fedjax_core")

HELD, HELD_BYTES = 4, 16 << 20
"""Reports that may wait for their turn in the coordinator's memory: so many, or more while they are smaller than this together."""

NO_METRICS = ("weight", "examples", "data", "data_was")
"""Of the fields in a reply."""


class NothingLearned(RuntimeError):
    """The reports add up to exactly nothing. The state is what it was; an experiment that goes on so would be a silent one."""


class Result(NamedTuple):
    """What came of an exchange."""

    state: State
    places: list[int]  # of the cohort: whose reports counted
    metrics: dict[str, Any]


class Reports:
    """Reads the reports of one exchange: the gate, then the server's half of the uplink."""

    def __init__(self, server: Server, e: int, uplink: Any, expected: gate.Expected, bounds: np.ndarray, record: Record) -> None:
        """`bounds` [N] on the weight of each site's report."""
        self.refused = 0
        self._server, self._e, self._uplink, self._expected, self._bounds, self._record = server, e, uplink, expected, bounds, record

    def read(self, at: int, heard: Envelope) -> tuple[Any, float] | None:
        """(what was sent, weight) of the report from the site at this position, None where it may not be used."""
        verdict = gate.check(heard, replace(self._expected, max_weight=float(self._bounds[at])))
        about, found = dict(verdict._asdict()), None
        if verdict.accepted:
            sent, weight = self.sent(heard)
            if self._server.fine[self._e](self._uplink, sent, np.float32(weight)):
                found = sent, weight
            else:
                about |= {"accepted": False, "code": "not-finite", "reason": "what the report expands to is not finite"}
        self.refused += found is None
        self.record(heard.header.sender, "update", about | {"digest": heard.header.digest, "bytes": heard.header.size})
        return found

    def sent(self, heard: Envelope) -> tuple[Any, float]:
        """(what was sent, weight)."""
        like = jax.tree.structure(self._server.sent[self._e])
        sent = jax.tree.unflatten(like, [heard.tensors[name] for name in self._expected.kinds])  # which the gate has checked
        sent = jax.device_put(sent)  # where it lies, if that is at a multiple of tensors.ALIGN
        return sent, float(heard.header.fields["weight"])  # type: ignore[arg-type]

    def add(self, acc: Any, sent: Any, weight: Any, place: int, cohort: int) -> Any:
        """`acc` (None: nothing yet), which is used up, and what was sent, expanded, with this weight."""
        acc = self._server.zero[self._e](cohort) if acc is None else acc
        return self._server.add[self._e](acc, self._uplink, sent, weight, np.int32(place))

    def record(self, who: str, what: str, about: Mapping[str, Scalar]) -> None:
        """Into the audit log."""
        self._record(who, what, self._expected.round, {**about, "exchange": self._e})


def exchange(
    composed: Round,
    e: int,
    about: About,
    cohort: Cohort,
    places: list[int],
    *,
    requests: Requests,
    collector: Collector,
    data: Mapping[str, str],
    record: Record,
) -> Result:
    """Exchange `e` with the sites at these places of the cohort: who of them counted, and the state that comes of it.

    `data`: the fingerprint of each site's. Raises `Paused` where too few report.
    """
    server, state, rules = server_half(composed), about.state, collector.rules
    number = int(state.round)
    fields: dict[str, Scalar] = {} if collector.part_bytes is None else {"part_bytes": collector.part_bytes}
    request = requests.write(
        "train", number, e, to=[collector.names[cohort.clients[p]] for p in places], about=about, fields=fields, draws=True,
        body={"message": server.broadcast[e](state.server), "uplink": state.uplink[e]},
    )  # fmt: skip
    expected = gate.Expected(
        run=requests.run, round=number, exchange=e, config=requests.config, kinds=kinds(server.sent[e]), data=data,
        answers=header_of(request).digest, max_weight=math.inf, max_norm=rules.max_norm,
    )  # fmt: skip
    bounds = np.maximum(1.0, collector.sizes) if rules.max_weight is None else np.full(len(collector.sizes), rules.max_weight)
    reports = Reports(server, e, state.uplink[e], expected, bounds, record)
    fold = _Fold(composed.algorithm.exchanges[e].update is not None, cohort, places, reports, collector)
    replies = collector.collect(request, number, list(fold.turns), fold.use, fold.skip)
    declined = sum(1 for at in fold.turns if at not in replies) - reports.refused
    fold.finish()
    collector.check_quorum(number, cohort.clients, [int(cohort.clients[p]) for p in fold.here], f"exchange {e}")
    _check_left(fold, server, f"round {number}, exchange {e}", rules)
    state = server.conclude[e](state._replace(clients=()), fold.acc, fold.weight, fold.count)  # type: ignore[arg-type]
    metrics = fold.metrics | {"refused": total_of(reports.refused + fold.lost), "missing": total_of(declined)}
    return Result(state, fold.here, metrics)


class _Fold:
    """Adds reports in the order of the cohort, as they come."""

    def __init__(self, adds: bool, cohort: Cohort, places: list[int], reports: Reports, collector: Collector) -> None:
        self.turns = {int(cohort.clients[p]): p for p in places}  # position of the site -> place, in the order of the cohort
        self.acc: Any = None
        self.weight, self.count = np.float32(0), np.float32(0)
        self.metrics: dict[str, Any] = {}
        self.here: list[int] = []
        self.lost = 0  # that were of use, and could not be brought again
        self._adds, self._cohort, self.reports, self._collector = adds, cohort, reports, collector
        self._left = list(self.turns)
        self._ready: dict[int, tuple[Header, tuple[Any, float] | None]] = {}  # what came: None where it is to be brought again
        self._skipped: set[int] = set()

    def use(self, at: int, heard: Envelope) -> bool:
        """Whether the report may be used."""
        found = self.reports.read(at, heard)
        if found is None:
            return False
        kept = at == self._left[0] or sum(report is not None for _, report in self._ready.values()) < _room(found[0])
        self._ready[at] = heard.header, found if kept else None
        del found  # nothing of it stays while others are added
        self._go_on()
        return True

    def skip(self, at: int) -> None:
        """The site has no report that may be used."""
        self._skipped.add(at)
        self._go_on()

    def finish(self) -> None:
        """No more reports come."""
        self._skipped.update(at for at in self._left if at not in self._ready)
        self._go_on()

    def _go_on(self) -> None:
        while self._left and (self._left[0] in self._ready or self._left[0] in self._skipped):
            at = self._left.pop(0)
            if at in self._ready:
                self._add(at, *self._ready.pop(at))

    def _add(self, at: int, header: Header, report: tuple[Any, float] | None) -> None:
        place, times = self.turns[at], np.float32(self._cohort.counts[self.turns[at]])
        if report is None and (report := self._read_again(at, header)) is None:
            self.lost += 1
            return
        sent, its = report
        if self._adds:
            self.acc = self.reports.add(self.acc, sent, np.float32(its) * times, place, len(self._cohort.clients))
        self.weight, self.count = self.weight + np.float32(its) * times, self.count + times
        for name, metric in metrics_of(header).items():
            self.metrics[name] = self.metrics[name] + metric if name in self.metrics else metric
        self.here.append(place)

    def _read_again(self, at: int, header: Header) -> tuple[Any, float] | None:
        """The report whose header this is, None where it cannot be brought any more."""
        try:
            heard = self._collector.again(at)
            if heard.header != header:
                raise WrongReply(f"{header.sender!r} has another report than the one that was checked")
        except Exception as error:
            self.reports.record(header.sender, "lost", {"reason": type(error).__name__})
            return None
        return self.reports.sent(heard)


def _check_left(fold: "_Fold", server: Server, where: str, rules: Rules) -> None:
    """Warns where the uplink leaves little of what was learned; raises `NothingLearned` where all reports together are nothing."""
    left = {name: float(fold.metrics[name].total / fold.metrics[name].weight) for name in LEFT if name in fold.metrics}
    if any(share < rules.warn_below for share in left.values()):
        log.warning("%s: the uplink leaves little of the updates: %s", where, left)
        fold.reports.record(COORDINATOR, "warned", {"code": "little-left", **left})
    if fold.acc is not None and not rules.allow_zero and float(server.size(fold.acc)) == 0:
        fold.reports.record(COORDINATOR, "warned", {"code": "nothing-learned", **left})
        raise NothingLearned(
            f"{where}: {len(fold.here)} reports add up to exactly nothing, so the round would teach the model nothing. What the uplink "
            f"leaves of them on average: {left or 'all, as it has no stages'}. Look at its clip, filter and quantisation, at the learning "
            "rate, and at whether sites have examples; Rules(allow_zero=True) goes on all the same. The state is unchanged."
        )


def _room(update: Any) -> int:
    """How many such updates may wait."""
    return max(HELD, HELD_BYTES // max(1, sum(x.nbytes for x in jax.tree.leaves(update))))


def metrics_of(header: Header) -> dict[str, Any]:
    """The metrics in a report: `loss` and `loss.weight` are a mean's two sums, `clients` alone is a sum."""
    fields = {name: number_of(value) for name, value in header.fields.items() if name not in NO_METRICS}
    found: dict[str, Any] = {}
    for name, value in fields.items():
        weight: Any = np.float32(fields.get(f"{name}.weight", 0))
        if "." not in name:
            total: Any = np.float32(value)
            found[name] = Mean(total, weight) if f"{name}.weight" in fields else Sum(total)
    return found


def number_of(value: Any) -> float:
    """A field that should be a number; NaN where it is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def total_of(value: Any) -> Sum:
    """A metric that is a sum."""
    total: Any = np.float32(value)
    return Sum(total)
