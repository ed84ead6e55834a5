"""`RayTransport`: sites as long-lived Ray actors, started where their data is, restarted when they die.

A Ray cluster is one trust domain: anybody in it can run code in it. So Ray is for one organisation, or for a
consortium that agreed to be one domain; others need another transport. Only signed envelopes cross, and the
site's name when its actor is made: the actor reads the site's own file, which its own machine names
(own_file.py), and imports what is installed there. A `SiteFile` made in Python is handed over only on a Ray
that this process starts itself, a trial on one machine.

    no address    Ray is started on this machine: loopback, no dashboard, a token of this process
    an address    a cluster that runs already: refused without token authentication and TLS, unless insecure_local=True

A site is pinned to its node by its `resources` (`ray start --resources '{"charite": 1}'`) or by labels of the
node (`node`)."""

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from concurrent import futures
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray

from fedjax_core.sites.refusal import printable
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.transport.ray_bytes import NoReply, NotBytes, bytes_of
from fedjax_core.sites.transport.ray_site import Handed, SiteActor, WatchedSite
from fedjax_core.sites.transport.ray_start import NAMESPACE, start_ray
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.identity import PublicKey
from fedjax_core.sites.wire.transport import Reply

log = logging.getLogger("fedjax_core")

_START_SECONDS, _PROGRESS_SECONDS, _LOOK_SECONDS = 300.0, 5.0, 0.02
_PLACE_SECONDS, _TURN_SECONDS, _LATEST_SECONDS, _AGAIN_SECONDS = 5.0, 0.5, 5.0, 30.0
"""How long a site may be without a node, how often that is checked, how long a key takes to arrive, and how
often a site that could not start is restarted."""

_STORED, _STORED_BYTES = 8, 40 << 20
_TEXT, _DIGITS = 1000, 18  # most characters read of a key or reason, and of a count
# Bytes sent inside the call. From 100 kB on Ray makes an object of its own: 10 sites take 8 ms then, instead
# of 3.
_SHORT = 64 << 10


