"""Asynchronous rounds (FedBuff) over real sites, by the rule and the names of the simulator's `Buffer`.

    free sites ─► newest model ─► at work ─► report ─► too stale? valid? ─► times d(staleness), into the buffer
                       ▲                                                           │ `buffer.size` reports
                       └─────────────────── a step of the server ◄─────────────────┘

A 'round' is a step of the server. A request and its report name the version of the model, which is the round
that they are addressed by, so a site does the same work, to the last bit, as in the simulator. A site counts
once for a version: if it is free before the next version, it waits for that. A report of a version that was
not asked for, or a repeated one, is refused as in synchronous rounds.

The `State` holds what must outlive the coordinator: which site works on which version, and the models of
those versions. It does not hold the reports in the buffer. From a state that this process did not just make,
the sites that were at work at the end of that step are asked again; that gives the same numbers, so nothing
is lost or counted twice. Within one process the buffer survives a `Paused` step.

Time: each site has `Rules.deadline_seconds` from its request on. A step waits while any site is at work, and
pauses if none is and the buffer is not full; run again, it asks the failed sites again.

>>> import jax, optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.sites.federation import Federation
>>> from fedjax_core.sites.site_file import SiteFile
>>> composed = compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1)))
>>> data = {name: {"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)} for name, n in (("charite", 3), ("mayo", 5))}
>>> sites = [SiteFile(name=name, data=columns) for name, columns in data.items()]
>>> with Federation(composed, sites, buffer=Buffer(size=1), batch_size=2, transport="in-process") as federation:
...     state, metrics = federation.run(federation.init(jax.random.key(0)), [0, 1])
>>> int(state.round), float(metrics["clients"]), sorted(state.clients.started.tolist())  # one is at work, from version 0
(1, 1.0, [-1, 0])
"""

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from fedjax_core.buffer import Buffer, InFlight, free_clients, idle, load_model, store_model
from fedjax_core.metrics import Mean
from fedjax_core.partial import incompatibility
from fedjax_core.round import Round, State
from fedjax_core.sites.coordinator.absent import with_reasons
from fedjax_core.sites.coordinator.calls import Calls, Completed
from fedjax_core.sites.coordinator.collect import Collector, Paused
from fedjax_core.sites.coordinator.outlying import LEAST
from fedjax_core.sites.coordinator.reports import (
    Aggregation,
    NothingLearned,
    Reports,
    Size,
    absurd,
    total_of,
    training,
)
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.coordinator.server import broadcast
from fedjax_core.sites.protocol.report import epsilon_entry, partial_entry
from fedjax_core.sites.protocol.request import Record, Requests, RunContext
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import Bytes, Scalar, in_lines
from fedjax_core.sites.wire.envelope import COORDINATOR, Header


class TooStale(Refused):
    """The report was trained from a model that is too old."""

    code = "too-stale"


def check(composed: Round, buffer: Buffer, sites: int, rules: Rules) -> None:
    """Raises if this round cannot run with this buffer, or the rules are those of synchronous rounds."""
    if not isinstance(buffer, Buffer):
        raise TypeError(
            f"buffer= must be an fc.Buffer, got {buffer!r}: fc.Buffer(size=3) makes a step of 3 reports"
        )
    if (reason := incompatibility(composed)) is not None:
        raise ValueError(f"a federation with a buffer cannot run this: {reason}; or leave buffer= out")
    if buffer.size > sites:
        raise ValueError(
            f"a buffer of {buffer.size} reports never fills: there are {sites} sites, each once a version"
        )
    if rules.enough is not None or rules.share > 0 or (rules.quorum or 0) > buffer.size:
        raise ValueError(
            f"Rules(quorum={rules.quorum}, share={rules.share:g}, enough={rules.enough}) are of rounds, and with a buffer a step is "
            f"made of {buffer.size} reports: leave share and enough out, and make Buffer(size=) at least as large as the quorum"
        )


class _Waiting(NamedTuple):
    """A report that was validated, and is not counted yet."""

    completed: Completed
    header: Header
    report: tuple[Any, float]
    reports: Reports

    @property
    def size(self) -> Size:
        """The size of the report's numbers."""
        return self.reports.sizes[self.completed.position]


