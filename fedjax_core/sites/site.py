"""A site: one institution's data, key, policy, ledger and client state, and the only code that touches them.

    handle(request) -> reply        bytes in, bytes out, whatever comes in; the transport is somebody else's

What a request may ask for is in `answers.py`, and what it is answered from in `site_data.py`. The policy is asked before any work and
before anything leaves (`terms.py`), also where a reply is ready. What leaves is recorded in the site's ledger first. Requests may come
twice: the same bytes get the same bytes back, and the same request anew gets the same numbers, as all that a site computes from is in its
folder and in the request. Replies are remembered by the process only, so that a site that died at work can be asked again.

A refusal carries a code and names of settings. Where its reason may have to do with the site's data, it says `declined` and nothing else:
which of several things went wrong would be an answer about them. The reason is in the site's ledger, and in full in its `errors.log`.
"""

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from msgspec import UNSET

from fedjax_core.files import make_folder, opener
from fedjax_core.round import Kept, state_shapes
from fedjax_core.sites import parts
from fedjax_core.sites.announce import Incoming
from fedjax_core.sites.answered import ALL, Question
from fedjax_core.sites.answers import ANSWERS, leaving
from fedjax_core.sites.audit import Log
from fedjax_core.sites.base import Bytes, Refused, Scalar, listed, printable
from fedjax_core.sites.caps import Budget
from fedjax_core.sites.entries import NOTHING
from fedjax_core.sites.forms import Form
from fedjax_core.sites.gate import WrongConfig, WrongKind
from fedjax_core.sites.guard import SKEW_SECONDS, Guard, check_clock
from fedjax_core.sites.heads import HELD
from fedjax_core.sites.identity import PublicKey, Roster, read_public
from fedjax_core.sites.keep import Keep
from fedjax_core.sites.left import Left
from fedjax_core.sites.limit import PARTIAL, Done
from fedjax_core.sites.question import Places, question
from fedjax_core.sites.request import TRAIN_SECONDS, about_sites, addresses
from fedjax_core.sites.reviewed import check_code
from fedjax_core.sites.site_data import SiteData
from fedjax_core.sites.site_file import SiteFile, load_key, metrics_of, usual_policy
from fedjax_core.sites.study import Study, build, here
from fedjax_core.sites.terms import Declined, Terms, Withdrawn
from fedjax_core.sites.wire import COORDINATOR, SITES, Draft, Envelope, Header, decode, encode

log = logging.getLogger("fedjax_core")

_OLDEST_MS = 24 * 3600 * 1000  # a request may be so long under way


