"""A site's end of secure aggregation: five answers in order, each to one request, and the requests that it
refuses.

    advertise() -> share(roster) -> mask(boxes, vector) -> confirm(survivors) -> reveal(wanted)

The same request again gets the same answer. A different one in its place is refused: two rosters, two sets of
survivors, both shares of one peer. So a server can open only one sum a round, of at least as many sites as
this site demands. All secrets come from the operating system, live in memory for one attempt, and are in no
checkpoint: a site that is killed drops out of the attempt. What it opens is on its disk before a share leaves
it (`Spent`).
"""

import hashlib
import secrets
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedjax_core.secure_aggregation import shamir
from fedjax_core.secure_aggregation.graph import connected, peers
from fedjax_core.secure_aggregation.masks import add_masks, agreed, derive, framed, seal, unseal
from fedjax_core.secure_aggregation.messages import (
    MINIMUM,
    Advertised,
    Boxes,
    Confirmed,
    Masked,
    Refusal,
    Revealed,
    Roster,
    Shared,
    Survivors,
    Terms,
    Wanted,
)
from fedjax_core.secure_aggregation.spent import Spent

T = TypeVar("T")
Sign = Callable[[str, bytes], bytes]
"""(purpose, data) -> signature, by this site's identity: `SiteKey.sign`."""
Fits = Callable[[str, str, bytes, bytes], bool]
"""(name, purpose, data, signature) -> whether the site of that name signed it, by keys exchanged beforehand
and not through the server."""

PURPOSE = "secure-aggregation"


