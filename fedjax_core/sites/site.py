"""A site: one institution's data, key, policy, ledger and client state, and the only code that touches them.

    handle(request) -> reply        bytes in, bytes out, whatever comes in; the transport is somebody else's

A request is for training in one exchange (`train`), for sums of metrics (`evaluate`), or for what the coordinator must know of the
site (`describe`). The policy is asked before any work and before anything leaves. What leaves is recorded in the site's ledger first.
Requests may come twice: the same bytes get the same bytes back, and the same request anew gets the same numbers, as all that a site
computes from is in its folder and in the request. What was answered is remembered by the process only, so that a site that died at work
can be asked again. A refusal carries a code and names of settings, never a value of the data;
what went wrong in full is in `errors.log` in the site's folder.

    name = "charite"                      site.toml
    folder = "/srv/federation"            of its state, ledger and errors
    data = "/srv/data/heart"              what `Clients.save` wrote, of one client; or "module:function" that gives it
    study = "heart.study:scaffold"        installed at the site; see study.py
    arguments = { lr = 0.001 }
    policy = "policy.toml"                paths are relative to this file
    key = "keys/charite.key"
    coordinator = "coordinator.pub"
    labels = "y"                          column of classes, for the policy's minimum.per_class
    resources = { charite = 1.0 }         of the Ray node where the site's data is
"""

import dataclasses
import math
import time
import tomllib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_core import keys
from fedjax_core.data.batches import Order
from fedjax_core.data.clients import Clients
from fedjax_core.round import Kept
from fedjax_core.sites import local, policy
from fedjax_core.sites.audit import Log
from fedjax_core.sites.base import Refused, Scalar, check_name, listed
from fedjax_core.sites.gate import WrongConfig, WrongKind, measure
from fedjax_core.sites.guard import Guard
from fedjax_core.sites.identity import PublicKey, Roster, SiteKey, read_public
from fedjax_core.sites.keep import Keep
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.study import Study, build, named
from fedjax_core.sites.tensors import named as as_tensors
from fedjax_core.sites.tensors import place
from fedjax_core.sites.wire import Envelope, Header, decode, encode, header_of
from fedjax_core.types import Batch

_client_key = jax.jit(keys.client)

COORDINATOR, SITES = "coordinator", "sites"
"""The names of who asks and of whom is asked: a broadcast is one message for all sites."""


class Declined(Refused):
    """The site's policy does not allow it."""

    code = "declined"


class NotInCohort(Refused):
    """The request does not list the site."""

    code = "not-in-cohort"


class BadRequest(Refused):
    """The request lacks something that it needs."""

    code = "bad-request"