class Site:
    """The site of a `SiteFile`. Use it in a `with`: it holds its ledger open."""

    def __init__(self, about: SiteFile, study: Study | None = None, coordinator: PublicKey | None = None) -> None:
        """`study` and `coordinator` are for where the file names none."""
        if about.study is not None:
            study = build(about.study, about.arguments)
            if about.folder is not None:
                check_code(about.folder, about.study, study.hash)
        if about.coordinator is not None:
            name, coordinator = read_public(about.coordinator)
            if name != COORDINATOR:
                raise ValueError(f"{about.coordinator} is the key of {name!r}; a site listens to {COORDINATOR!r} alone")
        if study is None or coordinator is None:
            raise ValueError(f"site {about.name} needs a study and the coordinator's public key: name them in its file")
        self.name, self.about, self.study, self.folder = about.name, about, study, about.folder
        self.key = load_key(about)
        handed = about.key is None and about.folder is None and not isinstance(about.data, (str, Path))  # over, for a try, by who asks
        self.data = SiteData(about, study, None if handed else self.key)
        if (bad := self.data.bad) is not None and len(bad):
            self._note(ValueError(f"{len(bad)} bad records were left out, of the rows {listed(bad.tolist())}"))
        self.metrics = metrics_of(study, self.data.raw)
        """The names of what is measured in training and in evaluation."""
        usual = usual_policy(about, study, self.data.raw)
        self.terms = Terms(self.name, usual, asked=self.data.asked, file=about.policy, folder=self.folder)
        """What its policy says of requests, and of what would leave."""
        self.log = Log(self.folder / "audit", self.key) if self.folder is not None else None
        self.left = Left(self.folder, int(about.left_gb * 1e9))
        self.budget, self.done = Budget(self.folder), Done(self.folder)
        self._withdrawn: set[str] = set()
        self._roster = Roster({COORDINATOR: coordinator})
        self.address: np.ndarray = addresses([self.name])[0]
        self.failed: Exception | None = None
        """What the code of the study, or this package, raised over the last request: for whoever has the site in their own process."""
        self._keeps: dict[str, Keep] = {}
        self._guards: dict[str, Guard] = {}
        self._said = 0
        self.asked: Question | None = None
        """The question that is being answered."""
        self._at_work = False  # whether what comes now may depend on the data
        self._last: dict[str, tuple[tuple[str, int, str], Bytes]] = {}  # kind -> (request, reply)
        self.large: parts.Large | None = None
        """The last reply that was too large to travel at once."""
        self.incoming: Incoming | None = None
        """The last request that was."""
        composed = study.round
        shapes = state_shapes(composed)
        self.server, self.params = shapes.server, shapes.params
        self.kept_shapes: Kept = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes.clients)
        messages = [jax.eval_shape(exchange.broadcast, shapes.server) for exchange in composed.algorithm.exchanges]
        self.form = lru_cache(maxsize=8)(partial(_form, messages, shapes.uplink, self.kept_shapes))
        """(exchange, how many sites, whether what a site keeps before its first report is there) -> the form of a request to train."""

    def __enter__(self) -> "Site":
        if self.log is not None:
            self.log.__enter__()
            data = self.data
            about: dict[str, Scalar] = {"config": self.study.hash, "data": data.fingerprint, "examples": data.raw.examples, **data.counted}
            about |= data.held_out
            self.log.record(self.name, "opened", about=about if data.skipped is None else about | {"skipped": data.skipped})
        return self

    def __exit__(self, *error: Any) -> None:
        if self.log is not None:
            self.log.__exit__(None, None, None)
        self.terms.answered.close()

    def handle(self, request: Bytes) -> Bytes:
        """The reply to a request, whatever it is; raises nothing over it."""
        header = None
        self._at_work, self.asked, self.failed = False, None, None
        try:
            envelope = self._decode(request)
            header = envelope.header
            which = (header.key, header.sequence, header.digest)
            known = self._last.get(header.kind)
            if known is not None and known[0] == which:  # a transport that tries again, of which the guard must not speak
                self.terms.check(header, self._leaving(header))  # as the policy is now
                return known[1]
            reply = self._answer(envelope)
            if ANSWERS[header.kind].again:
                return reply
            reply = parts.split(self, header, reply)
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
            said = f"{self.name} failed with {type(error).__name__}; its errors.log says more"
            if header is not None and self._at_work:
                return self._decline(header, error, said)
            self._note(error)
            return self._refuse(header, "error", said)

    def kept(self, run: str, version: int) -> Kept:
        """What the site keeps, at a version; for the site's own staff."""
        return self.keep(run).read(version, self.kept_shapes)

    def _decode(self, request: Bytes) -> Envelope:
        return decode(request, self._roster, recipient=SITES)

    def _answer(self, envelope: Envelope) -> Bytes:
        header = envelope.header
        answer = ANSWERS.get(header.kind)
        if answer is None:
            raise WrongKind(f"requests of kind {header.kind!r} are not answered here; a site answers {', '.join(ANSWERS)}")
        if header.config != self.study.hash:
            raise WrongConfig(
                "the site has another study than the run: both ends need the same algorithm, settings, code and fedjax_core. "
                f"Here are {here()}; the doctor at the site names the package that differs"
            )
        if not answer.again:
            guard = self._guards.get(header.run, Guard(header.run, 0)).at(header.round)
            self._guards[header.run] = guard.admit(sender=header.sender, run=header.run, round=header.round, sequence=header.sequence)
            self._hold(header)
        now = int(time.time() * 1000)
        check_clock(header.sender, header.created_unix_ms, earliest_unix_ms=now - _OLDEST_MS, latest_unix_ms=now, skew_seconds=SKEW_SECONDS)
        any_model = self.terms.policy.evaluation.models == "any"
        asked = question(envelope, self._places, self.data.fingerprint, any_model=any_model)
        self.terms.check(header, self._leaving(header), self.budget.seconds_today, asked)
        self.asked, self._at_work = asked, not answer.again
        if answer.prepared:
            before, envelope = self.data.numbers, self.data.prepared(envelope)
            if self.data.numbers != before and self.log is not None:
                self.log.record(self.name, "prepared", run=header.run, round=header.round, about={"numbers": self.data.numbers})
        return answer.compute(self, envelope)

    def _leaving(self, request: Header) -> tuple[str, ...]:
        """The fields that the reply will have whatever comes of the work."""
        return leaving(request.kind, self.study) + (PARTIAL if TRAIN_SECONDS in request.fields else ())

    @cached_property
    def _places(self) -> Places:
        return Places.of(self.study.round.algorithm, self.server, prepares=bool(self.study.prepare))

    def keep(self, run: str) -> Keep:
        """Where the site keeps what it has between the rounds of a run."""
        if run not in self._keeps:
            self._keeps[run] = Keep(None if self.folder is None else self.folder / "kept" / run)
        return self._keeps[run]

    def reply(
        self,
        request: Header,
        fields: Mapping[str, Scalar],
        tensors: Mapping[str, np.ndarray] | None = None,
        more: Mapping[str, Scalar] | None = None,
        steps: int = ALL,
    ) -> Bytes:
        """The signed reply, once the policy lets it out and the ledger has it, with what is `more` to say there.

        `steps`: of how many the work was, where its time was limited.
        """
        tensors = tensors or {}
        header = self.header(ANSWERS[request.kind].reply, request, fields)
        norm = self.terms.let_out(request, tensors)
        draft = Draft(header, tensors, self.key)
        counted = self.terms.count(request, draft.header.digest, self.asked, steps)
        if self.log is None:
            return draft.signed()
        more = {**(more or {}), **counted}
        if self.left.most_bytes and tensors:
            more["kept"] = self.left.keep(draft.header.digest, draft.body)
        if request.head is not UNSET:
            more[f"{HELD}{COORDINATOR}"] = request.head
        self.log.record_sent(Envelope(draft.header, dict(tensors)), draft.size(self.log.head.n + 1), more=more, norm=norm)
        return draft.signed(str(self.log.durable))

    def _hold(self, request: Header) -> None:
        """Holds the head of the coordinator's log that came with a request, and records where that log has gone back."""
        if self.log is None or request.head is UNSET:
            return
        if (wrong := self.log.hold(COORDINATOR, request.run, request.sequence, request.head)) is not None:
            self.log.record(COORDINATOR, "head went back", run=request.run, round=request.round, about={"reason": wrong})

    def _withdraw(self, request: Header) -> None:
        """The ledger's last word on a run."""
        if self.log is not None and request.run not in self._withdrawn:
            self.log.record(self.name, "withdrew", run=request.run, round=request.round, about={"key": self.key.public.fingerprint})
        self._withdrawn.add(request.run)

    def _decline(self, request: Header, error: Exception, reason: str) -> Bytes:
        """The refusal for a reason that is for the site's staff alone; after work on the data it costs what an update does."""
        self._note(error)
        counted = self.terms.declined(request, self.asked) if self._at_work else {}
        about: dict[str, Scalar] = {"code": error.code if isinstance(error, Refused) else "error", "reason": printable(reason)[:500]}
        if self.log is not None:
            self.log.record(self.name, "refused", run=request.run, round=request.round, about=about | {"said": Declined.code} | counted)
        if self.folder is None:  # a try in one's own process, where nothing is written down
            log.warning("site %s declined: %s", self.name, reason)
        where = "the log of its process has it" if self.folder is None else "its errors.log has it, and its audit log (--what refused)"
        said = f"{self.name} declined, for a reason that is for its staff: {where}"
        if TRAIN_SECONDS in request.fields:
            said += "; the time to train was limited, and more of it may be needed (Rules.train_seconds)"
        return encode(self.header("refusal", request, {"code": Declined.code, "reason": said}), {}, self.key)

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
        if self.log is not None:
            self.log.record(self.name, "refused", run=request.run, round=request.round, about=fields)
        return encode(self.header("refusal", request, fields), {}, self.key)

    def header(self, kind: str, request: Header, fields: Mapping[str, Scalar]) -> Header:
        """The header of an answer to this request."""
        self._said = max(time.time_ns(), self._said + 1)
        return Header(
            kind=kind, run=request.run, round=request.round, exchange=request.exchange, sender=self.name, recipient=COORDINATOR,
            sequence=self._said, created_unix_ms=int(time.time() * 1000), config=self.study.hash, answers=request.digest,
            fields=dict(fields), head=UNSET if self.log is None or self.log.durable == NOTHING else str(self.log.durable),
        )  # fmt: skip

    def _note(self, error: Exception) -> None:
        """What went wrong, in full, where only the site's staff reads it."""
        if self.folder is not None:
            with open(make_folder(self.folder) / "errors.log", "a", opener=opener) as file:
                file.write(f"{datetime.now(UTC).isoformat()}\n{''.join(traceback.format_exception(error))}\n")


def _form(messages: Sequence[Any], uplink: Sequence[Any], kept: Any, e: int, sites: int, first: bool) -> Form:
    """Of a request to train in exchange `e`."""
    return Form.of({"message": messages[e], "uplink": uplink[e], **about_sites(sites, kept if first else None)})
