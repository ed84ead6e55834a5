"""`Secure`: a site's end of secure aggregation, with one attempt at a time, its secrets and its report.

    train ─► keys     share ─► boxes     mask ─► masked report     confirm ─► signature     reveal ─► shares
      └ the report stays here, as integers

The state machine is `secure_aggregation.client`; here it gets the site's key, policy and disk. Its secrets
live in memory: a site that was killed has dropped out of the attempt, and takes part in the next.
`opened.jsonl` in its folder has the sums that it opened.

The other sites' keys come from the roster that the site's file names, exchanged beforehand: otherwise the
coordinator, which passes on all messages, could stand between any two sites. A trial that was handed its
`SiteFile` accepts the first keys that it gets."""

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
    """The report does not fit into the ring's integers."""

    code = "out-of-ring"
    of_data = True


class NoAttempt(Refused):
    """The site takes no part in this attempt: it was never begun here, or the site was restarted since."""

    code = "no-attempt"


class NotAgreed(Refused):
    """The protocol of secure aggregation forbids the step; the code is the protocol's own."""

    code = "not-agreed"

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.code = refusal.code


@dataclass
class Attempt:
    """One attempt at a secure sum."""

    client: Client
    vector: np.ndarray
    """[length] uint32: the report, without masks."""

    @property
    def number(self) -> int:
        """The number by which the coordinator names the attempt."""
        return self.client.terms.round.attempt


class Secure:
    """A site's end of secure aggregation, for one study."""

    def __init__(self, site_file: SiteFile, key: SiteKey, ring: Ring) -> None:
        """Raises ValueError if the file of a real site names no roster."""
        if site_file.roster is None and site_file.file is not None:
            raise ValueError(
                f"{site_file.name} has a study of secure aggregation, and its file names no roster of the other sites' keys: without, the "
                "coordinator could stand between each two of them. Exchange the lines of `fedjax-core keys show` by another way than the "
                'coordinator, and write roster = "roster.toml"'
            )
        self.ring = ring
        self._key, self._roster = key, None if site_file.roster is None else Roster.read(site_file.roster)
        self._first_keys: dict[str, PublicKey] = {}  # site -> the key received first, without a roster
        self._folder = site_file.folder
        self._attempt: Attempt | None = None

    @cached_property
    def _spent(self) -> Spent:
        return Spent(None if self._folder is None else Path(self._folder) / "opened.jsonl")

    def vector(self, sent: Masked) -> np.ndarray:
        """The report as one vector; raises `OutOfRing` if a number or the weight does not fit."""
        if not np.isfinite(float(sent.fits)):
            raise OutOfRing(
                f"the report has a number beyond {self.ring.bound:g}, or that is not finite, or a weight that is not whole: add "
                f"fc.uplink.clip({self.ring.bound:g}) before the stage secure, or raise its bound"
            )
        return vector_of(sent.ring)

    def judged(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The update that the vector encodes, for the policy to check: integers times the ring's step over
        the weight, [length - 1]."""
        update, weight = vector[:-1].view(np.int32), max(1, int(vector[-1]))
        return {"update": update.astype(np.float32) * np.float32(self.ring.step / weight)}

    def begin(self, request: Header, vector: np.ndarray, minimum: int) -> Attempt:
        """A new attempt with this report, and new secrets."""
        terms = terms_of(request, len(vector))
        return Attempt(
            Client(self._key.name, terms, self._key.sign, self._fits, self._spent, max(MINIMUM, minimum)),
            vector,
        )

    def go_on(self, attempt: Attempt) -> None:
        """Makes this the current attempt, as its keys are about to leave."""
        self._attempt = attempt

    def attempt(self, header: Header) -> Attempt:
        """The current attempt; raises `NoAttempt` if the request names another."""
        current = self._attempt
        if current is None or current.number != header.fields.get(ATTEMPT):
            raise NoAttempt(
                f"{self._key.name} takes no part in this attempt: it has not begun it, or was started anew since"
            )
        return current

    def meet(self, roster: Keys, identities: np.ndarray | None) -> None:
        """Takes the sites' identity keys from the coordinator, without a roster; a name's first key
        counts."""
        if self._roster is not None:
            return
        if identities is None or identities.shape != (len(roster.sites), 32) or identities.dtype != np.uint8:
            raise BadRequest("the request has no identity keys of the sites in its roster")
        for one, raw in zip(roster.sites, identities, strict=True):
            self._first_keys.setdefault(one.name, PublicKey(raw.tobytes()))

    def _fits(self, name: str, purpose: str, data: bytes, signature: bytes) -> bool:
        """Whether the signature is of the site with this name."""
        if name == self._key.name:
            key: PublicKey | None = self._key.public
        elif self._roster is None:
            key = self._first_keys.get(name)
        else:
            key = self._roster.keys.get(name)
            key = None if key in self._roster.revoked else key
        return key is not None and key.fits(purpose, data, signature)