class NotFiniteHere(Refused):
    """Training at the site gave NaN or an infinity, so nothing is sent."""

    code = "not-finite"


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """What a site is, as its staff writes it down; `read` reads the file."""

    name: str
    data: Any
    """A folder, "module:function", a function, or, in one's own process or trust domain, the `Clients` themselves."""
    data_was: str | None = None
    """The fingerprint that the data had before, where they have changed in the middle of a run and are meant to have."""
    folder: Path | None = None
    """Where state, ledger and errors are kept; None keeps nothing, for tries in memory."""
    study: str | None = None
    """"module:function", installed at the site. None: given at construction, in one's own process or trust domain only."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    policy: Path | None = None
    """None: the first configuration asked for is the only one, and the usual fields and the task's metrics may leave."""
    key: Path | None = None
    """None: one is made in the folder, or in memory."""
    coordinator: Path | None = None
    labels: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    """Of Ray, that the site takes up: a node that has them is where its actor runs."""
    node: Mapping[str, str] = field(default_factory=dict)
    """Labels of the Ray node on which the actor runs."""
    order: Order | None = None
    """Batches outright, [1, updates, batch size] of the site's own rows."""

    def __post_init__(self) -> None:
        check_name(self.name, "the site")

    @classmethod
    def read(cls, path: str | Path) -> "SiteFile":
        """The site in a TOML file; relative paths begin at the file's folder."""
        try:
            found = tomllib.loads(Path(path).read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
        known = [f.name for f in dataclasses.fields(cls) if f.name != "order"]
        if wrong := sorted(set(found) - set(known)) or sorted({"name", "data"} - set(found)):
            raise ValueError(f"{path}: {listed(wrong)} is unknown or missing; a site has name and data, and may have {', '.join(known)}")
        for name in ("folder", "policy", "key", "coordinator"):
            if name in found:
                found[name] = Path(path).parent / found[name]
        if ":" not in found["data"]:
            found["data"] = Path(path).parent / found["data"]
        return cls(**found)


class Site:
    """The site of a `SiteFile`. Use it in a `with`: it holds its ledger open."""

    def __init__(self, about: SiteFile, study: Study | None = None, coordinator: PublicKey | None = None) -> None:
        """`study` and `coordinator` are for where the file names none."""
        if about.study is not None:
            study = build(about.study, about.arguments)
        if about.coordinator is not None:
            name, coordinator = read_public(about.coordinator)
            if name != COORDINATOR:
                raise ValueError(f"{about.coordinator} is the key of {name!r}; a site listens to {COORDINATOR!r} alone")
        if study is None or coordinator is None:
            raise ValueError(f"site {about.name} needs a study and the coordinator's public key: name them in its file")
        self.name, self.about, self.study, self.folder = about.name, about, study, about.folder
        self.key = _key(about)
        self.clients = _data(about)
        self.policy = _usual(self.name, study, self.clients)
        self._read_policy()
        self.log = Log(self.folder / "audit", self.key) if self.folder is not None else None
        self._roster = Roster({COORDINATOR: coordinator})
        self._data = fingerprint(self.clients, about.order)
        self._schema = sha256(repr([(str(p), str(x.dtype), x.shape[1:]) for p, x in _columns(self.clients)]).encode()).hexdigest()[:16]
        self._plan = study.plan(about.order)
        self._keeps: dict[str, Keep] = {}
        self._guards: dict[str, Guard] = {}
        self._pinned: str | None = None
        self._said = 0
        self._last: dict[str, tuple[tuple[str, int, str], bytes]] = {}  # kind -> (request, reply)
        composed = study.round
        shapes = jax.eval_shape(lambda: composed.init(jax.random.key(0), 1))
        self._uplink, self._server, self._params = shapes.uplink, shapes.server, shapes.params
        self._kept: Kept = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes.clients)
        self._messages = [jax.eval_shape(exchange.broadcast, shapes.server) for exchange in composed.algorithm.exchanges]
        if composed.algorithm.task.check is not None:
            composed.algorithm.task.check(self.clients)

    def __enter__(self) -> "Site":
        if self.log is not None:
            self.log.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.log is not None:
            self.log.__exit__(None, None, None)

    def handle(self, request: bytes) -> bytes:
        """The reply to a request, whatever it is; raises nothing over it."""
        header = None
        try:
            envelope = self._decode(request)
            header = envelope.header
            which = (header.key, header.sequence, header.digest)
            known = self._last.get(header.kind)
            if known is not None and known[0] == which:
                return known[1]  # a transport that tries again, of which the guard must not speak
            reply = self._answer(envelope)
            self._last[header.kind] = which, reply
            return reply
        except Refused as refusal:
            return self._refuse(header, refusal.code, str(refusal))
        except Exception as error:
            self._note(error)
            return self._refuse(header, "error", f"{self.name} failed with {type(error).__name__}; its errors.log says more")

    def kept(self, run: str, version: int) -> Kept:
        """What the site keeps, at a version; for the site's own staff."""
        return self._keep(run).read(version, self._kept)

    def _decode(self, request: bytes) -> Envelope:
        return decode(request, self._roster, recipient=SITES)

    def _answer(self, envelope: Envelope) -> bytes:
        header = envelope.header
        answer = {"train": self._train, "evaluate": self._evaluate, "describe": self._describe}.get(header.kind)
        if answer is None:
            raise WrongKind(f"requests of kind {header.kind!r} are not answered here; a site trains, evaluates and describes")
        if header.config != self.study.hash:
            raise WrongConfig("the site has another study than the run; both ends need the same algorithm, settings and versions")
        guard = self._guards.get(header.run, Guard(header.run, 0)).at(header.round)
        self._guards[header.run] = guard.admit(sender=header.sender, run=header.run, round=header.round, sequence=header.sequence)
        self._read_policy()
        self._ask_policy(header)
        return answer(envelope)

    def _train(self, envelope: Envelope) -> bytes:
        """The site's part of an exchange: what goes up, in the form that the uplink gives it."""
        header, composed = envelope.header, self.study.round
        e = header.exchange
        if not e < len(composed.algorithm.exchanges):
            raise BadRequest(f"the study has {len(composed.algorithm.exchanges)} exchanges a round")
        first = {"first": self._kept} if header.fields.get("first") is True else {}
        like = {"message": self._messages[e], "uplink": self._uplink[e], **roll(int(_int(header, "sites"))), **first}
        found = place(envelope.tensors, like)
        version, keep = self._version(found), self._keep(header.run)
        if version == 0 and jax.tree.leaves(self._kept):
            if not first:
                raise BadRequest("the request does not say what a site keeps before its first round")
            keep.write(0, found["first"])
        kept = keep.read(version, self._kept)
        client_key = _client_key(_run_key(header), np.int32(header.round), self.clients.addresses[0])
        seen = local.visit(composed, e, self._plan, self.clients, found["message"], found["uplink"], kept, client_key, header.round)
        sent, weight, now, fine, found_metrics = jax.device_get(tuple(seen))
        tensors, weight = as_tensors(sent), float(weight)
        if not (fine and math.isfinite(weight)):
            raise NotFiniteHere("training gave numbers that are not finite, so nothing was kept or sent; train with a smaller step")
        fields: dict[str, Scalar] = {"weight": weight, "examples": self.clients.examples, "data": self._data}
        if self.about.data_was is not None:
            fields["data_was"] = self.about.data_was
        for name, metric in found_metrics.items():
            fields |= self._metric(name, {f.name: float(getattr(metric, f.name)) for f in dataclasses.fields(metric)})
        reply = self._reply("update", header, fields, tensors)
        keep.write(header.round * len(composed.algorithm.exchanges) + e + 1, now)
        return reply

    def _evaluate(self, envelope: Envelope) -> bytes:
        """Sums of the metrics over the site's examples; where clients keep a model of their own, of the site's."""
        header, algorithm = envelope.header, self.study.round.algorithm
        batch = _int(header, "batch")
        model = {"params": self._params} if algorithm.personal is None else {"server": self._server}
        like = {**model, **roll(_int(header, "sites"))}
        first = {"first": self._kept} if header.fields.get("first") is True else {}
        found = place(envelope.tensors, like | first)
        if algorithm.personal is None:
            params = found["params"]
        else:
            version = self._version(found)
            kept = found["first"] if version == 0 and first else self._keep(header.run).read(version, self._kept)
            params = algorithm.personal(found["server"], jax.tree.map(jax.numpy.asarray, kept.own))
        sums = local.totals(algorithm.task, params, self.clients, batch)
        fields: dict[str, Scalar] = {"examples": self.clients.examples}
        for name, total in sums.items():
            fields |= self._metric(name, {"total": total})
        return self._reply("metrics", header, fields, {})

    def _describe(self, envelope: Envelope) -> bytes:
        """What the coordinator has to know before the first round."""
        fields: dict[str, Scalar] = {"examples": self.clients.examples, "data": self._data, "schema": self._schema}
        return self._reply("description", envelope.header, fields, {})

    def _metric(self, name: str, sums: Mapping[str, float]) -> dict[str, Scalar]:
        """A metric's sums as fields, where the policy lets it leave; what is not finite goes as nothing."""
        if not self.policy.may_leave([name], 0.0).allowed:
            return {}
        return {name if part == "total" else f"{name}.{part}": x if math.isfinite(x) else None for part, x in sums.items()}

    def _read_policy(self) -> None:
        """The policy as it is in its file now: staff may pause the site at any time."""
        if self.about.policy is not None:
            self.policy = Policy.read(self.about.policy)
        if self.policy.site != self.name:
            raise ValueError(f"{self.about.policy} is the policy of {self.policy.site!r}, not of {self.name!r}")

    def _ask_policy(self, header: Header) -> None:
        """Returns where the policy lets the site work on this; the task is then pinned where it is the first one."""
        labels = self.clients.columns[self.about.labels] if self.about.labels is not None else None
        classes = None if labels is None else {str(c): int(n) for c, n in zip(*np.unique(labels, return_counts=True), strict=True)}
        request = policy.Request(
            task=header.config, examples=self.clients.examples, per_class=classes, clip=self.study.clip, noise=self.study.noise,
            fields=("examples",) if header.kind == "evaluate" else ("examples", "data", *(("weight",) if header.kind == "train" else ())),
        )  # fmt: skip
        pins = self.folder / "pinned" if self.folder is not None else None
        pinned = self._pinned if pins is None else policy.pinned(pins)
        decision = self.policy.allows(request, datetime.now(UTC), pinned)
        if not decision.allowed:
            raise Declined(f"{decision.reason} [{decision.code}]")
        if decision.pin is not None:
            self._pinned = decision.pin
            if pins is not None:
                policy.pin(pins, decision.pin)

    def _version(self, found: Mapping[str, Any]) -> int:
        """Which version of what it keeps the site is to begin from: that after its last report that counted."""
        mine = (found["sites"]["address"] == self.clients.addresses[0]).all(axis=1)
        if mine.sum() != 1:
            raise NotInCohort("the request does not list this site once; the names of sites must be those of their files")
        return int(found["sites"]["version"][mine.argmax()])

    def _keep(self, run: str) -> Keep:
        if run not in self._keeps:
            self._keeps[run] = Keep(None if self.folder is None else self.folder / "kept" / run)
        return self._keeps[run]

    def _reply(self, kind: str, request: Header, fields: Mapping[str, Scalar], tensors: Mapping[str, np.ndarray]) -> bytes:
        """The signed reply, once the policy lets it out and the ledger has it."""
        header = self._header(kind, request, fields)
        if self.policy.leaving.max_norm is not None and not (leave := self.policy.may_leave([], measure(tensors))).allowed:
            raise Declined(f"{leave.reason} [{leave.code}]")
        reply = encode(header, tensors, self.key)
        if self.log is not None:
            self.log.record_sent(Envelope(header_of(reply), dict(tensors)), len(reply))
        return reply

    def _refuse(self, request: Header | None, code: str, reason: str) -> bytes:
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
        fields: dict[str, Scalar] = {"code": code, "reason": "".join(c for c in reason if c.isprintable())[:500]}
        if self.log is not None:
            self.log.record(self.name, "refused", run=request.run, round=request.round, about=fields)
        return encode(self._header("refusal", request, fields), {}, self.key)

    def _header(self, kind: str, request: Header, fields: Mapping[str, Scalar]) -> Header:
        self._said = max(time.time_ns(), self._said + 1)
        return Header(
            kind=kind, run=request.run, round=request.round, exchange=request.exchange, sender=self.name, recipient=COORDINATOR,
            sequence=self._said, created_unix_ms=int(time.time() * 1000), config=self.study.hash, answers=request.digest, fields=fields,
        )  # fmt: skip

    def _note(self, error: Exception) -> None:
        """What went wrong, in full, where only the site's staff reads it."""
        if self.folder is not None:
            with open(self.folder / "errors.log", "a") as file:
                file.write(f"{datetime.now(UTC).isoformat()}\n{''.join(traceback.format_exception(error))}\n")


