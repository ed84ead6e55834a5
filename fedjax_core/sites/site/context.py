"""`SiteContext`: the data, policy, audit log, budget and client state that a site's request handlers work on.

    handler(context, request) -> context.reply(...)        computed here, let out by the policy, recorded, signed

A site computes only from its folder and the request, so a repeated request gets the same numbers.
`handlers.py` handles each kind of request; `endpoint.py` checks requests before that."""

import time
import traceback
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
from msgspec import UNSET

from fedjax_core.disclosure import Desk, OutputPolicy
from fedjax_core.files import make_folder, opener
from fedjax_core.round import Kept, Round, reports_of, state_shapes
from fedjax_core.sites.audit import Log
from fedjax_core.sites.audit.entries import NOTHING, REQUEST_BYTES
from fedjax_core.sites.audit.held import HELD
from fedjax_core.sites.audit.left import Left
from fedjax_core.sites.policy.answered import ALL, Question
from fedjax_core.sites.policy.budget import Budget
from fedjax_core.sites.policy.enforcement import Enforcement
from fedjax_core.sites.policy.question import Places
from fedjax_core.sites.protocol.kinds import KINDS
from fedjax_core.sites.protocol.request import about_sites, addresses
from fedjax_core.sites.refusal import listed
from fedjax_core.sites.site.client_state import ClientStateStore
from fedjax_core.sites.site.data import SiteData
from fedjax_core.sites.site.secure_attempt import Secure
from fedjax_core.sites.site.time_limit import StepLog
from fedjax_core.sites.site.usual_policy import metrics_of, protecting, usual_policy
from fedjax_core.sites.site_file import SiteFile, load_key
from fedjax_core.sites.study import Study
from fedjax_core.sites.wire.canonical import Bytes, Scalar
from fedjax_core.sites.wire.envelope import COORDINATOR, Draft, Envelope, Header
from fedjax_core.sites.wire.trees import TreeSpec


