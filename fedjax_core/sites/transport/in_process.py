"""Sites in threads of this process: for tries, and for tests."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.transport import Reply

log = logging.getLogger("fedjax_core")


class InProcess:
    """Sites in this process, each in a thread of its own."""

    near = True

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites: Mapping[str, Site] = {site.name: site for site in sites}
        self.failures: dict[str, Exception] = {}
        """What sites raised over their last request; it is not in their replies, but here it is the user's
        own code that did."""
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
            message = f"{name} {type(error).__name__} {error}"
            if site.context.folder is None and message not in self._shown:  # else it is in errors.log
                self._shown.add(message)
                log.error("site %s failed", name, exc_info=error)
        return reply

    def take_back(self, future: "Future[Any]") -> None:
        """What a site is at goes on, and what it has not begun is dropped."""
        future.cancel()

    def progress(self, site: str) -> int:
        """Counted by the site."""
        return self.sites[site].context.budget.steps

    def close(self) -> None:
        """Waits for what the sites are at."""
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)
