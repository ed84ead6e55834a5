"""`CoordinatorLog`: entries about a run, with the head of each site's own log whenever it has moved.

A site that removes entries then contradicts the head that the coordinator holds, and the coordinator warns.
"""

import logging
from collections.abc import Callable, Mapping

from fedjax_core.sites.audit.held import HELD
from fedjax_core.sites.audit.log import Log
from fedjax_core.sites.refusal import printable
from fedjax_core.sites.wire.canonical import Scalar
from fedjax_core.sites.wire.envelope import COORDINATOR

log = logging.getLogger("fedjax_core")


class CoordinatorLog:
    """Records what happens in one run; does nothing without a log."""

    def __init__(self, audited: Log | None, run_name: str) -> None:
        self.log, self.run_name = audited, run_name
        self.latest_head: Callable[[str], tuple[int, str | None]] = lambda party: (0, None)
        """Gives (number of a site's last message, head of its log in that message)."""
        self._heads: dict[str, str] = {}  # site -> the head last recorded

    def record(self, party: str, what: str, number: int, details: Mapping[str, Scalar]) -> None:
        """Writes an entry: which party (a site or the coordinator) did what in which round."""
        if self.log is not None:
            plain = {
                k: printable(v)[:1000] if isinstance(v, str) else v for k, v in details.items()
            } | self._new_head(party, number)
            # Nothing depends on a report's entry before the round ends: one wait for the disk, 2 to 3 ms, instead of
            # one a site.
            self.log.record(
                party,
                what,
                run=self.run_name,
                round=number,
                about=plain,
                wait=party == COORDINATOR and what != "asked",
            )

    def _new_head(self, party: str, number: int) -> dict[str, Scalar]:
        """The head of this site's log, if its last message brought a new one."""
        message, head = self.latest_head(party) if party != COORDINATOR else (0, None)
        if self.log is None or head is None or head == self._heads.get(party):
            return {}
        self._heads[party] = head
        if (wrong := self.log.hold(party, self.run_name, message, head)) is not None:
            log.warning("%s. Ask its staff to prove it: fedjax-core audit verify", wrong)
            self.log.record(party, "head went back", run=self.run_name, round=number, about={"reason": wrong})
        return {f"{HELD}{party}": head}
