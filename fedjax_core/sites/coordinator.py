"""`Federation`: a `Round` over real sites, which keep their data and what they keep between rounds.

    request  ─transport─►  Site.handle  ─transport─►  decode ─► guard ─► gate ─► receive ─► aggregate ─► conclude

The same `init`, `run` and `fit` as the simulator, and with all sites the same numbers. Time has one rule: an exchange waits for its cohort
until nothing has come for `idle_seconds`, or until its deadline. What is late, repeated, damaged, forged, of another round, shape,
configuration or data set, not finite or out of bounds is set aside, recorded in the audit log, and the round goes on while the quorum
holds. Below it those who are missing are asked again, and then `Paused` is raised: the state is what it was, and `run` can be called again.
Reports meet in the order of the cohort, so the same set of sites gives the same bits, whoever came first.

The `State` holds all that crosses a round but what sites keep; of that it has the version that counted, so a coordinator that falls
back to a checkpoint takes its sites back with it. A site's report counts once: repeats within a process are refused by their number, and
after a restart a repeat could only be of the same round, model and numbers.

>>> import numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.sites.site import SiteFile
>>> composed = compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1)))
>>> data = {name: {"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)} for name, n in (("charite", 3), ("mayo", 5))}
>>> sites = [SiteFile(name=name, data=columns) for name, columns in data.items()]
>>> with Federation(composed, sites, batch_size=2, transport="in-process") as federation:
...     state, metrics = federation.run(federation.init(jax.random.key(0)), [0, 1])
...     found = federation.evaluate(state)
>>> int(state.round), float(metrics["examples"]), found.sizes.tolist(), bool(found.pooled["loss"] < 1.0)
(1, 8.0, [3, 5], True)
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.algorithms.base import Seen
from fedjax_core.data import cohorts as sampling
from fedjax_core.data.clients import Clients
from fedjax_core.metrics import Evaluation, Mean, Sum
from fedjax_core.round import Round, State
from fedjax_core.sites import gate
from fedjax_core.sites.audit import Log
from fedjax_core.sites.base import Refused, Scalar, shown
from fedjax_core.sites.guard import Guard
from fedjax_core.sites.identity import PublicKey, Roster, SiteKey
from fedjax_core.sites.site import COORDINATOR, SITES, Site, SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.tensors import kinds, named, place
from fedjax_core.sites.transport import InProcess, Transport
from fedjax_core.sites.wire import Envelope, Header, decode, encode, header_of
from fedjax_core.types import Array, Key, Params

log = logging.getLogger("fedjax_core")


_NO_METRICS = ("weight", "examples", "data", "data_was")  # of the fields in a reply


class Paused(RuntimeError):
    """Too few sites reported. Nothing was averaged: the state is what it was, and the round can be run again."""


class WrongSender(Refused):
    """The reply of another site than the one that was asked."""

    code = "wrong-sender"


class WrongReply(Refused):
    """The reply is to another request, or of another kind."""

    code = "wrong-reply"


@dataclass(frozen=True)
class Rules:
    """How long an exchange waits, and for how many."""

    quorum: int | None = None
    """So many sites must report, or all of a smaller cohort; None: more than half of the cohort."""
    share: float = 0.0
    """And they must have this share of the cohort's examples."""
    deadline_seconds: float = 3600.0
    """So long an exchange waits for its cohort, at most."""
    idle_seconds: float | None = None
    """So long it waits from one reply to the next."""
    enough: int | None = None
    """With so many reports it ends (over-selection): faster, but who is in it is then up to the clock."""
    attempts: int = 2
    """How often a site is asked, where its reply was damaged or lost, and how often those missing are waited for."""
    max_weight: float | None = None
    """Of one report; None: the site's number of examples, or 1 where that is less."""
    max_norm: float = math.inf
    """Of the numbers sent by one site."""


class Versions(NamedTuple):
    """What the coordinator has of the clients' own state: which version of it is valid."""

    version: Array  # [N] int32: 0 before a client's first report, round * exchanges + exchange + 1 after its last that counted


class Sites:
    """The sites as a run sees them: how many, with how many examples."""

    def __init__(self, ids: Sequence[str], about: Sequence[Mapping[str, Any]]) -> None:
        self.ids = np.array(list(ids))
        self.sizes = np.array([one["examples"] for one in about], np.int64)
        self.addresses = Clients({"x": np.zeros(len(self.ids))}, np.arange(len(self.ids) + 1), list(ids)).addresses
        self.data = {name: str(one["data"]) for name, one in zip(ids, about, strict=True)}

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of all sites' names and fingerprints."""
        return hashlib.sha256(json.dumps(self.data).encode()).hexdigest()[:16]


