"""`InProcess`: sites in threads of this process, for trials and tests."""

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
        """{site: exception} of their last requests; not in their replies, but here it is the user's own code
        that raised."""
        self._shown: set[str] = set()
        self._threads = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in self.sites}

    def send(self, site: str, request: Bytes) -> "Future[Reply]":
        """Queues a request: a site works on one at a time."""
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
        """Drops a request that the site has not begun."""
        future.cancel()

    def progress(self, site: str) -> int:
        """The steps that the site has counted."""
        return self.sites[site].context.budget.steps

    def close(self) -> None:
        """Waits for the work that sites have begun."""
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)