def roll(sites: int) -> dict[str, Any]:
    """The shapes of the list of sites in a request: each one's address, and the version of what it keeps."""
    return {"sites": {"address": np.empty((sites, 2), np.uint32), "version": np.empty(sites, np.int32)}}


def fingerprint(clients: Clients, order: Order | None) -> str:
    """A short name for the site's data, and for the order of its batches where that is given."""
    if order is None or callable(order):
        return clients.fingerprint()
    return sha256(f"{clients.fingerprint()}{order.shape}".encode() + np.ascontiguousarray(order, "<i8").tobytes()).hexdigest()[:16]


def _usual(name: str, study: Study, clients: Clients) -> Policy:
    """The policy of a site that has no file for it: the first study asked for is the only one, and its metrics may leave."""
    task = study.round.algorithm.task
    columns = local.narrow(jax.tree.map(lambda x: x[:1], clients.columns))
    params = jax.eval_shape(task.init, jax.eval_shape(lambda: jax.random.key(0)))
    shapes = jax.eval_shape(task.evaluation, params, Batch(columns, np.ones(1, np.float32)))  # type: ignore[arg-type]
    fields = ("weight", "examples", "data", *sorted({"loss", *shapes}))
    return Policy(name, tasks=policy.Tasks("first-use"), leaving=policy.Leaving(fields))


