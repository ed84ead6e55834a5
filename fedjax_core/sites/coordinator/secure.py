"""One exchange of a round under secure aggregation: the coordinator reads only the sum of the reports.

    request    train    share    mask                     confirm       reveal
    reply      keys     boxes    masked reports, added    signatures    shares ─► the sum ─► conclude

Sites train first, so a slow or dead site drops out before there is a secret to recover. Each of the four
short stages after that goes on with the sites that answered: a site that drops out before its masked report
is there is not in the sum, and one that drops out later is. Below the threshold of the protocol, or the
quorum of the `Rules`, the round ends with `Paused`, which names the stage and the reason of each missing
site; nothing can be read, and the state is unchanged. The coordinator can validate a masked report's shape,
that it is uint32, its signature, its data and its study. It cannot validate the norm and the weight, which
each site checks itself.

A sum is opened for one set of sites only: a repeated round, after a kill or from an earlier checkpoint, asks
the same sites again (`Opened`)."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from fedjax_core import tallies
from fedjax_core.data.cohort import Cohort
from fedjax_core.round import Round
from fedjax_core.secure_aggregation.client import PURPOSE
from fedjax_core.secure_aggregation.messages import (
    MINIMUM,
    Advertised,
    Confirmed,
    Masked,
    Refusal,
    Revealed,
    Shared,
    TooFew,
)
from fedjax_core.secure_aggregation.ring import Masked as Sent
from fedjax_core.secure_aggregation.server import Server
from fedjax_core.sites.coordinator.absent import with_reasons
from fedjax_core.sites.coordinator.collect import Collector, Paused
from fedjax_core.sites.coordinator.exchange import Result
from fedjax_core.sites.coordinator.opened import Opened
from fedjax_core.sites.coordinator.reports import Aggregation, largest_weights, total_of, training
from fedjax_core.sites.coordinator.server import broadcast, server_half
from fedjax_core.sites.coordinator.validation import WrongExchange, check_data
from fedjax_core.sites.protocol.kinds import CONFIRM, MASK, REVEAL, SHARE, WrongConfig
from fedjax_core.sites.protocol.request import BadRequest, Record, Requests, RunContext
from fedjax_core.sites.protocol.secure import (
    ATTEMPT,
    CANNOT_SEE,
    IDENTITIES,
    MESSAGE,
    VECTOR,
    length_of,
    read,
    ring_of,
    terms_of,
    written,
)
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import Scalar, in_lines
from fedjax_core.sites.wire.envelope import COORDINATOR, Envelope, Header, header_of
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.trees import LeafSpec, check_specs

PARTS, TRAINING = 8, 4
"""The number of parts into which an exchange's time is divided, and how many are for training; each later
stage has one."""


def secure_exchange(
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
    roster: Roster,
    opened: Opened,
) -> Result:
    """Runs exchange `e` with the sites at these places of the cohort: the new state, and who is in the sum.

    `data`: the fingerprint of each site's data; `roster`: their keys. Raises `Paused` if there is no sum, and
    ValueError if there never could be one.
    """
    number, where = int(context.state.round), f"round {int(context.state.round)}, exchange {e}"
    turns = {int(cohort.clients[p]): p for p in places}
    before = opened.of(number, e)
    if before is not None:
        if lacking := [
            name for name in before if name not in {collector.names[position] for position in turns}
        ]:
            raise Paused(
                f"{where} was opened before, as the sum of {', '.join(before)}, and sites open it again for the very same ones alone: "
                f"{', '.join(lacking)} must be in its cohort and here. Where they are gone for good, go on with another round, "
                "state._replace(round=state.round + 1). The state is unchanged."
            )
        turns = {position: place for position, place in turns.items() if collector.names[position] in before}
    _check(composed, e, turns, number, collector)
    sent, state = broadcast(composed, e, context.state, len(context.version))
    noise = requests.noise(state, e)
    request = training(
        composed,
        sent,
        number,
        e,
        to=[collector.names[position] for position in turns],
        context=context,
        requests=requests,
        collector=collector,
    )
    run = _Attempt(header_of(request), composed, cohort, requests, collector, data, record, roster)
    try:
        vector, here = run.sum(request, list(turns), opened)
    except TooFew as few:
        raise run.ended(str(few), turns) from few
    except Refusal as refusal:
        raise run.ended(f"secure aggregation ended: {refusal}", turns) from refusal
    ring = ring_of(vector, run.like.ring)
    sums = Aggregation(composed, e, state.uplink[e], len(cohort.clients), cohort.clients)
    by = {turns[position]: collector.names[position] for position in turns if position in here}
    fits: Any = np.float32(0)
    sums.whole(Sent(ring, fits), float(ring.weight), by, len(by))
    state = sums.conclude(state, where, collector.rules, partial(_record_exchange, record, number, e), noise)
    record(
        COORDINATOR,
        "summed",
        number,
        {"exchange": e, "sites": len(by), "secure": CANNOT_SEE, **in_lines("names", by.values())},
    )
    refused = len(run.refused - here)
    metrics = sums.metrics | {
        "refused": total_of(refused),
        "missing": total_of(len(turns) - len(by) - refused),
    }
    return Result(state, list(by), metrics | tallies.on_the_wire(composed, e, len(by), len(turns)))


def _record_exchange(record: Record, number: int, e: int, party: str, what: str, details: Any) -> None:
    record(party, what, number, {**details, "exchange": e})


def _check(composed: Round, e: int, turns: Mapping[int, int], number: int, collector: Collector) -> None:
    """Raises, before any site is asked, if no sum of these sites could be read."""
    if len(turns) < MINIMUM:
        raise Paused(
            f"round {number}, exchange {e}: {len(turns)} sites can be asked, and no site takes part in a sum of fewer than {MINIMUM}, of "
            "which each could be told from the others. The state is unchanged."
        )
    if len(turns) < (least := composed.uplink.promises.reports):
        raise Paused(
            f"round {number}, exchange {e}: {len(turns)} sites can be asked, and the noise that {composed.uplink.name} promises is in a "
            f"sum of at least {least}. The state is unchanged. To go on without more of them, begin a run with a larger dropped="
        )
    ring = composed.uplink.ring
    assert ring is not None
    most = ring.weights // len(turns)
    weights = largest_weights(composed, e, collector, number)
    if weights is not None and (heavy := [position for position in turns if weights[position] > most]):
        names = ", ".join(
            f"{collector.names[position]} up to {weights[position]:g}" for position in heavy[:5]
        )
        raise ValueError(
            f"fc.uplink.secure(bits={ring.bits}, weights={ring.weights}) gives each of {len(turns)} sites a weight of at most {most}, and "
            f"by their examples {names}: make it with larger weights and fewer bits (bits + log2(weights) is at most 32)"
        )


class _Attempt:
    """One attempt at a secure sum, stage by stage."""

    def __init__(
        self, header: Header, composed: Round, cohort: Cohort, requests: Requests, collector: Collector, data: Mapping[str, str],
        record: Record, roster: Roster,
    ) -> None:  # fmt: skip
        self._e, self._cohort = header.exchange, cohort.clients
        self.like = server_half(composed).like[self._e]
        """The shapes of a report without masks."""
        self.refused = set[int]()
        self._least = composed.uplink.promises.reports
        self._header = header
        self._requests, self._collector, self._data, self._record, self._roster = (
            requests,
            collector,
            data,
            record,
            roster,
        )
        self._terms = terms_of(header, length_of(self.like.ring))
        self._server = Server(self._terms, self._fits)
        self._positions = {name: position for position, name in enumerate(collector.names)}

    def sum(self, request: Any, positions: list[int], opened: Opened) -> tuple[np.ndarray, set[int]]:
        """Runs all stages: (the sum, [length] uint32, the sites in it)."""
        server, number = self._server, self._header.round
        keys: dict[int, Advertised] = {}
        self._collect(
            request, positions, lambda position, reply: keys.setdefault(position, self._keys(reply)), TRAINING
        )
        self._quorum(keys, "train")
        roster = server.roster(keys.values())
        identities = np.stack(
            [np.frombuffer(self._roster.keys[one.name].raw, np.uint8) for one in roster.sites]
        )
        share = {MESSAGE: written(roster)[MESSAGE], IDENTITIES: identities}
        shared: dict[int, Shared] = {}
        self._stage(
            SHARE,
            {one.name: share for one in roster.sites},
            lambda position, reply: shared.setdefault(position, self._message(reply, Shared)),
        )
        boxes = server.route(shared.values())
        specs = {f"['{VECTOR}']": LeafSpec("uint32", (self._terms.length,))}

        def add(position: int, reply: Envelope) -> None:
            check_specs(reply.tensors, specs)
            server.add(Masked(reply.header.sender, reply.tensors[f"['{VECTOR}']"]))

        masked = self._stage(MASK, {name: written(message) for name, message in boxes.items()}, add)
        survivors = server.survivors()
        self._quorum(masked, "mask")
        signed: dict[int, Confirmed] = {}
        confirm = written(survivors)
        self._stage(
            CONFIRM,
            dict.fromkeys(survivors.names, confirm),
            lambda position, reply: signed.setdefault(position, self._message(reply, Confirmed)),
        )
        wanted = server.wanted(signed.values())
        opened.add(number, self._e, survivors.names, self._requests.recovery.oldest)
        self._record(
            COORDINATOR, "opens", number, {"exchange": self._e, **in_lines("names", survivors.names)}
        )
        shares: dict[int, Revealed] = {}
        self._stage(
            REVEAL,
            {name: written(message) for name, message in wanted.items()},
            lambda position, reply: shares.setdefault(position, self._message(reply, Revealed)),
        )
        return server.total(shares.values()), masked

    def ended(self, why: str, positions: Collection[int]) -> Paused:
        """The error for a round without a sum: why, and the reason of each missing site."""
        number, reasons = self._header.round, self._collector.replies.reasons
        missing = with_reasons(
            {
                self._collector.names[position]: reasons[position]
                for position in positions
                if position in reasons
            }
        )
        self._record(
            COORDINATOR,
            "paused",
            number,
            {"exchange": self._e, "reason": why[:1000], "missing": missing[:1000]},
        )
        return Paused(
            f"round {number}, exchange {self._e}: {why} Missing: {missing or 'nobody'}. The state is unchanged."
        )

    def _stage(
        self, kind: str, to: Mapping[str, dict[str, np.ndarray]], use: Callable[[int, Envelope], Any]
    ) -> set[int]:
        """Runs one stage: sends each site its message, and returns the sites with a valid answer."""
        values = {ATTEMPT: self._header.sequence, "part_bytes": self._header.fields.get("part_bytes")}
        fields: dict[str, Scalar] = {name: value for name, value in values.items() if value is not None}
        made: dict[int, Any] = {}  # id of the message -> request, made once if it goes to all
        requests = {}
        for name, body in to.items():
            if id(body) not in made:
                made[id(body)] = self._requests.concerning(self._header, kind, fields, body)
            requests[self._positions[name]] = made[id(body)]
        details: dict[str, Scalar] = {
            "kind": kind,
            "exchange": self._e,
            "bytes": sum(map(len, requests.values())),
        }
        self._record(COORDINATOR, "asked", self._header.round, details | in_lines("names", to))
        return self._collect(requests, sorted(requests), use, 1)

    def _collect(
        self, request: Any, positions: list[int], use: Callable[[int, Envelope], Any], parts: int
    ) -> set[int]:
        def used(position: int, reply: Envelope) -> bool:
            try:
                use(position, reply)
            except (Refused, Refusal) as refusal:
                self.refused.add(position)
                self._collector.replies.reasons[position] = (
                    f"its answer was set aside ({refusal.code}): {refusal}"
                )
                details: dict[str, Scalar] = {
                    "accepted": False,
                    "code": refusal.code,
                    "reason": str(refusal)[:1000],
                    "digest": reply.header.digest,
                }
                self._record(
                    reply.header.sender, "update", self._header.round, {**details, "exchange": self._e}
                )
                return False
            return True

        return set(self._collector.collect(request, self._header.round, positions, used, parts=parts))

    def _keys(self, reply: Envelope) -> Advertised:
        """The keys in a reply to the request to train, after checking its study, exchange and data."""
        header = reply.header
        if header.config != self._requests.config:
            raise WrongConfig(
                "the site has another study than the run: both ends need the same algorithm, settings, code and fedjax_core"
            )
        if header.exchange != self._e:
            raise WrongExchange(
                f"the keys are of exchange {header.exchange} of the round, and this is {self._e}"
            )
        code = check_data(header, self._data)
        advertised = self._message(reply, Advertised)
        if not self._fits(advertised.name, PURPOSE, advertised.signed(self._terms), advertised.signature):
            raise BadRequest(f"the keys of {advertised.name!r} are not signed by it for this round")
        self._record(
            header.sender,
            "update",
            header.round,
            {"accepted": True, "code": code, "digest": header.digest, "exchange": self._e},
        )
        return advertised

    def _message(self, reply: Envelope, kind: type[Any]) -> Any:
        """The message of this kind in a reply; raises if it is in another site's name."""
        message: Any = read(reply.tensors, kind)
        if message.name != reply.header.sender:
            raise BadRequest(
                f"{reply.header.sender!r} sent a message {kind.__name__} in the name of another site"
            )
        return message

    def _fits(self, name: str, purpose: str, data: bytes, signature: bytes) -> bool:
        key = self._roster.keys.get(name)
        return key is not None and key not in self._roster.revoked and key.fits(purpose, data, signature)

    def _quorum(self, here: Collection[int], stage: str) -> None:
        if len(here) < self._least:
            raise TooFew(stage, len(here), self._least)
        self._collector.check_quorum(
            self._header.round, self._cohort, list(here), f"exchange {self._e}, stage {stage!r}"
        )