class Federation:
    """Runs rounds of `composed` over sites. Use it in a `with`, or `close` it.

    `sites`: a `SiteFile` (or the path of one) each. `transport="ray"` starts a long-lived actor for each, which is handed the study
    where its file names none; "in-process" has them in threads here; any other `Transport` is used as it is, with a `roster` of the
    sites' keys. `folder` keeps the coordinator's key, its audit log and what sites said of themselves.

    `clip` and `noise` say what the uplink does, to sites whose policy asks for it, as the sites' own studies do.
    `run_name` names the run in messages and in the sites' folders: another run begins anew there.
    """

    def __init__(
        self,
        composed: Round,
        sites: Sequence[SiteFile | str | Path],
        *,
        batch_size: int,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        clip: float | None = None,
        noise: float | None = None,
        rules: Rules | None = None,
        folder: str | Path | None = None,
        run_name: str = "run",
        transport: Literal["ray", "in-process"] | Transport = "ray",
        roster: Roster | None = None,
        key: SiteKey | None = None,
        address: str | None = None,
        insecure_local: bool = False,
    ) -> None:
        if not isinstance(composed, Round):
            raise TypeError(f"Federation needs a Round, got {type(composed).__name__}: make one with fc.compose(algorithm)")
        self.round, self.study = composed, Study(composed, batch_size, epochs, steps, seed, clip, noise)
        self.rules, self.run_name = rules or Rules(), run_name
        files = [one if isinstance(one, SiteFile) else SiteFile.read(one) for one in sites]
        self._names = [one.name for one in files]
        if len(set(self._names)) != len(self._names) or not files:
            raise ValueError(f"a federation needs sites of different names, got {self._names}")
        self._exit = contextlib.ExitStack()
        try:
            self._folder = None if folder is None else Path(folder)
            self._key = _own_key(self._folder) if key is None else key
            self._log = None if self._folder is None else self._exit.enter_context(Log(self._folder / "audit", self._key))
            self._transport, found = self._connect(files, transport, address, insecure_local)
            self._exit.callback(self._transport.close)
            self._roster = roster or Roster(found)
            if missing := [name for name in self._names if name not in self._roster.keys]:
                raise ValueError(f"the roster has no key of {missing}: add the line that `fedjax-core keys show` prints at the site")
            self._guard = Guard(run_name, 0)
            self._said = 0
            self._late: dict[Future[bytes], str] = {}
            self._first: Any = None
            self._server = _server(composed)
            self.clients = Sites(self._names, self._describe())
        except BaseException:
            self._exit.close()
            raise

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Lets the sites go, and closes the audit log."""
        self._exit.close()

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes the answer, to the last bit, besides the `Round`, the data, and who reported in time."""
        study = self.study
        return {"batch_size": study.batch_size, "epochs": study.epochs, "steps": study.steps, "seed": study.seed}

    def init(self, key: Key, params: Params | None = None) -> State:
        """The state before the first round; from `params` where given, else as the task begins from `key`."""
        params = None if params is None else jax.tree.map(jnp.asarray, params)
        state = jax.jit(partial(self.round.init, population=1))(key, params=params)
        self._first = jax.tree.map(lambda x: np.asarray(x[0]), state.clients)
        versions: Any = Versions(jnp.zeros(len(self.clients), jnp.int32))
        return state._replace(clients=versions)

    def run(self, state: State, cohort: Any, *, donate: bool = False) -> tuple[State, dict[str, Any]]:
        """One round with the sites at these positions: (state, metrics that add). Raises `Paused` where too few report."""
        chosen = sampling.as_cohort(cohort, len(self.clients))
        number, exchanges = int(state.round), len(self.round.algorithm.exchanges)
        self._guard = self._guard.at(number)
        self._sweep()
        places = list(range(len(chosen.clients)))
        found: dict[str, Any] = {"refused": _sum(0), "missing": _sum(0)}
        version = np.array(state.clients.version)  # type: ignore[attr-defined]
        for e in range(exchanges):
            result = self._exchange(e, state, number, version, chosen, places)
            state, places = result.state, result.places
            version[chosen.clients[places]] = number * exchanges + e + 1
            for name, metric in result.metrics.items():
                found[name] = found[name] + metric if name in found else metric
        here = chosen.clients[places]
        found |= {"clients": _sum(len(here)), "examples": _sum(self.clients.sizes[here].sum())}
        self._record(COORDINATOR, "round", number, {"sites": len(here), "refused": float(found["refused"].total)})
        after: Any = Versions(jnp.asarray(version))
        return state._replace(round=state.round + 1, clients=after), found

    def run_many(self, state: State, cohorts: Sequence[Any], *, donate: bool = False) -> tuple[State, dict[str, Any]]:
        """Rounds one after another: (state, metrics with leaves [R])."""
        seen = []
        for cohort in cohorts:
            state, metrics = self.run(state, cohort)
            seen.append(metrics)
        if not seen:
            raise ValueError("run_many needs at least one cohort, got none")
        names = {name: next(m[name] for m in seen if name in m) for m in seen for name in m}
        rows = [{name: m.get(name, jax.tree.map(np.zeros_like, one)) for name, one in names.items()} for m in seen]
        return state, jax.tree.map(lambda *x: np.stack(x), *rows)

    def evaluate(self, state: State, clients: Any = None) -> Evaluation:
        """The model on every site's examples, counted there; where sites keep a model of their own, each on its own."""
        if clients is not None:
            raise ValueError("a federation evaluates at its sites; for data at hand use fc.evaluate(task, state.params, clients)")
        number, sizes = int(state.round), self.clients.sizes
        self._guard = self._guard.at(number)
        self._sweep()
        personal = self.round.algorithm.personal is not None
        body = {"server": state.server} if personal else {"params": state.params}
        # The simulator's batches, for losses in which examples meet.
        batch = int(np.clip(2 ** np.ceil(np.log2(np.median(sizes))), 8, 512))
        request = self._request("evaluate", number, 0, state, np.asarray(state.clients.version), body, {"batch": batch})  # type: ignore[attr-defined]
        replies = self._collect(request, number, list(range(len(self._names))))
        self._check_quorum(number, np.arange(len(self._names)), list(replies), "evaluation")
        totals: dict[str, np.ndarray] = {}
        for place_, heard in replies.items():
            for name, value in heard.header.fields.items():
                if name not in _NO_METRICS:
                    totals.setdefault(name, np.full(len(self._names), np.nan))[place_] = _float(value)
        here = np.isin(np.arange(len(sizes)), list(replies))
        pooled = {name: float(total[here].sum() / sizes[here].sum()) for name, total in totals.items()}
        return Evaluation(pooled, {name: total / sizes for name, total in totals.items()}, sizes)

    def _exchange(self, e: int, state: State, number: int, version: np.ndarray, cohort: sampling.Cohort, places: list[int]) -> "_Result":
        """One exchange with the sites at these places of the cohort: who of them counted, and the state that comes of it."""
        message = self._server.broadcast[e](state.server)
        body = {"message": message, "uplink": state.uplink[e]}
        request = self._request("train", number, e, state, version, body, {})
        expected = gate.Expected(
            run=self.run_name, round=number, exchange=e, config=self.study.hash, kinds=kinds(self._server.sent[e]), data=self.clients.data,
            answers=header_of(request).digest, max_weight=math.inf, max_norm=self.rules.max_norm,
        )  # fmt: skip
        position = {p: int(cohort.clients[p]) for p in places}
        updates: dict[int, tuple[Any, float]] = {}
        refused = 0

        def use(at: int, heard: Envelope) -> bool:
            """Whether the report may be used; it is then among the updates."""
            nonlocal refused
            bound = self.rules.max_weight if self.rules.max_weight is not None else max(1.0, float(self.clients.sizes[at]))
            verdict = gate.check(heard, replace(expected, max_weight=bound))
            usable, about = verdict.accepted, dict(verdict._asdict())
            if usable:
                sent = place(heard.tensors, self._server.sent[e])
                update, fine = self._server.receive[e](state.uplink[e], sent, np.float32(heard.header.fields["weight"]))
                usable = bool(fine)
                about |= {} if usable else {"accepted": False, "code": "not-finite", "reason": "what the report expands to is not finite"}
            if usable:
                updates[at] = update, float(heard.header.fields["weight"])  # type: ignore[arg-type]
            refused += not usable
            self._record(heard.header.sender, "update", number, about | {"exchange": e, "digest": heard.header.digest})
            return usable

        replies = self._collect(request, number, list(position.values()), use)
        declined = sum(1 for at in position.values() if at not in replies) - refused
        here = [p for p in places if position[p] in updates]
        self._check_quorum(number, cohort.clients, [position[p] for p in here], f"exchange {e}")
        acc, weight, count = None, np.float32(0), np.float32(0)
        metrics: dict[str, Any] = {}
        for p in here:  # in the order of the cohort, whoever came first
            update, its = updates.pop(position[p])
            times = np.float32(cohort.counts[p])
            if self.round.algorithm.exchanges[e].update is not None:
                acc = self._server.zero(update, len(cohort.clients)) if acc is None else acc
                acc = self._server.add(acc, update, np.float32(its) * times, np.int32(p))
            weight, count = weight + np.float32(its) * times, count + times
            for name, metric in _metrics(replies[position[p]].header).items():
                metrics[name] = metrics[name] + metric if name in metrics else metric
        state = self._server.conclude[e](state._replace(clients=()), acc, weight, count)  # type: ignore[arg-type]
        metrics |= {"refused": _sum(refused), "missing": _sum(declined)}
        return _Result(state, here, metrics)

    def _collect(
        self, request: bytes, number: int, positions: list[int], use: Callable[[int, Envelope], bool] | None = None
    ) -> dict[int, Envelope]:
        """The replies that count, by the sites' positions: all of them, or reports that are of `use`."""
        rules, most = self.rules, len(positions) if use is None or self.rules.enough is None else self.rules.enough
        good: dict[int, Envelope] = {}
        asked = dict.fromkeys(positions, 0)
        settled: set[int] = set()
        waiting: dict[Future[bytes], int] = {}

        def ask(at: int) -> None:
            asked[at] += 1
            waiting[self._transport.send(self._names[at], request)] = at

        for at in positions:
            ask(at)
        for turn in range(rules.attempts):
            until = time.monotonic() + rules.deadline_seconds
            while waiting and len(good) < most:
                left = until - time.monotonic()
                done, _ = wait(waiting, max(0.0, left if rules.idle_seconds is None else min(left, rules.idle_seconds)), FIRST_COMPLETED)
                if not done:
                    break
                for future in sorted(done, key=lambda f: waiting[f]):
                    at = waiting.pop(future)
                    if at in settled:  # asked twice, and answered twice
                        self._hear_late(future, self._names[at])
                        continue
                    heard = self._hear(future, at, number, request)
                    if heard is None and asked[at] < rules.attempts:
                        ask(at)
                    elif heard is not None:
                        settled.add(at)
                        if heard.header.kind != "refusal" and (use is None or use(at, heard)):
                            good[at] = heard
            missing = [at for at in positions if at not in settled and at in waiting.values()]
            if not missing or turn + 1 == rules.attempts or self._quorate(positions, list(good)):
                break
            for at in missing:
                self._record(self._names[at], "asked again", number, {})
                ask(at)
        for future, at in waiting.items():
            if at not in settled:
                self._record(self._names[at], "missing", number, {"reason": "no reply in time"})
            self._late[future] = self._names[at]
        return good

    def _hear(self, future: "Future[bytes]", at: int, number: int, request: bytes) -> Envelope | None:
        """The authentic reply of the site at this position to this request, None where there is none in what came."""
        name = self._names[at]
        if (error := future.exception()) is not None:
            self._record(name, "lost", number, {"reason": type(error).__name__})
            return None
        try:
            envelope = decode(future.result(), self._roster, recipient=COORDINATOR)
            header, asked = envelope.header, header_of(request)
            if header.sender != name:
                raise WrongSender(f"{shown(header.sender)} answered a request to {name!r}; the transport brought it to the wrong place")
            self._guard = self._guard.admit(sender=header.sender, run=header.run, round=header.round, sequence=header.sequence)
            kind = {"train": "update", "evaluate": "metrics", "describe": "description"}[asked.kind]
            if header.kind not in (kind, "refusal") or (header.kind != "refusal" and header.answers != asked.digest):
                raise WrongReply(f"the reply of {name!r} is of kind {header.kind!r}, or to another request; it should answer the last one")
        except Refused as refusal:
            self._record(name, "refused", number, {"code": refusal.code, "reason": str(refusal)[:1000]})
            return None
        if header.kind == "refusal":
            about: dict[str, Scalar] = {k: str(header.fields.get(k))[:500] for k in ("code", "reason")}
            log.warning("site %s did not take part in round %d: %s", name, number, about["reason"])
            self._record(name, "declined", number, about)
        return envelope

    def _hear_late(self, future: "Future[bytes]", name: str) -> None:
        """Records what came when nobody waited for it."""
        if future.cancelled() or future.exception() is not None:
            return
        about: dict[str, Scalar] = {"code": "late", "reason": "came after its exchange was over, or for the second time"}
        with contextlib.suppress(Refused):
            header = decode(future.result(), self._roster, recipient=COORDINATOR).header
            about |= {"of_round": header.round, "digest": header.digest, "kind": header.kind}
        self._record(name, "refused", self._guard.round, about)

    def _sweep(self) -> None:
        for future in [f for f in self._late if f.done()]:
            self._hear_late(future, self._late.pop(future))

    def _quorate(self, positions: Sequence[int], here: Sequence[int]) -> bool:
        sizes = self.clients.sizes
        return len(here) >= self._needed(len(positions)) and bool(
            sizes[list(here)].sum() >= self.rules.share * sizes[list(positions)].sum()
        )

    def _needed(self, sites: int) -> int:
        """How many of so many sites must report."""
        return sites // 2 + 1 if self.rules.quorum is None else min(self.rules.quorum, sites)

    def _check_quorum(self, number: int, positions: Any, here: list[int], what: str) -> None:
        """Raises `Paused` where those here are too few."""
        positions = [int(p) for p in positions]
        if here and self._quorate(positions, here):
            return
        missing, needed = ", ".join(self._names[p] for p in positions if p not in here), self._needed(len(positions))
        self._record(COORDINATOR, "paused", number, {"reports": len(here), "sites": len(positions)})
        raise Paused(
            f"round {number}, {what}: {len(here)} of {len(positions)} sites reported, and {needed} with {self.rules.share:.0%} "
            f"of the examples must. Missing: {missing[:500]}. The state is unchanged: see the audit log, and run the round again."
        )

    def _request(
        self, kind: str, number: int, e: int, state: State | None, version: np.ndarray, body: dict[str, Any], fields: dict[str, Scalar]
    ) -> bytes:
        """The signed request, one for all sites."""
        if state is not None:
            new = bool((version == 0).any() and jax.tree.leaves(self._first))
            if self._first is None:
                raise ValueError(
                    "this federation has not made a state yet: call init() with the run's key and params, also before resuming"
                )
            fields = {"sites": len(version), "first": new, **fields}
            body = {**body, "sites": {"address": self.clients.addresses, "version": version.astype(np.int32)}}
            body |= {"first": self._first} if new else {}
            if kind == "train":
                words = np.asarray(jax.random.key_data(state.key)).astype("<u4")
                fields |= {"key": words.tobytes().hex(), "key_kind": str(jax.random.key_impl(state.key))}
        self._said = max(time.time_ns(), self._said + 1)
        header = Header(
            kind=kind, run=self.run_name, round=number, exchange=e, sender=COORDINATOR, recipient=SITES, sequence=self._said,
            created_unix_ms=int(time.time() * 1000), config=self.study.hash, fields=fields,
        )  # fmt: skip
        request = encode(header, named(body), self._key)
        self._record(
            COORDINATOR, "asked", number, {"kind": kind, "exchange": e, "bytes": len(request), "digest": header_of(request).digest}
        )
        return request

    def _describe(self) -> list[dict[str, Any]]:
        """What every site says of itself: now, or, where it does not answer, as it said before."""
        path = None if self._folder is None else self._folder / f"{self.run_name}-sites.json"
        known: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
        request = self._request("describe", 0, 0, None, np.zeros(0), {}, {})
        self.clients = Sites(self._names, [{"examples": 1, "data": ""}] * len(self._names))
        now = {self._names[at]: dict(h.header.fields) for at, h in self._collect(request, 0, list(range(len(self._names)))).items()}
        if missing := [name for name in self._names if name not in now and name not in known]:
            raise Paused(f"{', '.join(missing)} did not say how many examples they have, so a run cannot begin; the audit log says why")
        for name, about in now.items():
            examples: Any = about.get("examples")
            if not (type(examples) is int and examples > 0 and all(type(about.get(field)) is str for field in ("data", "schema"))):
                raise ValueError(f"the description of {name} lacks examples, data or schema; install one version at all sites")
        found = {name: known[name] if name in known else now[name] for name in self._names}
        schemas = {name: about["schema"] for name, about in {**found, **now}.items()}
        if odd := [name for name, schema in schemas.items() if schema != schemas[self._names[0]]]:
            raise ValueError(f"{', '.join(odd)} have other columns, shapes or dtypes than {self._names[0]}; all sites need the same")
        if path is not None and found != known:
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(found))
            os.replace(fresh, path)
        return [found[name] for name in self._names]

    def _record(self, who: str, what: str, number: int, about: Mapping[str, Scalar]) -> None:
        if self._log is not None:
            plain = {k: "".join(c for c in v if c.isprintable())[:1000] if isinstance(v, str) else v for k, v in about.items()}
            # Nothing is concluded from a report before its round is: one wait for the disk, 2 to 3 ms, instead of one a site.
            self._log.record(who, what, run=self.run_name, round=number, about=plain, wait=who == COORDINATOR and what != "asked")

    def _connect(
        self, files: list[SiteFile], transport: Any, address: str | None, insecure_local: bool
    ) -> tuple[Transport, dict[str, PublicKey]]:
        if transport == "in-process":
            sites = [self._exit.enter_context(Site(one, self.study, self._key.public)) for one in files]
            return InProcess(sites), {site.name: site.key.public for site in sites}
        if transport == "ray":
            from fedjax_core.sites.ray_transport import RayTransport

            found = RayTransport(files, self.study, self._key.public, address=address, insecure_local=insecure_local)
            return found, found.keys
        return transport, {}