def _run_key(header: Header) -> Any:
    """The run's key: public, as all draws of a run are to be the same as in its simulation."""
    text, kind = header.fields.get("key"), header.fields.get("key_kind")
    if not isinstance(text, str) or not isinstance(kind, str):
        raise BadRequest("the request has no key for the draws of this round")
    try:
        return jax.random.wrap_key_data(jax.numpy.asarray(np.frombuffer(bytes.fromhex(text), "<u4")), impl=kind)
    except (ValueError, TypeError, KeyError):
        raise BadRequest("the key for the draws of this round is not of a kind that is known here") from None


def _int(header: Header, name: str) -> int:
    value = header.fields.get(name)
    if type(value) is not int or not 0 < value <= 100_000:
        raise BadRequest(f"the request needs the field {name!r}, a count")
    return value


def _columns(clients: Clients) -> list[tuple[str, np.ndarray]]:
    return [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(clients.columns)]


def _key(about: SiteFile) -> SiteKey:
    """The site's key; made where the file names none."""
    if about.key is not None:
        key = SiteKey.load(about.key)
    elif about.folder is None:
        key = SiteKey.make(about.name)
    else:
        path = about.folder / f"{about.name}.key"
        if not path.exists():
            SiteKey.make(about.name).save(about.folder)
        key = SiteKey.load(path)
    if key.name != about.name:
        raise ValueError(f"{about.key} is the key of {key.name!r}, not of {about.name!r}")
    return key


def _data(about: SiteFile) -> Clients:
    """The site's examples, as one client with the site's name."""
    found: Any = about.data
    if isinstance(found, str) and ":" in found:
        found = named(found)
    if callable(found) and not isinstance(found, Clients):
        found = found()
    if isinstance(found, (str, Path)):
        found = Clients.open(found, check=True)
    if isinstance(found, Mapping):
        found = Clients.from_list([found])
    if not isinstance(found, Clients) or len(found) != 1:
        raise ValueError(
            f"the data of {about.name} must be one client's: columns, Clients of one, or a folder of one that Clients.save wrote"
        )
    return Clients(found.columns, found.offsets, [about.name])