class AsynchronousRounds:
    """Runs server steps, and keeps what lives between them in this process."""

    def __init__(
        self,
        composed: Round,
        buffer: Buffer,
        *,
        requests: Requests,
        collector: Collector,
        data: Mapping[str, str],
        record: Record,
    ) -> None:
        """`data`: the fingerprint of each site's data."""
        self._round, self._buffer = composed, buffer
        self._requests, self._collector, self._data, self._record = requests, collector, data, record
        self._calls = Calls(requests, collector, record)
        self._sizes: deque[Size] = deque(maxlen=max(LEAST, 4 * buffer.size))
        """The sizes of the last reports that counted."""
        self._state: State | None = None
        """The state that the fields below belong to."""
        self.lacked: dict[str, str] = {}
        """{site: reason} of the sites that were at work and gave no report to the last finished step."""

    def init(self, state: State) -> State:
        """The state before the first step: no site is at work."""
        clients: Any = idle(
            len(self._collector.names),
            broadcast(self._round, 0, state, len(self._collector.names))[0],
            self._buffer,
        )
        return state._replace(clients=clients)

    def run(self, state: State, cohort: Any) -> tuple[State, dict[str, Any]]:
        """Runs one step: (state, metrics that add). Free sites of the cohort begin new work."""
        free = free_clients(cohort, len(self._collector.names))
        free = free[~np.isin(free, list(self._collector.unknown))]
        self._collector.begin(int(state.round))
        if state is not self._state:
            self._take_up(state)
        elif self._version != int(state.round):
            self._open(state)
        self._state = None  # if anything else interrupts this step, the next one begins from its own state
        try:
            self._fill(free)
            after, metrics = self._conclude(state)
        except (Paused, NothingLearned):
            self._state = state
            raise
        self._state = after
        return after, metrics

    def versions(self, state: State) -> np.ndarray:
        """[N] int32: the version of each site's own state, always 0, as sites keep none."""
        return np.zeros(len(self._collector.names), np.int32)

    def needs(self, state: State) -> dict[str, Any]:
        """The needs of a resume from this state: sites at work are asked again from an older version."""
        return {"oldest": max(0, int(state.round) - self._buffer.max_staleness), "versions": []}

    def _take_up(self, state: State) -> None:
        """Asks the sites that are at work in this state again."""
        flight: InFlight = state.clients  # type: ignore[assignment]
        self._calls.clear()
        self._sizes.clear()
        self._started, self._last, self._models = (
            np.array(flight.started),
            np.array(flight.last),
            flight.models,
        )
        self._open(state)
        for position in np.flatnonzero(self._started >= 0).tolist():
            version = int(self._started[position])
            # Its report would be refused as too stale, and its model is no longer kept.
            if self._version - version > self._buffer.max_staleness:
                self._started[position] = -1
            else:
                self._calls.begin(position, version, self._request(version))

    def _open(self, state: State) -> None:
        """Begins the step from this state with an empty buffer."""
        self._version = self._calls.number = int(state.round)
        self._context = RunContext(state, np.zeros(len(self._started), np.int32))
        self._models = store_model(
            self._models, self._version, broadcast(self._round, 0, state, len(self._collector.names))[0]
        )
        self._written: dict[int, Bytes] = {}  # version -> request
        self._sums = Aggregation(self._round, 0, state.uplink[0], self._buffer.size)
        self._counted: list[tuple[int, int]] = []  # (position, staleness), in order of arrival
        self._waiting: list[_Waiting] = []
        self._refused, self._stale, self._missing = 0, 0, 0
        self._failed: dict[int, str] = {}  # position -> why the site gave no report to this step

    def _request(self, version: int) -> Bytes:
        if version not in self._written:
            self._written[version] = training(
                self._round, load_model(self._models, version), version, 0, to=(), context=self._context, requests=self._requests,
                collector=self._collector,
            )  # fmt: skip
        return self._written[version]

    def _fill(self, cohort: np.ndarray) -> None:
        """Waits until the buffer is full; raises `Paused` if no site is at work before that."""
        failed: dict[int, int] = {}  # position -> version, of failures in this call

        def begin(position: int) -> None:
            if (
                position in members
                and failed.get(position) != self._version
                and self._started[position] < 0
                and self._last[position] < self._version
            ):
                self._started[position] = self._last[position] = self._version
                self._calls.begin(position, self._version, self._request(self._version))

        members = set(cohort.tolist())
        for position in cohort.tolist():
            begin(position)
        while len(self._counted) < self._buffer.size:
            completed = self._calls.next(self._version - self._buffer.max_staleness)
            if completed is not None:
                self._started[completed.position] = -1
            nothing = (
                {} if completed is None or self._use(completed) else {completed.position: completed.version}
            )
            nothing |= self._count(whatever=completed is None)
            failed |= nothing
            self._last[list(nothing)] = -1  # their version may be tried again
            if completed is None and len(self._counted) < self._buffer.size:
                self._too_few(failed, len(members))
            for position in nothing:
                self._failed[position] = self._collector.replies.reasons.get(position, "no reply")
            # With a full buffer it gets the next model instead.
            if completed is not None and len(self._counted) < self._buffer.size:
                begin(completed.position)

    def _use(self, completed: Completed) -> bool:
        """Validates a reply; returns whether the site did its work, even if too late."""
        position, staleness, reply = completed.position, self._version - completed.version, completed.reply
        if reply is None:
            self._missing += 1
            return False
        if staleness > self._buffer.max_staleness:
            self._stale += 1
            refusal = TooStale(
                f"the report is of version {completed.version}, {staleness} steps ago, and at most {self._buffer.max_staleness} are taken; "
                "the site goes on from the newest model"
            )
            details: dict[str, Scalar] = {
                "accepted": False,
                "code": refusal.code,
                "reason": str(refusal),
                "digest": reply.header.digest,
            }
            self._record(
                reply.header.sender,
                "update",
                self._version,
                {**details, "version": completed.version, "staleness": staleness},
            )
            return True
        reports = Reports(
            completed.header, self._round, self._context.state.uplink[0],
            requests=self._requests, collector=self._collector, data=self._data,
            record=lambda party, what, number, details: self._record(
                party, what, self._version, {**details, "version": number, "staleness": staleness}
            ),
        )  # fmt: skip
        if (report := reports.read(position, reply)) is None:
            self._refused += 1
            return False
        self._waiting.append(_Waiting(completed, reply.header, report, reports))
        return True

    def _count(self, whatever: bool = False) -> dict[int, int]:
        """Counts the waiting reports once their sizes can be compared, or the buffer is full, or `whatever`
        is set.

        Returns {site: version} of the reports that are rejected as absurdly larger than the others.
        """
        waiting, known, here = self._waiting, list(self._sizes), len(self._counted)
        if not (whatever or len(known) + len(waiting) >= LEAST or here + len(waiting) >= self._buffer.size):
            return {}
        outliers = absurd(
            self._collector.rules, [*known, *(one.size for one in waiting)], self._context.state.params
        )
        aside = {i - len(known): what for i, what in outliers.items() if i >= len(known)}
        self._waiting, failed = [], dict[int, int]()
        for i, one in enumerate(waiting):
            position, staleness = one.completed.position, self._version - one.completed.version
            if i in aside:
                one.reports.set_aside(position, aside[i])
                self._refused += 1
                failed[position] = one.completed.version
                continue
            damping = np.float32(self._buffer.damping(staleness))
            self._sums.add(
                one.header,
                one.report,
                len(self._counted),
                factor=damping,
                clients=self._collector.clients_of(position),
            )
            self._counted.append((position, staleness))
            self._sizes.append(one.size)
        return failed

    def _too_few(self, failed: Collection[int], cohort: int) -> NoReturn:
        here, size = len(self._counted), self._buffer.size
        if not failed:
            raise ValueError(
                f"version {self._version} can get only {here} reports and its buffer needs {size}: each site trains once from a version, "
                f"and the cohort has {cohort}; use a smaller Buffer(size=) or a larger cohort"
            )
        reasons = {position: self._failed[position] for position in sorted(failed)} | self._collector.unknown
        missing = with_reasons({self._collector.names[position]: why for position, why in reasons.items()})
        self._record(
            COORDINATOR,
            "paused",
            self._version,
            {"reports": here, "sites": cohort, "missing": missing[:1000]},
        )
        raise Paused(
            f"step {self._version}: {here} reports are in the buffer of {size}, and nobody is at work. Without a report: {missing}. "
            "The state is unchanged: run the step again."
        ) from self._collector.failure(failed)

    def _conclude(self, state: State) -> tuple[State, dict[str, Any]]:
        def record(party: str, what: str, details: Mapping[str, Any]) -> None:
            self._record(party, what, self._version, details)

        # Copies, as these arrays keep changing.
        flight: Any = InFlight(jnp.array(self._started), jnp.array(self._last), self._models)
        after = self._sums.conclude(
            state, f"step {self._version}", self._collector.rules, record, self._requests.noise(state, 0)
        )
        sites, staleness = [position for position, _ in self._counted], sum(s for _, s in self._counted)
        failed = self._collector.unknown | {
            position: why for position, why in self._failed.items() if position not in sites
        }
        self.lacked = self._collector.absent.tell(f"step {self._version + 1}", failed, sites, failed)
        counts: dict[str, Scalar] = {
            "algorithm": self._round.algorithm.name,
            "sites": len(sites),
            "refused": float(self._refused),
        }
        counts |= {"stale": self._stale, "staleness": staleness}
        counts |= in_lines("lacked", self.lacked)
        record(
            COORDINATOR,
            "round",
            counts | partial_entry(self._sums.metrics) | epsilon_entry(self._round, self._version + 1),
        )
        total, weight = np.float32(staleness), np.float32(len(sites))
        metrics = self._sums.metrics | {
            "refused": total_of(self._refused),
            "missing": total_of(self._missing),
            "clients": total_of(sum(map(self._collector.clients_of, sites))),
            "examples": total_of(self._collector.sizes[sites].sum()),
            "staleness": Mean(total, weight),  # type: ignore[arg-type]
            "stale": total_of(self._stale),
        }
        return after._replace(round=state.round + 1, clients=flight), metrics
