"""How bytes get to a site and back: the one thing about a network that the coordinator knows.

    send(site, request) -> Future of the reply

Nothing is promised of it: it may lose, delay, repeat, reorder or change messages, and say so or not. What it does to them is found
out by signatures, digests, numbers and clocks. `InProcess` calls sites in threads of this process; Ray is in `ray_transport.py`;
anything else that moves bytes (gRPC, files on a USB stick) is one more class.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from fedjax_core.sites.site import Site


class Transport(Protocol):
    """What the coordinator sends through."""

    def send(self, site: str, request: bytes) -> "Future[bytes]":
        """Brings the request to the site; the future has its reply, or an exception where the transport knows that there is none."""

    def close(self) -> None:
        """Lets go of what it holds; replies under way are lost."""


class InProcess:
    """Sites in this process, each in a thread of its own."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites: Mapping[str, Site] = {site.name: site for site in sites}
        self._threads = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in self.sites}

    def send(self, site: str, request: bytes) -> "Future[bytes]":
        """A site works on one request at a time."""
        return self._threads[site].submit(self.sites[site].handle, request)

    def close(self) -> None:
        """Waits for what the sites are at."""
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)