class _Server(NamedTuple):
    """The server's part of a round, compiled; all but the last two by exchange."""

    sent: list[Any]  # the shapes of what a site sends
    broadcast: list[Any]
    receive: list[Any]
    conclude: list[Any]
    zero: Any
    add: Any


@lru_cache(maxsize=16)
def _server(composed: Round) -> _Server:
    exchanges = range(len(composed.algorithm.exchanges))
    state = jax.eval_shape(lambda: composed.init(jax.random.key(0), 1))
    kept = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.clients)

    def sent(e: int, server: Any, uplink: Any, kept: Any, key: Key) -> Any:
        exchange = composed.algorithm.exchanges[e]
        message = exchange.broadcast(server)
        carry = exchange.client.begin(message, kept.own, key)
        return composed.report(e, message, uplink, kept, carry, Seen(jnp.float32(1), jnp.float32(1)), key)[0]

    def add(acc: Any, update: Any, weight: Array, place: Array) -> Any:
        return composed.aggregator.add(acc, jax.tree.map(lambda x: x[None], update), weight[None], place[None])

    key = jax.eval_shape(lambda: jax.random.key(0))
    return _Server(
        sent=[jax.eval_shape(partial(sent, e), state.server, state.uplink[e], kept, key) for e in exchanges],
        broadcast=[jax.jit(exchange.broadcast) for exchange in composed.algorithm.exchanges],
        receive=[jax.jit(partial(composed.receive, e)) for e in exchanges],
        conclude=[jax.jit(partial(composed.conclude, e)) for e in exchanges],
        zero=jax.jit(composed.aggregator.zero, static_argnums=1),
        add=jax.jit(add),
    )


class _Result(NamedTuple):
    """What came of an exchange."""

    state: State
    places: list[int]  # of the cohort: whose reports counted
    metrics: dict[str, Any]


def _metrics(header: Header) -> dict[str, Any]:
    """The metrics in a report: `loss` and `loss.weight` are a mean's two sums, `clients` alone is a sum."""
    fields = {name: _float(value) for name, value in header.fields.items() if name not in _NO_METRICS}
    found: dict[str, Any] = {}
    for name, value in fields.items():
        weight: Any = np.float32(fields.get(f"{name}.weight", 0))
        if "." not in name:
            total: Any = np.float32(value)
            found[name] = Mean(total, weight) if f"{name}.weight" in fields else Sum(total)
    return found


def _float(value: Any) -> float:
    """A field that should be a number; NaN where it is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _sum(value: Any) -> Sum:
    total: Any = np.float32(value)
    return Sum(total)


def _own_key(folder: Path | None) -> SiteKey:
    """The coordinator's key, made where there is none."""
    if folder is None:
        return SiteKey.make(COORDINATOR)
    path = folder / f"{COORDINATOR}.key"
    if not path.exists():
        SiteKey.make(COORDINATOR).save(folder)
    return SiteKey.load(path)
