"""One exchange of a round with real sites: broadcast, and the reports of those who count, added in the order of the cohort.

    request  ─collect─►  gate ─► receive ─►  add, in the order of the cohort  ─►  conclude

The same set of sites gives the same bits, whoever came first.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fedjax_core.data.cohorts import Cohort
from fedjax_core.metrics import Mean, Sum
from fedjax_core.round import Round, State
from fedjax_core.sites import gate
from fedjax_core.sites.collect import Collector
from fedjax_core.sites.request import About, Record, Requests
from fedjax_core.sites.server import Server, server_half
from fedjax_core.sites.tensors import kinds, place
from fedjax_core.sites.wire import Envelope, Header, header_of

NO_METRICS = ("weight", "examples", "data", "data_was")
"""Of the fields in a reply."""


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
        """(update, weight) of the report from the site at this position, None where it may not be used."""
        verdict = gate.check(heard, replace(self._expected, max_weight=float(self._bounds[at])))
        about, found = dict(verdict._asdict()), None
        if verdict.accepted:
            weight = float(heard.header.fields["weight"])  # type: ignore[arg-type]
            sent = place(heard.tensors, self._server.sent[self._e])
            update, fine = self._server.receive[self._e](self._uplink, sent, np.float32(weight))
            if fine:
                found = update, weight
            else:
                about |= {"accepted": False, "code": "not-finite", "reason": "what the report expands to is not finite"}
        self.refused += found is None
        self._record(heard.header.sender, "update", self._expected.round, about | {"exchange": self._e, "digest": heard.header.digest})
        return found


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
    body = {"message": server.broadcast[e](state.server), "uplink": state.uplink[e]}
    request = requests.write("train", number, e, about=about, body=body, draws=True)
    expected = gate.Expected(
        run=requests.run, round=number, exchange=e, config=requests.config, kinds=kinds(server.sent[e]), data=data,
        answers=header_of(request).digest, max_weight=math.inf, max_norm=rules.max_norm,
    )  # fmt: skip
    bounds = np.maximum(1.0, collector.sizes) if rules.max_weight is None else np.full(len(collector.sizes), rules.max_weight)
    reports = Reports(server, e, state.uplink[e], expected, bounds, record)
    position = {p: int(cohort.clients[p]) for p in places}
    updates: dict[int, tuple[Any, float]] = {}

    def use(at: int, heard: Envelope) -> bool:
        found = reports.read(at, heard)
        if found is not None:
            updates[at] = found
        return found is not None

    replies = collector.collect(request, number, list(position.values()), use)
    declined = sum(1 for at in position.values() if at not in replies) - reports.refused
    here = [p for p in places if position[p] in updates]
    collector.check_quorum(number, cohort.clients, [position[p] for p in here], f"exchange {e}")
    acc, weight, count = None, np.float32(0), np.float32(0)
    metrics: dict[str, Any] = {}
    for p in here:  # in the order of the cohort, whoever came first
        update, its = updates.pop(position[p])
        times = np.float32(cohort.counts[p])
        if composed.algorithm.exchanges[e].update is not None:
            acc = server.zero(update, len(cohort.clients)) if acc is None else acc
            acc = server.add(acc, update, np.float32(its) * times, np.int32(p))
        weight, count = weight + np.float32(its) * times, count + times
        for name, metric in metrics_of(replies[position[p]].header).items():
            metrics[name] = metrics[name] + metric if name in metrics else metric
    state = server.conclude[e](state._replace(clients=()), acc, weight, count)  # type: ignore[arg-type]
    return Result(state, here, metrics | {"refused": total_of(reports.refused), "missing": total_of(declined)})


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
