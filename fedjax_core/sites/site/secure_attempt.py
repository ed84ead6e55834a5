"""A site's end of secure aggregation in a federation: one attempt at a time, with its secrets and its report.

    train ─► keys      share ─► boxes      mask ─► the report under masks      confirm ─► signature      reveal ─► shares
      └ the report stays here, in whole numbers

The state machine is `secure_aggregation.client`; here it meets the site's key, policy, disk and ledger. Its
secrets live in memory: a site that was killed has dropped out of the attempt, and takes part in the next.
What it opened is in `opened.jsonl` in its folder.

The other sites' keys are those of the roster that the site's file names, exchanged beforehand: the
coordinator, which passes on all messages, could otherwise stand between each two of them. A try that was
handed its `SiteFile` takes the keys that it is told first."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fedjax_core.secure_aggregation.client import Client
from fedjax_core.secure_aggregation.messages import MINIMUM, Refusal
from fedjax_core.secure_aggregation.messages import Roster as Keys
from fedjax_core.secure_aggregation.ring import Masked, Ring
from fedjax_core.secure_aggregation.spent import Spent
from fedjax_core.sites.protocol.request import BadRequest
from fedjax_core.sites.protocol.secure import ATTEMPT, terms_of, vector_of
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.wire.envelope import Header
from fedjax_core.sites.wire.identity import PublicKey, Roster, SiteKey


class OutOfRing(Refused):
    """The report does not fit into whole numbers."""

    code = "out-of-ring"
    of_data = True


class NoAttempt(Refused):
    """The site takes no part in this attempt: it was never begun here, or the site was started anew since."""

    code = "no-attempt"


class NotAgreed(Refused):
    """What the protocol of secure aggregation does not let the site do, by its own code."""

    code = "not-agreed"

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.code = refusal.code


@dataclass
class Attempt:
    """One attempt at a sum."""

    client: Client
    vector: np.ndarray
    """[length] uint32: the report, without masks."""

    @property
    def number(self) -> int:
        """By which the coordinator names it."""
        return self.client.terms.round.attempt


class Secure:
    """What a site has of secure aggregation, for one study."""

    def __init__(self, site_file: SiteFile, key: SiteKey, ring: Ring) -> None:
        """Raises ValueError where the file of a real site names no roster."""
        if site_file.roster is None and site_file.file is not None:
            raise ValueError(
                f"{site_file.name} has a study of secure aggregation, and its file names no roster of the other sites' keys: without, the "
                "coordinator could stand between each two of them. Exchange the lines of `fedjax-core keys show` by another way than the "
                'coordinator, and write roster = "roster.toml"'
            )
        self.ring = ring
        self._key, self._roster = key, None if site_file.roster is None else Roster.read(site_file.roster)
        self._first_keys: dict[str, PublicKey] = {}  # first, where no roster is at hand
        self._folder = site_file.folder
        self._attempt: Attempt | None = None

    @cached_property
    def _spent(self) -> Spent:
        return Spent(None if self._folder is None else Path(self._folder) / "opened.jsonl")

    def vector(self, sent: Masked) -> np.ndarray:
        """The report as one vector; raises `OutOfRing` where a number or the weight does not fit."""
        if not np.isfinite(float(sent.fits)):
            raise OutOfRing(
                f"the report has a number beyond {self.ring.bound:g}, or that is not finite, or a weight that is not whole: add "
                f"fc.uplink.clip({self.ring.bound:g}) before the stage secure, or raise its bound"
            )
        return vector_of(sent.ring)

    def judged(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The update as the vector has it, by which the policy judges what leaves: numbers times the step of
        the ring, [length - 1]."""
        update, weight = vector[:-1].view(np.int32), max(1, int(vector[-1]))
        return {"update": update.astype(np.float32) * np.float32(self.ring.step / weight)}

    def begin(self, request: Header, vector: np.ndarray, minimum: int) -> Attempt:
        """An attempt with this report, and new secrets."""
        terms = terms_of(request, len(vector))
        return Attempt(
            Client(self._key.name, terms, self._key.sign, self._fits, self._spent, max(MINIMUM, minimum)),
            vector,
        )

    def go_on(self, attempt: Attempt) -> None:
        """From now on this is the attempt: its keys are about to leave."""
        self._attempt = attempt

    def attempt(self, header: Header) -> Attempt:
        """The attempt that a request is about."""
        current = self._attempt
        if current is None or current.number != header.fields.get(ATTEMPT):
            raise NoAttempt(
                f"{self._key.name} takes no part in this attempt: it has not begun it, or was started anew since"
            )
        return current

    def meet(self, roster: Keys, identities: np.ndarray | None) -> None:
        """Takes the identity keys that the coordinator says these sites have, where it has no roster: the
        first one of a name counts."""
        if self._roster is not None:
            return
        if identities is None or identities.shape != (len(roster.sites), 32) or identities.dtype != np.uint8:
            raise BadRequest("the request has no identity keys of the sites in its roster")
        for one, raw in zip(roster.sites, identities, strict=True):
            self._first_keys.setdefault(one.name, PublicKey(raw.tobytes()))

    def _fits(self, name: str, purpose: str, data: bytes, signature: bytes) -> bool:
        """Whether the site of that name signed."""
        if name == self._key.name:
            key: PublicKey | None = self._key.public
        elif self._roster is None:
            key = self._first_keys.get(name)
        else:
            key = self._roster.keys.get(name)
            key = None if key in self._roster.revoked else key
        return key is not None and key.fits(purpose, data, signature)
