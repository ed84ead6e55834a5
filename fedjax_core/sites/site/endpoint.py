"""`Site`: one institution's end of a federation, which answers requests.

It is the only code that touches the institution's data, key, policy, audit log and client state.

    handle(request) -> reply        bytes in, bytes out, whatever they are; a transport carries them

    decode ─► replay? ─► clock ─► policy ─► parts: assembled ─► handler ─► reply, in parts if it is large
       └──────────── refused: a code and a reason, recorded ───────┘

`handlers.py` answers each kind of request, from the data in `context.py`. The policy is asked before any work
and before anything leaves (`enforcement.py`), even if a reply is ready. What leaves is recorded in the site's
audit log first. Requests may come twice: the same bytes get the same bytes back, and the same request in a
new message gets the same numbers, as a site computes only from its folder and the request. Only the process
remembers replies, so a site that died at work can be asked again.

A refusal has a code and names of settings. If its reason may depend on the site's data, it only says
`declined`: which of several things went wrong would disclose something about the data. The reason is in the
site's audit log, and in full in its `errors.log`."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import UNSET

from fedjax_core.sites.multipart.manifest import read_manifest
from fedjax_core.sites.multipart.replies import Outbox
from fedjax_core.sites.multipart.requests import Inbox
from fedjax_core.sites.policy.budget import check_size
from fedjax_core.sites.policy.enforcement import Declined, Withdrawn
from fedjax_core.sites.policy.question import question
from fedjax_core.sites.protocol.kinds import (
    ANNOUNCE,
    DELIVERED,
    KINDS,
    LACKING,
    PART,
    PARTS,
    WrongConfig,
    WrongKind,
    leaving,
)
from fedjax_core.sites.protocol.report import PARTIAL
from fedjax_core.sites.protocol.request import TRAIN_SECONDS
from fedjax_core.sites.refusal import Refused, printable
from fedjax_core.sites.site.context import SiteContext
from fedjax_core.sites.site.handlers import HANDLERS
from fedjax_core.sites.site.reviewed import check_code
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study, build, here
from fedjax_core.sites.wire.canonical import Bytes, Scalar
from fedjax_core.sites.wire.envelope import COORDINATOR, SITES, Envelope, Header, decode, encode
from fedjax_core.sites.wire.identity import PublicKey, Roster, read_public
from fedjax_core.sites.wire.replay import SKEW_SECONDS, ReplayGuard, check_clock
from fedjax_core.sites.wire.trees import to_tensors

log = logging.getLogger("fedjax_core")

_OLDEST_MS = 24 * 3600 * 1000  # how long a request may be under way


class Site:
    """The site of a `SiteFile`. Use it in a `with`: it holds its audit log open."""

    def __init__(
        self, site_file: SiteFile, study: Study | None = None, coordinator: PublicKey | None = None
    ) -> None:
        """`study` and `coordinator`: used if the file names none."""
        if site_file.study is not None:
            study = build(site_file.study, site_file.arguments)
            if site_file.folder is not None:
                check_code(site_file.folder, site_file.study, study.hash)
        if site_file.coordinator is not None:
            name, coordinator = read_public(site_file.coordinator)
            if name != COORDINATOR:
                raise ValueError(
                    f"{site_file.coordinator} is the key of {name!r}; a site listens to {COORDINATOR!r} alone"
                )
        if study is None or coordinator is None:
            raise ValueError(
                f"site {site_file.name} needs a study and the coordinator's public key: name them in its file"
            )
        self.name = site_file.name
        self.context = SiteContext(site_file, study)
        """The data and accounts that the handlers work on."""
        self.inbox, self.outbox = Inbox(), Outbox()
        """The last request, and the last reply, that were too large to travel at once."""
        self.failed: Exception | None = None
        """The exception of the study's code, or this package, in the last request; for sites in the user's
        own process."""
        self._roster = Roster({COORDINATOR: coordinator})
        self._guards: dict[str, ReplayGuard] = {}
        self._at_work = False  # whether an error may depend on the data now
        self._last: dict[str, tuple[tuple[str, int, str], Bytes]] = {}  # kind -> (request, reply)
        self._withdrawn: set[str] = set()

    def __enter__(self) -> "Site":
        site = self.context
        if site.log is not None:
            site.log.__enter__()
            data = site.data
            details: dict[str, Scalar] = {
                "config": site.study.hash,
                "data": data.fingerprint,
                "examples": data.raw.examples,
                **data.counted,
            }
            details |= data.held_out
            site.log.record(
                self.name,
                "opened",
                about=details if data.skipped is None else details | {"skipped": data.skipped},
            )
        return self

    def __exit__(self, *error: Any) -> None:
        if self.context.log is not None:
            self.context.log.__exit__(None, None, None)
        self.context.enforcement.answered.close()

    def handle(self, request: Bytes) -> Bytes:
        """The reply to a request, whatever it contains; raises nothing."""
        header = None
        self._at_work, self.context.question, self.failed = False, None, None
        try:
            envelope = self._decode(request)
            header = envelope.header
            which = (header.key, header.sequence, header.digest)
            known = self._last.get(header.kind)
            # A transport's retry, which is no replay.
            if known is not None and known[0] == which:
                self.context.enforcement.check(header, self._leaving(header))  # the policy may have changed
                return known[1]
            envelope = self._admit(envelope)
            if KINDS[header.kind].again:
                return self._announced(envelope) if header.kind == ANNOUNCE else self._delivered(envelope)
            reply = (
                self.outbox.part(header)
                if header.kind == PART
                else HANDLERS[header.kind](self.context, envelope)
            )
            if (parts := self.outbox.split(header, reply)) is not None:
                reply = self._message(PARTS, header, parts.fields(), {"digests": parts.digests})
            self._last[header.kind] = which, reply
            return reply
        except Refused as refusal:
            if header is not None and isinstance(refusal, Withdrawn):
                self._withdraw(header)
            if header is not None and refusal.of_data:
                return self._decline(header, refusal, str(refusal))
            return self._refuse(header, refusal.code, str(refusal))
        except Exception as error:
            self.failed = error
            reason = f"{self.name} failed with {type(error).__name__}; its errors.log says more"
            if header is not None and self._at_work:
                return self._decline(header, error, reason)
            self.context.note(error)
            return self._refuse(header, "error", reason)

    def _decode(self, request: Bytes) -> Envelope:
        return decode(request, self._roster, recipient=SITES)

    def _admit(self, envelope: Envelope) -> Envelope:
        """Checks a request's study, replay, clock and policy, applies its preprocessing, and returns it for a
        handler."""
        site, header = self.context, envelope.header
        kind = KINDS.get(header.kind)
        if kind is None:
            raise WrongKind(
                f"requests of kind {header.kind!r} are not answered here; a site answers {', '.join(KINDS)}"
            )
        if header.config != site.study.hash:
            raise WrongConfig(
                "the site has another study than the run: both ends need the same algorithm, settings, code and fedjax_core. "
                f"Here are {here()}; the doctor at the site names the package that differs"
            )
        if not kind.again:
            guard = self._guards.get(header.run, ReplayGuard(header.run, 0)).at(header.round)
            self._guards[header.run] = guard.accept(
                sender=header.sender, run=header.run, round=header.round, sequence=header.sequence
            )
            self._hold(header)
        now = int(time.time() * 1000)
        check_clock(
            header.sender,
            header.created_unix_ms,
            earliest_unix_ms=now - _OLDEST_MS,
            latest_unix_ms=now,
            skew_seconds=SKEW_SECONDS,
        )
        any_model = site.enforcement.policy.evaluation.models == "any"
        query = question(envelope, site.places, site.data.fingerprint, any_model=any_model)
        site.enforcement.check(header, self._leaving(header), site.budget.seconds_today, query)
        site.question, self._at_work = query, not kind.again
        if kind.prepared:
            before, envelope = site.data.numbers, site.data.prepared(envelope)
            if site.data.numbers != before and site.log is not None:
                site.log.record(
                    self.name,
                    "prepared",
                    run=header.run,
                    round=header.round,
                    about={"numbers": site.data.numbers},
                )
        return envelope

    def _leaving(self, request: Header) -> tuple[str, ...]:
        """The fields that the reply will have in any case."""
        study = self.context.study
        secure = study.secure(request.exchange) is not None
        fields = leaving(request.kind, departments=study.departments, stats=study.stats, secure=secure)
        return fields + (PARTIAL if TRAIN_SECONDS in request.fields and not secure else ())

    def _announced(self, envelope: Envelope) -> Bytes:
        """Replies with the parts that the site lacks of an announced request; if it lacks none, with the
        answer to the request."""
        header = envelope.header
        manifest = read_manifest(envelope, header)
        check_size(self.context.enforcement.policy.caps, manifest.length)
        coming = self.inbox.announce(manifest, header.sequence)
        if coming.here.all():
            return self.handle(coming.whole)
        return self._message(LACKING, header, {"of": manifest.digest}, {"lacking": ~coming.here})

    def _delivered(self, envelope: Envelope) -> Bytes:
        """Takes a part of a request, and confirms it."""
        i = self.inbox.deliver(envelope)
        return self._message(DELIVERED, envelope.header, {"of": envelope.header.fields["of"], "part": i})

    def _message(
        self,
        kind: str,
        request: Header,
        fields: Mapping[str, Scalar],
        tensors: Mapping[str, np.ndarray] | None = None,
    ) -> Bytes:
        """A signed message without anything about the site's data, so it needs neither policy nor audit
        log."""
        return encode(
            self.context.header(kind, request, fields),
            to_tensors(tensors) if tensors else {},
            self.context.key,
        )

    def _hold(self, request: Header) -> None:
        """Holds the head of the coordinator's log from a request, and records if that log has gone back."""
        log = self.context.log
        if log is None or request.head is UNSET:
            return
        if (wrong := log.hold(COORDINATOR, request.run, request.sequence, request.head)) is not None:
            log.record(
                COORDINATOR, "head went back", run=request.run, round=request.round, about={"reason": wrong}
            )

    def _withdraw(self, request: Header) -> None:
        """Records once in the audit log that the site has withdrawn from a run."""
        site = self.context
        if site.log is not None and request.run not in self._withdrawn:
            site.log.record(
                self.name,
                "withdrew",
                run=request.run,
                round=request.round,
                about={"key": site.key.public.fingerprint},
            )
        self._withdrawn.add(request.run)

    def _decline(self, request: Header, error: Exception, reason: str) -> Bytes:
        """Refuses for a reason that only the site's staff may see; after work on the data it counts like an
        update."""
        site = self.context
        self.context.note(error)
        counted = site.enforcement.declined(request, site.question) if self._at_work else {}
        details: dict[str, Scalar] = {
            "code": error.code if isinstance(error, Refused) else "error",
            "reason": printable(reason)[:500],
        }
        if site.log is not None:
            site.log.record(
                self.name,
                "refused",
                run=request.run,
                round=request.round,
                about=details | {"said": Declined.code} | counted,
            )
        if site.folder is None:  # a trial in one's own process, which writes no log
            log.warning("site %s declined: %s", self.name, reason)
        where = (
            "the log of its process has it"
            if site.folder is None
            else "its errors.log has it, and its audit log (--what refused)"
        )
        message = f"{self.name} declined, for a reason that is for its staff: {where}"
        if TRAIN_SECONDS in request.fields:
            message += "; the time to train was limited, and more of it may be needed (Rules.train_seconds)"
        return self._message("refusal", request, {"code": Declined.code, "reason": message})

    def _refuse(self, request: Header | None, code: str, reason: str) -> Bytes:
        request = request or Header(
            kind="unknown",
            run="unknown",
            round=0,
            exchange=0,
            sender=COORDINATOR,
            recipient=SITES,
            sequence=0,
            created_unix_ms=0,
            config="",
        )
        fields: dict[str, Scalar] = {"code": code, "reason": printable(reason)[:500]}
        if self.context.log is not None:
            self.context.log.record(self.name, "refused", run=request.run, round=request.round, about=fields)
        return self._message("refusal", request, fields)
