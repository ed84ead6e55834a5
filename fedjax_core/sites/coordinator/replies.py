"""Authenticates replies: signature, sender, clock, replay, and the request that each answers.

Everything else is rejected and recorded.

    future ─► fetched? ─► signature, sender ─► clock ─► run, round, replay? ─► kind, request ─► the reply
                 └ lost        └────────── refused: its code and reason in the audit log ────────┘

>>> from fedjax_core.sites.wire.identity import SiteKey
>>> from fedjax_core.sites.wire.envelope import SITES
>>> from fedjax_core.sites.wire.envelope import encode
>>> key = SiteKey.make("charite")
>>> record = lambda party, what, number, details: print(what, details.get("code"))
>>> replies = Replies("run", ["charite"], Roster({"charite": key.public}), record)
>>> place = {"run": "run", "round": 3, "exchange": 0, "created_unix_ms": 0, "config": "3f9a"}
>>> request = Header(kind="describe", sender=COORDINATOR, recipient=SITES, sequence=1, digest="ab12", **place)
>>> header = Header(kind="description", sender="charite", recipient=COORDINATOR, sequence=7, answers="ab12", **place)
>>> future = Future()
>>> future.set_result(encode(header, {}, key))
>>> replies.begin(3)
>>> reply = replies.accept(future, 0, 3, request)
answered None
>>> replies.accept(future, 0, 3, request) is None
refused replayed
True
"""

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future

from msgspec import UNSET

from fedjax_core.sites.multipart.manifest import read_manifest
from fedjax_core.sites.multipart.requests import OutgoingRequest
from fedjax_core.sites.protocol.kinds import KINDS, LACKING, PARTS
from fedjax_core.sites.protocol.request import Record
from fedjax_core.sites.refusal import Refused, shown
from fedjax_core.sites.wire.canonical import Scalar
from fedjax_core.sites.wire.envelope import COORDINATOR, Envelope, Header, decode
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.replay import SKEW_SECONDS, ReplayGuard, check_clock
from fedjax_core.sites.wire.transport import Reply, bring


class WrongSender(Refused):
    """The reply comes from another site than the one that was asked."""

    code = "wrong-sender"


class WrongReply(Refused):
    """The reply answers another request, or is of another kind."""

    code = "wrong-reply"


class Replies:
    """Authenticates the replies of the sites in one run, by their positions."""

    def __init__(self, run: str, names: Sequence[str], roster: Roster, record: Record) -> None:
        self.reasons: dict[int, str] = {}
        """{position: reason} of the sites without a reply to the last request."""
        self.heads: dict[str, tuple[int, str]] = {}
        """{site: (message number, head)}: the last head of its audit log that each site sent."""
        self._names, self._roster, self._record = names, roster, record
        self._guard = ReplayGuard(run, 0)

    def begin(self, number: int) -> None:
        """Begins round `number`."""
        self._guard = self._guard.at(number)

    def accept(
        self, future: "Future[Reply]", position: int, number: int, request: Header, outgoing: OutgoingRequest | None = None,
        *, skew_seconds: float = SKEW_SECONDS,
    ) -> Envelope | None:  # fmt: skip
        """The authentic reply of the site at this position to this request; None if what came is not one.

        The request may be of an earlier round than the present one, `number`. `outgoing`: the request in
        parts, if a site may lack some."""
        name = self._names[position]
        try:
            raw = bring(future)
        except Refused as refusal:
            self.reasons[position] = str(refusal)
            self._refuse(position, number, refusal)
            return None
        except Exception as error:
            self.reasons[position] = f"no reply came through ({type(error).__name__})"
            self._record(name, "lost", number, {"reason": type(error).__name__})
            return None
        try:
            envelope = decode(raw, self._roster, recipient=COORDINATOR)
            header = envelope.header
            if header.sender != name:
                raise WrongSender(
                    f"{shown(header.sender)} answered a request to {name!r}; the transport brought it to the wrong place"
                )
            check_clock(
                name, header.created_unix_ms, earliest_unix_ms=request.created_unix_ms, latest_unix_ms=int(time.time() * 1000),
                skew_seconds=skew_seconds,
            )  # fmt: skip
            guard = self._guard.at(request.round).accept(
                sender=header.sender, run=header.run, round=header.round, sequence=header.sequence
            )
            kind = KINDS[request.kind].reply
            if header.kind == PARTS and header.answers == request.digest:
                read_manifest(envelope, request)
                return envelope  # a manifest may come again; only the reply itself is accepted once
            if header.kind == LACKING and outgoing is not None and header.answers == outgoing.digest:
                outgoing.lacking(envelope)
                return envelope
            self._guard = guard.at(number)
            if header.kind not in (kind, "refusal") or (
                header.kind != "refusal" and header.answers != request.digest
            ):
                raise WrongReply(
                    f"the reply of {name!r} is of kind {header.kind!r}, or to another request; it should answer the last one"
                )
        except Refused as refusal:
            self.reasons[position] = str(refusal)
            self._refuse(position, number, refusal)
            return None
        # Replies may overtake one another.
        if header.head is not UNSET and header.sequence > self.heads.get(name, (0, ""))[0]:
            self.heads[name] = header.sequence, header.head
        if header.kind == "refusal":
            details: dict[str, Scalar] = {k: str(header.fields.get(k))[:500] for k in ("code", "reason")}
            self.reasons[position] = str(details["reason"])
            self._record(name, "declined", number, details)
        elif request.kind != "train":  # reports are recorded with their validation
            self._record(
                name, "answered", number, {"kind": header.kind, "bytes": header.size, "digest": header.digest}
            )
        return envelope

    def _refuse(self, position: int, number: int, refusal: Refused) -> None:
        """Records why the message from the site at this position is rejected."""
        self._record(
            self._names[position], "refused", number, {"code": refusal.code, "reason": str(refusal)[:1000]}
        )

    def record_late(self, future: "Future[Reply]", position: int) -> bool:
        """Records a late reply; returns whether it really came from the site."""
        try:
            raw = bring(future)
        except Refused as refusal:
            self._refuse(position, self._guard.round, refusal)
            return False
        except Exception:  # nothing came, and nobody waits for it
            return False
        own = False
        details: dict[str, Scalar] = {
            "code": "late",
            "reason": "came after its exchange was over, or for the second time",
        }
        with contextlib.suppress(Refused):
            header = decode(raw, self._roster, recipient=COORDINATOR).header
            details |= {"of_round": header.round, "digest": header.digest, "kind": header.kind}
            own = header.sender == self._names[position]
        self._record(self._names[position], "refused", self._guard.round, details)
        return own
