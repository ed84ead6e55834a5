"""The messages of secure aggregation: plain values of names, bytes and one vector, which any envelope can
carry.

site to server server to site Advertised two keys, signed Roster everybody's keys Shared a box for each peer
Boxes the boxes for this site, and who sent some Masked the masked vector Survivors who is in the sum
Confirmed a signature Wanted the signatures, and the shares asked for Revealed shares
"""

import hashlib
from fractions import Fraction

import msgspec
import numpy as np

from fedjax_core.secure_aggregation.masks import framed

MINIMUM = 3
"""The default of the smallest number of sites in a sum: of two, each could subtract its own report."""


class Refusal(ValueError):
    """A request that a site refuses. `code` says in one word why."""

    def __init__(self, code: str, reason: str):
        super().__init__(reason)
        self.code = code


class TooFew(RuntimeError):
    """A round ended without a sum, as fewer sites took part in a stage than are needed; nothing of it can be
    read."""

    def __init__(self, stage: str, count: int, needed: int):
        super().__init__(
            f"secure aggregation ended in stage {stage!r}: {count} sites took part and {needed} are needed. No sum can be read. "
            "Begin another attempt with those that are there; after the stage 'reveal', another round."
        )
        self.stage, self.found, self.needed = stage, count, needed


class Round(msgspec.Struct, frozen=True):
    """The name of a sum: run, round and attempt. A site takes part in an attempt once, and to the end in one
    attempt at most."""

    run: str
    round: int
    exchange: int = 0
    attempt: int = 0


class Terms(msgspec.Struct, frozen=True):
    """The terms of a round that all must agree on before they begin."""

    round: Round
    length: int  # of the vector
    share: tuple[int, int] = (2, 3)
    """More than this share of those who began must go on to the end: 2/3 withstands a server that lies
    together with up to a third of the sites, 1/2 one that lies alone."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a vector to add has at least one number, got a length of {self.length}")
        if self.share[1] < 1 or not Fraction(1, 2) <= Fraction(*self.share) < 1:
            raise ValueError(
                f"share={self.share} is the part of the sites that must be exceeded, from 1/2 to below 1: with fewer, a server could have "
                "one half of them open its sum and the other half another one"
            )

    def needed(self, number: int) -> int:
        """The least number of sites that is more than `share` of `number`."""
        return self.share[0] * number // self.share[1] + 1

    def raw(self) -> bytes:
        """The terms as bytes, for digests and signatures."""
        r = self.round
        return framed("terms", r.run, r.round, r.exchange, r.attempt, self.length, *self.share)


class Advertised(msgspec.Struct, frozen=True):
    """A site's keys for this round, signed by its identity."""

    name: str
    box_key: bytes  # X25519, for boxes
    mask_key: bytes  # X25519, for masks
    seed_digest: bytes  # SHA-256 of the seed of its own mask, by which a false share is detected
    signature: bytes

    def signed(self, terms: Terms) -> bytes:
        """The bytes that the signature is over."""
        return framed("keys", terms.raw(), self.name, self.box_key, self.mask_key, self.seed_digest)


class Roster(msgspec.Struct, frozen=True):
    """The keys of all sites that take part, in the order of their names."""

    sites: tuple[Advertised, ...]

    def session(self, terms: Terms) -> bytes:
        """32 bytes that identify this round among these sites with these keys."""
        parts = (x for s in self.sites for x in (s.name, s.box_key, s.mask_key, s.seed_digest))
        return hashlib.sha256(framed("session", terms.raw(), *parts)).digest()


class Shared(msgspec.Struct, frozen=True):
    """A site's secrets in shares, one box a peer."""

    name: str
    boxes: dict[str, bytes]  # {for whom: box}


class Boxes(msgspec.Struct, frozen=True):
    """The boxes for one site, and the names of all sites that sent boxes."""

    senders: tuple[str, ...]
    boxes: dict[str, bytes]  # {of whom: box}, of this site's peers


class Masked(msgspec.Struct, frozen=True):
    """A site's vector under its masks."""

    name: str
    vector: np.ndarray  # [length] uint32


class Survivors(msgspec.Struct, frozen=True):
    """The sites whose vectors are in the sum."""

    names: tuple[str, ...]

    def signed(self, session: bytes, senders: tuple[str, ...]) -> bytes:
        """The bytes that each survivor signs."""
        return framed("survivors", session, framed(*senders), framed(*self.names))


class Confirmed(msgspec.Struct, frozen=True):
    """A site's signature over who is in the sum."""

    name: str
    signature: bytes


class Wanted(msgspec.Struct, frozen=True):
    """The request for shares to a site, with the signatures of those who agreed on the sum."""

    confirmed: tuple[Confirmed, ...]
    seeds: tuple[str, ...]  # sites whose own mask's seed is asked for: those in the sum
    keys: tuple[str, ...]  # sites whose mask key is asked for: those who dropped out after sharing


class Revealed(msgspec.Struct, frozen=True):
    """The shares that a site held for its peers: one of the two kinds for each."""

    name: str
    seeds: dict[str, bytes]
    keys: dict[str, bytes]
