"""Synchronous rounds: a round's exchanges with its cohort, and the versions of the sites' own state after it.

    for each exchange:  requests ─► sites of the cohort ─► reports, plain or masked ─► the next state
    at the end:         versions, metrics that add, missing sites and reasons, the round's entry in the audit log

A round is all or nothing: if too few sites report, `Paused` is raised, and the caller still has the former
state."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core.composition import check_repeats
from fedjax_core.data.cohort import as_cohort
from fedjax_core.metrics import add
from fedjax_core.round import Round, State
from fedjax_core.sites.coordinator.collect import Collector
from fedjax_core.sites.coordinator.exchange import exchange
from fedjax_core.sites.coordinator.opened import Opened
from fedjax_core.sites.coordinator.reports import total_of
from fedjax_core.sites.coordinator.secure import PARTS, secure_exchange
from fedjax_core.sites.protocol.report import epsilon_entry, partial_entry
from fedjax_core.sites.protocol.request import Record, Requests, RunContext
from fedjax_core.sites.wire.canonical import Scalar, in_lines
from fedjax_core.sites.wire.envelope import COORDINATOR
from fedjax_core.sites.wire.identity import Roster


class Versions(NamedTuple):
    """The coordinator's knowledge of the clients' own state: which version of it is valid."""

    # [N] int32: 0 before a client's first report that counted, round * exchanges + exchange + 1 after its last
    version: np.ndarray


class SynchronousRounds:
    """Runs one round after another over the sites of a collector."""

    def __init__(
        self,
        composed: Round,
        *,
        requests: Requests,
        collector: Collector,
        data: Mapping[str, str],
        roster: Roster,
        opened: Opened,
        record: Record,
    ) -> None:
        """`data`: the fingerprint of each site's data. `opened`: the sums that were unmasked before, for
        reports under masks."""
        self._round, self._collector, self._requests, self._record = composed, collector, requests, record
        self._ends: dict[str, Any] = {
            "requests": requests,
            "collector": collector,
            "data": data,
            "record": record,
        }
        self._under_masks: dict[str, Any] = {"roster": roster, "opened": opened}
        exchanges = composed.algorithm.exchanges
        self._masked = [composed.uplink.ring is not None and one.update is not None for one in exchanges]
        self.lacked: dict[str, str] = {}
        """{site: reason} of the sites missing in the last finished round."""

    def init(self, state: State) -> State:
        """The state before the first round, in which version 0 of every site's own state counts."""
        versions: Any = Versions(np.zeros(len(self._collector.names), np.int32))
        return state._replace(clients=versions)

    def versions(self, state: State) -> np.ndarray:
        """[N] int32: the valid version of each site's own state."""
        return np.asarray(state.clients.version)  # type: ignore[attr-defined]

    def needs(self, state: State) -> dict[str, Any]:
        """The client state that sites must still have for a resume from this state."""
        return {"oldest": int(state.round), "versions": self.versions(state).tolist()}

    def run(self, state: State, cohort: Any) -> tuple[State, dict[str, Any]]:
        """Runs one round: (state, metrics that add)."""
        number, collector = int(state.round), self._collector
        chosen = as_cohort(cohort, len(collector.names))
        check_repeats(self._round, int(chosen.counts.max(initial=0)), "site")
        collector.begin(number, chosen.clients, sum(PARTS if masked else 1 for masked in self._masked))
        places = [
            place
            for place, position in enumerate(chosen.clients.tolist())
            if position not in collector.unknown
        ]
        metrics: dict[str, Any] = {
            "refused": total_of(0),
            "missing": total_of(len(chosen.clients) - len(places)),
        }
        version = np.array(self.versions(state))
        needed = self._requests.recovery.needed(version) if jax.tree.leaves(self._requests.first) else None
        for e, masked in enumerate(self._masked):
            step: Any = secure_exchange if masked else exchange
            more = self._under_masks if masked else {}
            result = step(
                self._round, e, RunContext(state, version, needed), chosen, places, **self._ends, **more
            )
            state, places = result.state, result.places
            version[chosen.clients[places]] = number * len(self._masked) + e + 1
            metrics = add(metrics, result.metrics)
        here = chosen.clients[places]
        metrics |= {
            "clients": total_of(sum(map(collector.clients_of, here))),
            "examples": total_of(collector.sizes[here].sum()),
        }
        self.lacked = collector.absent.tell(
            f"round {number + 1}", chosen.clients.tolist(), set(here.tolist()), collector.replies.reasons
        )
        counts: dict[str, Scalar] = {
            "algorithm": self._round.algorithm.name,
            "sites": len(here),
            "refused": float(metrics["refused"].total),
        }
        counts |= in_lines("lacked", self.lacked)
        self._record(
            COORDINATOR,
            "round",
            number,
            counts | partial_entry(metrics) | epsilon_entry(self._round, number + 1),
        )
        version.flags.writeable = False
        after: Any = Versions(version)
        return state._replace(round=np.asarray(number + 1, np.int32), clients=after), metrics  # type: ignore[arg-type]
