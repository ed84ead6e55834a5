"""`Transport`: the interface through which the coordinator sends bytes to sites and gets replies.

    send(site, request) -> Future of the reply, or of a function that brings it

It promises nothing: it may lose, delay, repeat, reorder or change messages, with or without an error.
Signatures, digests, sequence numbers and clocks detect that. Threads of this process and Ray are two
transports (`sites/transport/`); any other (gRPC, files on a USB stick) is one more class.
"""

from collections.abc import Callable, Collection
from concurrent import futures
from concurrent.futures import Future
from typing import Any, Protocol

from fedjax_core.sites.wire.canonical import Bytes

Reply = Bytes | Callable[[], Bytes]
"""A reply, or a function that fetches it, so that a large one stays where it is until its turn. The function
can be called again, and may raise: a `Refused` if something came that is no reply, anything else if nothing
came."""


class Transport(Protocol):
    """The connection through which the coordinator sends requests."""

    near: bool
    """Whether all sites are on this machine, so that large replies arrive at once."""

    def send(self, site: str, request: Bytes) -> "Future[Reply]":
        """Sends the request to the site; the future has its reply, or an exception if the transport knows
        that there is none."""

    def progress(self, site: str) -> int:
        """The local steps that the site has done since its process began, as far as known: an increase is a
        sign of life."""

    def close(self) -> None:
        """Releases its resources; replies under way are lost."""


def take_back(transport: Transport, future: "Future[Any]") -> None:
    """Withdraws a request that the site has not begun, if the transport has a `take_back`."""
    done: Callable[[Any], None] | None = getattr(transport, "take_back", None)
    if done is not None:
        done(future)


def first_of(transport: Transport, replies: Collection["Future[Any]"], seconds: float) -> "set[Future[Any]]":
    """The replies that are done, as soon as one is, or none after `seconds`; uses the transport's own
    `wait`."""
    wait: Callable[[Any, float], set[Future[Any]]] | None = getattr(transport, "wait", None)
    return (
        futures.wait(replies, seconds, futures.FIRST_COMPLETED).done
        if wait is None
        else wait(replies, seconds)
    )


def bring(future: "Future[Reply]") -> Bytes:
    """The reply of a future that is done; raises the transport's error instead."""
    result = future.result()
    return result() if callable(result) else result
