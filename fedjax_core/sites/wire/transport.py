"""How bytes get to a site and back: the one thing about a network that the coordinator knows.

    send(site, request) -> Future of the reply, or of a function that brings it

Nothing is promised of it: it may lose, delay, repeat, reorder or change messages, and say so or not. What it
does to them is found out by signatures, digests, numbers and clocks. Threads of this process and Ray are two
ways to carry bytes (`sites/transport/`); anything else that moves them (gRPC, files on a USB stick) is one
more class.
"""

from collections.abc import Callable, Collection
from concurrent import futures
from concurrent.futures import Future
from typing import Any, Protocol

from fedjax_core.sites.wire.canonical import Bytes

Reply = Bytes | Callable[[], Bytes]
"""A reply, or a function that brings it: so that a large one stays where it is until its turn. It can be
called again, and may raise: a `Refused` where something came that is no reply, anything else where nothing
came."""


class Transport(Protocol):
    """What the coordinator sends through."""

    near: bool
    """Whether all sites are on this machine, so that large replies are never long under way."""

    def send(self, site: str, request: Bytes) -> "Future[Reply]":
        """Brings the request to the site; the future has its reply, or an exception where the transport knows
        that there is none."""

    def progress(self, site: str) -> int:
        """Local steps that the site has done since its process began, so far as is known: more of them are a
        sign of life."""

    def close(self) -> None:
        """Lets go of what it holds; replies under way are lost."""


def take_back(transport: Transport, future: "Future[Any]") -> None:
    """Has a site not begin with what nobody waits for any more, by the transport's own `take_back`, where it
    has one."""
    done: Callable[[Any], None] | None = getattr(transport, "take_back", None)
    if done is not None:
        done(future)


def first_of(transport: Transport, replies: Collection["Future[Any]"], seconds: float) -> "set[Future[Any]]":
    """Those that are done, as soon as one is, or none after so many seconds; by the transport's own `wait`,
    where it has one."""
    wait: Callable[[Any, float], set[Future[Any]]] | None = getattr(transport, "wait", None)
    return (
        futures.wait(replies, seconds, futures.FIRST_COMPLETED).done
        if wait is None
        else wait(replies, seconds)
    )


def bring(future: "Future[Reply]") -> Bytes:
    """What a future that is done has brought, or raises what the transport raised over it."""
    result = future.result()
    return result() if callable(result) else result