class SiteContext:
    """One institution's data, key, policy, audit log and client state, for one study."""

    def __init__(self, site_file: SiteFile, study: Study) -> None:
        self.name, self.site_file, self.study, self.folder = (
            site_file.name,
            site_file,
            study,
            site_file.folder,
        )
        self.key = load_key(site_file)
        self.secret = self.key.secret("noise")
        """The seed of noise that nobody else can predict."""
        # A trial run: the coordinator's own process handed the data over.
        handed = (
            site_file.key is None and site_file.folder is None and not isinstance(site_file.data, (str, Path))
        )
        self.data = SiteData(site_file, study, None if handed else self.key)
        if (bad := self.data.bad) is not None and len(bad):
            self.note(ValueError(f"{len(bad)} bad records were left out, of the rows {listed(bad.tolist())}"))
        self.metrics = metrics_of(study, self.data.raw)
        """The names of the metrics of training and evaluation."""
        self.protecting = protecting(study, self.data.raw)
        """For each exchange, whether its steps draw noise that protects examples, from the site's own
        secret."""
        usual = usual_policy(site_file, study, self.data.raw)
        self.enforcement = Enforcement(
            self.name,
            usual,
            base_request=self.data.base_request,
            file=site_file.policy,
            folder=self.folder,
            account=site_file.account,
            secret=self.secret,
        )
        """The site's policy on requests and on everything that would leave."""
        self.log = Log(self.folder / "audit", self.key) if self.folder is not None else None
        self.left = Left(self.folder, int(site_file.left_gb * 1e9))
        self.budget, self.done = Budget(self.folder), StepLog(self.folder)
        ring = study.round.uplink.ring
        self.secure = None if ring is None else Secure(site_file, self.key, ring)
        """The site's end of secure aggregation, if reports of the study travel under masks."""
        self.address: np.ndarray = addresses([self.name])[0]
        self.question: Question | None = None
        """The question that is being answered."""
        self._keeps: dict[str, ClientStateStore] = {}
        self._sequence = 0
        composed = study.round
        shapes = state_shapes(composed)
        self.server, self.params = shapes.server, shapes.params
        self.kept_shapes: Kept = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes.clients
        )
        self.of_reports = [frozenset(report.metrics) for report in reports_of(composed)]
        """For each exchange, the metrics that are made once, in the report, and not in each step."""
        self.form = lru_cache(maxsize=8)(partial(_form, composed, self.kept_shapes))
        """(exchange, number of sites, whether the initial own state is included) -> the `TreeSpec` of a
        request to train."""

    @cached_property
    def places(self) -> Places:
        """The place of the model in requests."""
        return Places.of(self.study.round, prepares=bool(self.study.prepare))

    @cached_property
    def desk(self) -> Desk:
        """The desk that remembers what statistics released, under a secret from the site's key."""
        folder = None if self.folder is None else self.folder / "released"
        return Desk(
            self.enforcement.policy.outputs or OutputPolicy(), folder=folder, key=self.key.secret("people")
        )

    def keep(self, run: str) -> ClientStateStore:
        """The store of the site's own state in a run."""
        if run not in self._keeps:
            self._keeps[run] = ClientStateStore(None if self.folder is None else self.folder / "kept" / run)
        return self._keeps[run]

    def kept(self, run: str, version: int) -> Kept:
        """A version of the site's own state, for its staff."""
        return self.keep(run).read(version, self.kept_shapes)

    def header(self, kind: str, request: Header, fields: Mapping[str, Scalar]) -> Header:
        """The header of an answer to this request."""
        self._sequence = max(time.time_ns(), self._sequence + 1)
        return Header(
            kind=kind, run=request.run, round=request.round, exchange=request.exchange, sender=self.name, recipient=COORDINATOR,
            sequence=self._sequence, created_unix_ms=int(time.time() * 1000), config=self.study.hash, answers=request.digest,
            fields=dict(fields), head=UNSET if self.log is None or self.log.durable == NOTHING else str(self.log.durable),
        )  # fmt: skip

    def reply(
        self,
        request: Header,
        fields: Mapping[str, Scalar],
        tensors: Mapping[str, np.ndarray] | None = None,
        more: Mapping[str, Scalar] | None = None,
        steps: int = ALL,
        beside: Collection[str] = (),
        judged: Mapping[str, np.ndarray] | None = None,
    ) -> Bytes:
        """Releases a reply: applies the policy, records it in the audit log (with `more`), and returns it
        signed.

        `steps`: the number of steps, if the time was limited; `beside`: the tensors that are not part of an
        update. `judged`: the update that the policy checks and counts, if it leaves later, under masks."""
        tensors = self.enforcement.protect(request, tensors or {}, beside)
        header = self.header(KINDS[request.kind].reply, request, fields)
        norm = self.enforcement.release(request, tensors if judged is None else judged, beside)
        draft = Draft(header, tensors, self.key)
        digest = (
            draft.header.digest
            if judged is None
            else sha256(b"".join(x.tobytes() for x in judged.values())).hexdigest()
        )
        counted = self.enforcement.count(request, digest, self.question, steps)
        if self.log is None:
            return draft.signed()
        more = {**(more or {}), **counted, REQUEST_BYTES: request.size}
        if self.left.most_bytes and tensors:
            more["kept"] = self.left.keep(draft.header.digest, draft.body)
        if request.head is not UNSET:
            more[f"{HELD}{COORDINATOR}"] = request.head
        self.log.record_sent(
            Envelope(draft.header, dict(tensors)), draft.size(self.log.head.n + 1), more=more, norm=norm
        )
        return draft.signed(str(self.log.durable))

    def note(self, error: Exception) -> None:
        """Writes an error in full to `errors.log`, which only the site's staff reads."""
        if self.folder is not None:
            with open(make_folder(self.folder) / "errors.log", "a", opener=opener) as file:
                file.write(f"{datetime.now(UTC).isoformat()}\n{''.join(traceback.format_exception(error))}\n")


def _form(composed: Round, kept: Any, e: int, sites: int, first: bool) -> TreeSpec:
    """The `TreeSpec` of a request to train in exchange `e`."""
    state = state_shapes(composed)
    message = jax.eval_shape(partial(composed.broadcast, e), state, jax.ShapeDtypeStruct((sites,), np.int32))[
        0
    ]
    return TreeSpec.of(
        {"message": message, "uplink": state.uplink[e], **about_sites(sites, kept if first else None)}
    )