class Client:
    """A site in one attempt of one round. Raises `Refusal` for requests that it refuses."""

    def __init__(self, name: str, terms: Terms, sign: Sign, fits: Fits, spent: Spent, minimum: int = MINIMUM):
        spent.begin(terms.round)
        self.name, self.terms = name, terms
        self._sign, self._fits, self._spent, self._minimum = sign, fits, spent, minimum
        self._box_key, self._mask_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = secrets.token_bytes(32)
        self._answers: list[tuple[Any, Any]] = []  # (request, answer) of each stage
        unsigned = Advertised(
            name,
            self._box_key.public_key().public_bytes_raw(),
            self._mask_key.public_key().public_bytes_raw(),
            hashlib.sha256(self._seed).digest(),
            b"",
        )
        self._advertised = Advertised(
            name,
            unsigned.box_key,
            unsigned.mask_key,
            unsigned.seed_digest,
            sign(PURPOSE, unsigned.signed(terms)),
        )

    def advertise(self) -> Advertised:
        """Its public keys of this round."""
        return self._advertised

    def share(self, roster: Roster) -> Shared:
        """A box for each peer, with a share of the seed of its own mask and one of its mask key."""
        return self._once(0, "roster", roster, lambda: self._share(roster))

    def mask(self, boxes: Boxes, vector: np.ndarray) -> Masked:
        """The vector, [length] uint32, under its own mask and one a peer; `vector` stays as it is."""
        return self._once(1, "boxes", boxes, lambda: self._mask(boxes, vector))

    def confirm(self, survivors: Survivors) -> Confirmed:
        """Its signature over who is in the sum."""
        return self._once(2, "survivors", survivors, lambda: self._confirm(survivors))

    def reveal(self, wanted: Wanted) -> Revealed:
        """One share of each peer: of its own mask where it is in the sum, of its mask key where it dropped
        out."""
        return self._once(3, "wanted", wanted, lambda: self._reveal(wanted))

    def _once(self, stage: int, name: str, request: Any, answer: Callable[[], T]) -> T:
        if stage < len(self._answers):
            before, result = self._answers[stage]
            if before != request:
                raise Refusal(
                    f"two-{name}",
                    f"{self.name!r} was shown another {name} in this round: it answers one, and the same again",
                )
            return result
        if stage > len(self._answers):
            raise Refusal("out-of-order", f"{self.name!r} has not answered what comes before {name}")
        result = answer()
        self._answers.append((request, result))
        return result

    def _share(self, roster: Roster) -> Shared:
        names = tuple(s.name for s in roster.sites)
        self._enough("roster", len(names), self._minimum)
        if list(names) != sorted(set(names)):
            raise Refusal("roster", "the roster's names must be distinct and in order")
        if self._advertised not in roster.sites:
            raise Refusal("swapped-key", f"the roster does not have the keys that {self.name!r} advertised")
        for s in roster.sites:
            if not self._fits(s.name, PURPOSE, s.signed(self.terms), s.signature):
                raise Refusal(
                    "swapped-key",
                    f"the keys of {s.name!r} in the roster are not signed by {s.name!r} for this round",
                )
        if len({key for s in roster.sites for key in (s.box_key, s.mask_key)}) < 2 * len(names):
            raise Refusal("swapped-key", "two keys of the roster are equal: each site makes its own")
        self._session = roster.session(self.terms)
        self._sites = {s.name: s for s in roster.sites}
        self._graph = peers(names, self._session)
        self._holders = sorted(self._graph[self.name] | {self.name})
        points = {name: i + 1 for i, name in enumerate(names)}
        needed = self.terms.needed(len(self._holders))
        holder_points = [points[name] for name in self._holders]
        of_seed = shamir.share(int.from_bytes(self._seed), needed, holder_points)
        of_key = shamir.share(int.from_bytes(self._mask_key.private_bytes_raw()), needed, holder_points)
        both = {name: _bytes(of_seed[points[name]]) + _bytes(of_key[points[name]]) for name in self._holders}
        self._held = {self.name: both[self.name]}
        others = self._graph[self.name]
        return Shared(
            self.name,
            {
                name: seal(self._box(self.name, name), both[name], self._associated_data(self.name, name))
                for name in others
            },
        )

    def _mask(self, boxes: Boxes, vector: np.ndarray) -> Masked:
        senders = boxes.senders
        if vector.dtype != np.uint32 or vector.shape != (self.terms.length,):
            raise ValueError(
                f"this round adds uint32[{self.terms.length}], got {vector.dtype}{list(vector.shape)}"
            )
        self._among("boxes", senders, self._sites)
        near = self._graph[self.name] & set(senders)
        if set(boxes.boxes) != near:
            raise Refusal("boxes", f"{self.name!r} was not given a box of each of its peers that sent some")
        for name in sorted(near):
            try:
                self._held[name] = unseal(
                    self._box(name, self.name), boxes.boxes[name], self._associated_data(name, self.name)
                )
            except ValueError as error:
                raise Refusal(
                    "boxes", f"what {name!r} sent to {self.name!r} cannot be opened: {error}"
                ) from None
            if len(self._held[name]) != 2 * shamir.SIZE:
                raise Refusal("boxes", f"what {name!r} sent to {self.name!r} is not two shares")
        self._senders, self._vector = senders, hashlib.sha256(vector.tobytes()).digest()
        masked = vector.copy()
        add_masks(
            masked, [(self._seed, False), *((self._pair(name), name < self.name) for name in sorted(near))]
        )
        return Masked(self.name, masked)

    def _confirm(self, survivors: Survivors) -> Confirmed:
        self._among("survivors", survivors.names, self._senders)
        self._spent.check(self.terms.round, self._sum_of(survivors))
        self._survivors = survivors
        return Confirmed(self.name, self._sign(PURPOSE, survivors.signed(self._session, self._senders)))

    def _reveal(self, wanted: Wanted) -> Revealed:
        signed = self._survivors.signed(self._session, self._senders)
        names = {one.name for one in wanted.confirmed}
        if len(names) < len(wanted.confirmed) or not names <= set(self._survivors.names):
            raise Refusal("confirmed", "signatures must be of distinct sites that are in the sum")
        self._enough("confirm", len(names), self.terms.needed(len(self._sites)))
        for one in wanted.confirmed:
            if not self._fits(one.name, PURPOSE, signed, one.signature):
                raise Refusal(
                    "confirmed",
                    f"{one.name!r} did not sign the sum that {self.name!r} was shown: they were shown different ones",
                )
        if both := sorted(set(wanted.seeds) & set(wanted.keys)):
            raise Refusal(
                "both-shares", f"asked for both shares of {both[0]!r}: with these its report could be read"
            )
        near = self._held.keys() & set(self._senders)
        there = near & set(self._survivors.names)
        if set(wanted.seeds) != there or set(wanted.keys) != near - there:
            raise Refusal(
                "shares", "asked for other shares than of who is in the sum, and of who dropped out of it"
            )
        self._spent.open(self.terms.round, self._sum_of(self._survivors))
        return Revealed(
            self.name,
            {name: self._held[name][: shamir.SIZE] for name in wanted.seeds},
            {name: self._held[name][shamir.SIZE :] for name in wanted.keys},
        )

    def _sum_of(self, survivors: Survivors) -> bytes:
        """The digest of a sum: of who is in it, and of this site's own vector."""
        return hashlib.sha256(framed(*survivors.names, self._vector)).digest()

    def _among(self, stage: str, names: tuple[str, ...], before: Collection[str]) -> None:
        """Refuses names that were not there before, lack this site's, are too few, or fall into parts within
        which masks cancel."""
        if list(names) != sorted(set(names)) or not set(names) <= set(before) or self.name not in names:
            raise Refusal(
                stage,
                f"the names of the {stage} must be in order, of those who came so far, and {self.name!r} among them",
            )
        self._enough(stage, len(names), max(self._minimum, self.terms.needed(len(self._sites))))
        self._enough(stage, len(set(self._holders) & set(names)), self.terms.needed(len(self._holders)))
        if not connected(self._graph, names):
            raise Refusal(
                "in-parts",
                "too many peers dropped out: the sums of parts of the sites could be read one by one",
            )

    def _enough(self, stage: str, count: int, needed: int) -> None:
        if count < needed:
            raise Refusal(
                "too-few", f"{count} sites in stage {stage!r}, and {self.name!r} demands at least {needed}"
            )

    def _secret(self, private: X25519PrivateKey, theirs: bytes, name: str) -> bytes:
        try:
            return agreed(private, theirs)
        except ValueError:
            raise Refusal("bad-key", f"a key of {name!r} gives no secret: it is of low order") from None

    def _box(self, of: str, to: str) -> bytes:
        other = of if to == self.name else to
        return derive(
            self._secret(self._box_key, self._sites[other].box_key, other), self._session, "box", of, to
        )

    def _pair(self, name: str) -> bytes:
        return pair_seed(
            self._secret(self._mask_key, self._sites[name].mask_key, name), self._session, self.name, name
        )

    def _associated_data(self, of: str, to: str) -> bytes:
        return framed(self._session, of, to)


def pair_seed(secret: bytes, session: bytes, one: str, other: str) -> bytes:
    """The seed of the mask that two sites share: the first by name adds it, the other one subtracts it."""
    return derive(secret, session, "mask", *sorted((one, other)))


def _bytes(share: int) -> bytes:
    return share.to_bytes(shamir.SIZE)