class RayTransport:
    """Starts an actor for every site; `close` ends them, and a Ray that it started."""

    def __init__(
        self,
        files: Sequence[SiteFile],
        study: Study,
        coordinator: PublicKey,
        *,
        address: str | None = None,
        insecure_local: bool = False,
        watched: bool = True,
    ) -> None:
        """`watched`: whether sites can report their progress while they work. That takes one more thread at
        each, which slows every call."""
        self.watched = watched
        self._started = start_ray(files, address, insecure_local)
        self.near = self._started and (address is None or address.startswith("127."))
        self._actors: dict[str, Any] = {}
        self._handle: dict[str, Any] = {}  # the actors' bound method, which Ray would make for every call
        self._stored: deque[tuple[Bytes, Any]] = deque(maxlen=_STORED)
        # Constructor arguments of the actors: Ray drops those of 100 kB and more that nobody holds, and could
        # not restart them.
        self._handed: list[Any] = []
        self.keys: dict[str, PublicKey] = {}
        """{site: the public key that it reports}, for use without a roster."""
        self.away: dict[str, str] = {}
        """{site: reason} of the sites that have not started. Requests to them wait in Ray until they have."""
        # site -> when it was last restarted, where its process runs but the site could not start
        self._tried: dict[str, float] = {}
        try:
            for site_file in files:
                # Ray would keep an event of every call: 3.6 kB each, of the last 100,000.
                options: dict[str, Any] = {
                    "name": f"site-{site_file.name}",
                    "namespace": NAMESPACE,
                    "num_cpus": 0,
                    "enable_task_events": False,
                }
                options |= {"resources": dict(site_file.resources)} if site_file.resources else {}
                options |= {"label_selector": dict(site_file.node)} if site_file.node else {}
                # A retry sends the same bytes, and a site answers them with the same bytes.
                remote: Any = ray.remote
                actor = remote(concurrency_groups={"watch": 1})(WatchedSite) if watched else remote(SiteActor)
                actor = actor.options(max_restarts=-1, max_task_retries=1, **options)
                # On another Ray, or with a file here, the site's own file counts, on whatever machine the site is.
                made_here = self._started and address is None and site_file.file is None
                handed = (
                    ray.put(Handed(site_file, study if site_file.study is None else None, coordinator.text))
                    if made_here
                    else None
                )
                self._handed.append(handed)
                self._actors[site_file.name] = actor.remote(site_file.name, dict(site_file.digests), handed)
                self._handle[site_file.name] = self._actors[site_file.name].handle
            self._meet(
                {site_file.name: site_file for site_file in files}, alone=self._started and address is None
            )
        except ValueError as error:
            self.close()
            if "already taken" in str(error):
                raise RuntimeError(
                    f"sites of these names are at work in this Ray for another coordinator ({error}); stop that one. Where it is a "
                    "Federation of this process, as after a notebook cell that was run twice, close() it first"
                ) from None
            raise
        except BaseException:
            self.close()
            raise

    def send(self, site: str, request: Bytes) -> "Future[Reply]":
        """Sends a request. A long one goes into the object store once, for all sites; a long reply stays in
        the site's store until it is fetched.

        The future becomes done only in `wait`.
        """
        if site in self._tried and time.monotonic() - self._tried[site] > _AGAIN_SECONDS:
            self._tried[site] = time.monotonic()
            ray.kill(self._actors[site], no_restart=False)  # Ray restarts it, which may succeed now
        return _ActorReply(
            self._handle[site].remote(bytes(request) if len(request) <= _SHORT else self._put(request))
        )

    def wait(self, replies: "Collection[Future[Any]]", seconds: float) -> "set[Future[Any]]":
        """The replies that are done, as soon as one is. Ray's own futures would take 100 us and a thread
        each."""
        until, refs = time.monotonic() + seconds, [one.ref for one in replies if type(one) is _ActorReply]
        if not refs:
            return futures.wait(replies, seconds, futures.FIRST_COMPLETED).done
        others = [one for one in replies if type(one) is not _ActorReply] if len(refs) < len(replies) else []
        while True:
            left, done = max(0.0, until - time.monotonic()), {one for one in others if one.done()}
            look = 0.0 if done else min(left, _LOOK_SECONDS) if others else left
            ready, _ = ray.wait(refs, timeout=look, fetch_local=False)
            if ready:
                done.update(
                    one.finished() for one in replies if type(one) is _ActorReply and one.ref in ready
                )
            if done or not left:
                return done

    def take_back(self, future: "Future[Any]") -> None:
        """Cancels a request that a site has not begun: a site that was away would do all old work first."""
        if type(future) is _ActorReply and not future.done():
            ray.cancel(future.ref)

    def _meet(self, files: dict[str, SiteFile], alone: bool) -> None:
        """Waits until every site has started, or cannot; raises RuntimeError for one that cannot if Ray is
        this process's own (`alone`)."""
        waiting = {actor.key.remote(): name for name, actor in self._actors.items()}
        began, warned = time.monotonic(), False
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=_TURN_SECONDS, fetch_local=False)
            passed = time.monotonic() - began
            for ref in ready:
                name = waiting.pop(ref)
                try:
                    self.keys[name] = _key(name, ref, _LATEST_SECONDS)
                except RuntimeError as error:
                    if alone:
                        raise
                    self.away[name], self._tried[name] = str(error), time.monotonic()
            for ref, name in list(waiting.items()) if not ready and passed > _PLACE_SECONDS else []:
                lacking = _no_place(files[name])
                if lacking is None and passed > _START_SECONDS:
                    lacking = f"its process did not start within {_START_SECONDS:g} s"
                if lacking is not None:
                    if alone:
                        raise RuntimeError(f"site {name} could not start: {lacking}")
                    self.away[name] = lacking
                    del waiting[ref]
            if waiting and passed > _PLACE_SECONDS and not warned:
                warned = True
                log.warning(
                    "waiting for the processes of %s to start; they may be reading their data",
                    ", ".join(waiting.values()),
                )

    def _put(self, request: Bytes) -> Any:
        """The request's reference in the object store; the last few stay there, as sites get the parts of a
        request in turn."""
        for sent, ref in reversed(self._stored):
            if sent is request:
                return ref
        self._stored.append((request, ray.put(np.frombuffer(request, np.uint8))))
        while len(self._stored) > 1 and sum(len(sent) for sent, _ in self._stored) > _STORED_BYTES:
            self._stored.popleft()
        return self._stored[-1][1]

    def progress(self, site: str) -> int:
        """The site's steps so far, from a thread beside its work; 0 without an answer, or if not
        `watched`."""
        if not self.watched:
            return 0
        try:
            digits = bytes(bytes_of(self._actors[site].progress.remote(), _PROGRESS_SECONDS)[:_DIGITS])
        except (ray.exceptions.RayError, NoReply, NotBytes):
            return 0
        return int(digits) if digits.isdigit() else 0

    def close(self) -> None:
        """Ends the actors."""
        self._stored.clear()
        if not ray.is_initialized():
            return
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors, self._handle, self._handed = {}, {}, []
        if self._started:
            ray.shutdown()


class _ActorReply(Future[Reply]):
    """The future reply of an actor, done once `RayTransport.wait` has seen a reply or a failure."""

    def __init__(self, ref: Any) -> None:
        super().__init__()
        self.ref = ref

    def finished(self) -> "_ActorReply":
        """Marks itself done, and returns itself: calling the result gives the reply, or raises Ray's
        error."""
        ref = self.ref
        if not self.done():
            self.set_result(lambda: bytes_of(ref))  # a long reply stays in the object store
        return self


def _key(name: str, ref: Any, seconds: float) -> PublicKey:
    """The public key that a site's actor reports; raises RuntimeError with the reason if the site could not
    start."""
    try:
        text = bytes(bytes_of(ref, seconds)[:_TEXT]).decode("ascii", "replace")
    except (ray.exceptions.GetTimeoutError, NoReply, NotBytes) as error:
        raise RuntimeError(f"site {name} could not start: {error}") from None
    try:
        return PublicKey.parse(text)
    except ValueError:  # the text is the reason
        raise RuntimeError(f"site {name} could not start: {printable(text)}") from None


def _no_place(site_file: SiteFile) -> str | None:
    """The reason why this Ray has no node for the site; None if it has one, or if that is unknown."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    # The other values are selectors in Ray's own syntax.
    plain = {name: value for name, value in site_file.node.items() if not value.startswith(("!", "in("))}

    def fits(node: dict[str, Any]) -> bool:
        enough = all(
            node["Resources"].get(name, 0.0) >= amount for name, amount in site_file.resources.items()
        )
        return enough and plain.items() <= node.get("Labels", {}).items()

    if any(map(fits, nodes)):
        return None
    wanted = ", ".join(f"{name}={value:g}" for name, value in site_file.resources.items()) or ", ".join(
        f"{k}={v}" for k, v in plain.items()
    )
    return f"no node of this Ray has what its file names ({wanted}): its machine is down, or Ray is not running there"
