"""How bytes get to a site and back: the one thing about a network that the coordinator knows.

    send(site, request) -> Future of the reply, or of a function that brings it

Nothing is promised of it: it may lose, delay, repeat, reorder or change messages, and say so or not. What it does to them is found
out by signatures, digests, numbers and clocks. `InProcess` calls sites in threads of this process; Ray is in `ray_transport.py`;
anything else that moves bytes (gRPC, files on a USB stick) is one more class.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from fedjax_core.sites.base import Bytes
from fedjax_core.sites.site import Site

log = logging.getLogger("fedjax_core")

Reply = Bytes | Callable[[], Bytes]
"""A reply, or a function that brings it: so that a large one stays where it is until its turn. It can be called again, and may raise: a
`Refused` where something came that is no reply, anything else where nothing came."""


class Transport(Protocol):
    """What the coordinator sends through."""

    near: bool
    """Whether all sites are on this machine, so that large replies are never long under way."""

    def send(self, site: str, request: Bytes) -> "Future[Reply]":
        """Brings the request to the site; the future has its reply, or an exception where the transport knows that there is none."""

    def progress(self, site: str) -> int:
        """Local steps that the site has done since its process began, so far as is known: more of them are a sign of life."""

    def close(self) -> None:
        """Lets go of what it holds; replies under way are lost."""


def take_back(transport: Transport, asked: "Future[Any]") -> None:
    """Has a site not begin with what nobody waits for any more, by the transport's own `take_back`, where it has one."""
    done: Callable[[Any], None] | None = getattr(transport, "take_back", None)
    if done is not None:
        done(asked)


def first_of(transport: Transport, asked: Collection["Future[Any]"], seconds: float) -> "set[Future[Any]]":
    """Those that are done, as soon as one is, or none after so many seconds; by the transport's own `wait`, where it has one."""
    wait: Callable[[Any, float], set[Future[Any]]] | None = getattr(transport, "wait", None)
    return futures.wait(asked, seconds, futures.FIRST_COMPLETED).done if wait is None else wait(asked, seconds)


def bring(future: "Future[Reply]") -> Bytes:
    """What a future that is done has brought, or raises what the transport raised over it."""
    found = future.result()
    return found() if callable(found) else found


class InProcess:
    """Sites in this process, each in a thread of its own."""

    near = True

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites: Mapping[str, Site] = {site.name: site for site in sites}
        self.failures: dict[str, Exception] = {}
        """What sites raised over their last request; it is not in their replies, but here it is the user's own code that did."""
        self._shown: set[str] = set()
        self._threads = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in self.sites}

    def send(self, site: str, request: Bytes) -> "Future[Reply]":
        """A site works on one request at a time."""
        self.failures.pop(site, None)
        return self._threads[site].submit(self._handle, site, request)

    def _handle(self, name: str, request: Bytes) -> Bytes:
        site = self.sites[name]
        reply = site.handle(request)
        if (error := site.failed) is not None:
            self.failures[name] = error
            said = f"{name} {type(error).__name__} {error}"
            if site.context.folder is None and said not in self._shown:  # else it is in errors.log
                self._shown.add(said)
                log.error("site %s failed", name, exc_info=error)
        return reply

    def take_back(self, asked: "Future[Any]") -> None:
        """What a site is at goes on, and what it has not begun is dropped."""
        asked.cancel()

    def progress(self, site: str) -> int:
        """Counted by the site."""
        return self.sites[site].context.budget.steps

    def close(self) -> None:
        """Waits for what the sites are at."""
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)
