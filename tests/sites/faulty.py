"""A transport that does to messages what networks do."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

Send = Callable[[str, bytes], "Future[bytes]"]
Fault = Callable[[Send, str, bytes, int], "Future[bytes]"]
"""(send, site, request, how many requests this site had before) -> the reply: what becomes of one message."""


class Faulty:
    """A transport with faults."""

    def __init__(self, inner, fault: Fault) -> None:
        self.inner, self.fault = inner, fault
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self._count: dict[str, int] = {}

    def send(self, site: str, request: bytes) -> "Future[bytes]":
        """Through the fault; all that goes either way is kept in `sent` and `received`."""
        n = self._count[site] = self._count.get(site, -1) + 1
        self.sent.append(request)
        return self.fault(self._inner, site, request, n)

    def progress(self, site: str) -> int:
        """As the transport within says."""
        return self.inner.progress(site)

    def close(self) -> None:
        """Closes the transport within."""
        self.inner.close()

    def _inner(self, site: str, request: bytes) -> "Future[bytes]":
        found = self.inner.send(site, request)
        found.add_done_callback(
            lambda f: (
                self.received.append(f.result()) if not f.cancelled() and f.exception() is None else None
            )
        )
        return found


def changed(found: "Future[bytes]", change: Callable[[bytes], bytes]) -> "Future[bytes]":
    """The reply, changed on its way."""
    after: Future[bytes] = Future()

    def then(f: "Future[bytes]") -> None:
        try:
            after.set_result(change(f.result()))
        except BaseException as error:  # which whoever waits must hear of
            after.set_exception(error)

    found.add_done_callback(then)
    return after


def delayed(found: "Future[bytes]", seconds: float) -> "Future[bytes]":
    """The reply, so much later."""
    after: Future[bytes] = Future()

    def later(f: "Future[bytes]") -> None:
        timer = threading.Timer(seconds, lambda: after.set_result(f.result()))
        timer.daemon = True
        timer.start()

    found.add_done_callback(later)
    return after


def failed() -> Future:
    """A reply that the transport knows to be lost."""
    lost = Future()
    lost.set_exception(ConnectionError("reset by peer"))
    return lost


def corrupt(raw: bytes) -> bytes:
    """The message with its last bit turned."""
    return raw[:-1] + bytes([raw[-1] ^ 1])
