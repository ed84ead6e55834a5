"""`Transfer`: the state of one large message between the coordinator and a site.

Coming    a reply:      `part` i is asked for, and comes as it is
Going     a request:    `deliver` brings part i, and the site confirms with `delivered`
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import ClassVar

from fedjax_core.sites.multipart.manifest import Assembly, Manifest
from fedjax_core.sites.multipart.requests import OutgoingRequest
from fedjax_core.sites.protocol.kinds import DELIVERED
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import Bytes
from fedjax_core.sites.wire.envelope import COORDINATOR, decode
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.transport import Reply


class Transfer(ABC):
    """The state that both directions share."""

    over: ClassVar[str]
    """The audit log's words for a finished transfer."""
    wrong: ClassVar[str]
    """The audit log's words for a wrong part or answer."""
    what: ClassVar[str]
    """The kind of message, in words, before the site's name."""

    def __init__(
        self, name: str, manifest: Manifest, wanted: Iterable[int], before: "Transfer | None"
    ) -> None:
        self.name, self.manifest = name, manifest
        self.done: Future[Reply] = Future() if before is None or before.done.done() else before.done
        """The future of the final reply."""
        self.wanted = deque(wanted)
        """Parts that were not requested or sent yet."""
        self.left = len(self.wanted)
        """How many parts have not arrived yet."""
        self.tries = [0] * len(manifest.digests)
        """How often each part was lost or damaged."""

    @abstractmethod
    def message(self, i: int) -> Bytes:
        """The message to the site for part `i`."""

    @abstractmethod
    def take(self, i: int, raw: Bytes) -> bool:
        """Takes a reply; returns whether part `i` has arrived."""


class Coming(Transfer):
    """A reply on its way here; parts that an earlier transfer `before` has already are not fetched again."""

    over, wrong, what = "came in parts", "not the part that the site signed", "the reply of"

    def __init__(
        self, name: str, manifest: Manifest, before: "Transfer | None", request: Callable[[str, int], Bytes]
    ) -> None:
        self.assembly: Assembly = Assembly(manifest, before.assembly if isinstance(before, Coming) else None)
        super().__init__(name, manifest, (~self.assembly.here).nonzero()[0].tolist(), before)
        self._request = request

    def message(self, i: int) -> Bytes:
        """The request for part `i`."""
        return self._request(self.manifest.digest, i)

    def take(self, i: int, raw: Bytes) -> bool:
        """Takes part `i`; returns whether it fits."""
        return self.assembly.take(i, raw)


class Going(Transfer):
    """A request on its way to a site, which lacks some parts of it."""

    over, wrong, what = (
        "went in parts",
        "damaged on its way there, or its answer on its way back",
        "the request to",
    )

    def __init__(
        self,
        name: str,
        outgoing: OutgoingRequest,
        lacking: Iterable[int],
        before: "Transfer | None",
        roster: Roster,
    ) -> None:
        super().__init__(name, outgoing.manifest, lacking, before)
        self.outgoing, self._roster = outgoing, roster
        self.times: int = 1 + (
            before.times if isinstance(before, Going) and before.outgoing is outgoing else 0
        )
        """How often the site has said that it lacks parts of it."""

    def message(self, i: int) -> Bytes:
        """Part `i`."""
        return self.outgoing.part(i)

    def take(self, i: int, raw: Bytes) -> bool:
        """Whether the site says that it has part `i`."""
        try:
            header = decode(raw, self._roster, recipient=COORDINATOR).header
        except Refused:
            return False
        named = header.fields.get("of"), header.fields.get("part")
        return (header.sender, header.kind) == (self.name, DELIVERED) and named == (self.manifest.digest, i)
