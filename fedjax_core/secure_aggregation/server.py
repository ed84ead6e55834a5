"""The coordinator's end of secure aggregation: forwards messages, adds masked vectors, and subtracts the
masks that are left.

    roster(advertised) -> route(shared) -> add(masked) ... survivors() -> wanted(confirmed) -> total(revealed)

A site that does not answer has dropped out, and the next stage goes on without it. A site that sent its
vector and then dropped out is in the sum. With fewer sites than needed, `TooFew` names the stage, and nothing
can be read.

    sum_i sent_i = sum_i x_i + sum_i mask(seed_i) + sum over i in the sum, j dropped out, of +- mask(pair_ij)

The seeds of the second term are recovered from shares, and so are the mask keys of those who dropped out,
which give the third."""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedjax_core.secure_aggregation import shamir
from fedjax_core.secure_aggregation.client import PURPOSE, Fits, pair_seed
from fedjax_core.secure_aggregation.graph import peers
from fedjax_core.secure_aggregation.masks import add_masks, agreed
from fedjax_core.secure_aggregation.messages import (
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
    TooFew,
    Wanted,
)


class Server:
    """One attempt of one round at the coordinator. It holds the running sum: one vector, however many sites
    there are."""

    def __init__(self, terms: Terms, fits: Fits):
        self.terms, self._fits = terms, fits
        self._sum = np.zeros(terms.length, np.uint32)
        self._added: set[str] = set()

    def roster(self, advertised: Iterable[Advertised]) -> Roster:
        """Everybody's keys; keys that their site did not sign for this round are left out."""
        of = {s.name: s for s in advertised if self._fits(s.name, PURPOSE, s.signed(self.terms), s.signature)}
        self._enough("advertise", len(of), 2)
        self._sites = dict(sorted(of.items()))
        roster = Roster(tuple(self._sites.values()))
        self._session = roster.session(self.terms)
        self._graph = peers(tuple(self._sites), self._session)
        self._needed = self.terms.needed(len(of))
        return roster

    def route(self, shared: Iterable[Shared]) -> dict[str, Boxes]:
        """{site: the boxes for it}, from the sites that sent a box for each of their peers."""
        sent = {
            s.name: s.boxes for s in shared if s.name in self._sites and set(s.boxes) == self._graph[s.name]
        }
        self._enough("share", len(sent), self._needed)
        self._senders = tuple(sorted(sent))
        return {
            to: Boxes(self._senders, {of: sent[of][to] for of in self._senders if of in self._graph[to]})
            for to in self._senders
        }

    def add(self, masked: Masked) -> None:
        """Adds a masked vector to the sum. Raises for another shape, a site that shared nothing, or one that
        is in the sum already."""
        if masked.name not in self._senders or masked.name in self._added:
            raise Refusal(
                "masked",
                f"{masked.name!r} shared no secrets in this round, or its vector is in the sum already",
            )
        if masked.vector.dtype != np.uint32 or masked.vector.shape != self._sum.shape:
            raise Refusal(
                "masked",
                f"the vector of {masked.name!r} is {masked.vector.dtype}{list(masked.vector.shape)}, not the round's",
            )
        self._sum += masked.vector
        self._added.add(masked.name)

    def survivors(self) -> Survivors:
        """The sites whose vectors are in the sum."""
        self._enough("mask", len(self._added), self._needed)
        self._survivors = Survivors(tuple(sorted(self._added)))
        return self._survivors

    def wanted(self, confirmed: Iterable[Confirmed]) -> dict[str, Wanted]:
        """{site: the shares to ask it for}, for the sites that confirmed who is in the sum."""
        signed = self._survivors.signed(self._session, self._senders)
        good = [
            c for c in confirmed if c.name in self._added and self._fits(c.name, PURPOSE, signed, c.signature)
        ]
        all_of_them = tuple({c.name: c for c in good}.values())
        self._enough("confirm", len(all_of_them), self._needed)

        def request_for(name: str) -> Wanted:
            near = [one for one in self._senders if one in self._graph[name] or one == name]
            there, gone = (
                tuple(one for one in near if (one in self._added) is kind) for kind in (True, False)
            )
            return Wanted(all_of_them, there, gone)

        self._requests = {c.name: request_for(c.name) for c in all_of_them}
        return self._requests

    def total(self, revealed: Iterable[Revealed]) -> np.ndarray:
        """The sum, [length] uint32, of the vectors of all survivors, modulo 2^32."""
        good = {r.name: r for r in revealed if r.name in self._requests and self._as_requested(r)}
        self._enough("reveal", len(good), self._needed)
        point = {name: i + 1 for i, name in enumerate(self._sites)}
        # (seed, whether its mask is taken off, or was and is added)
        total, off = (
            self._sum.copy(),
            list[tuple[bytes, bool]](),
        )
        for name in self._survivors.names:
            shares = {point[r.name]: r.seeds[name] for r in good.values() if name in r.seeds}
            off.append((self._recovered(name, "seed", shares, self._is_seed_of(name)), True))
        for name in sorted(set(self._senders) - self._added):
            shares = {point[r.name]: r.keys[name] for r in good.values() if name in r.keys}
            left = sorted(self._graph[name] & self._added)
            if left:
                key = X25519PrivateKey.from_private_bytes(
                    self._recovered(name, "mask key", shares, self._is_key_of(name))
                )
            for other in left:  # these added the mask, or subtracted it
                off.append(
                    (
                        pair_seed(agreed(key, self._sites[other].mask_key), self._session, name, other),
                        other < name,
                    )
                )
        add_masks(total, off)
        return total

    def _recovered(
        self, name: str, what: str, shares: dict[int, bytes], right: Callable[[bytes], bool]
    ) -> bytes:
        needed = self.terms.needed(len(self._graph[name]) + 1)
        self._enough("reveal", len(shares), needed)
        chosen = dict(sorted(shares.items())[:needed])
        number = shamir.recover({z: int.from_bytes(raw) for z, raw in chosen.items()})
        if number >= 2**256 or not right(number.to_bytes(32)):
            raise Refusal(
                "false-share",
                f"the shares of the {what} of {name!r} do not fit: a site gave or made a false one. There is no sum.",
            )
        return number.to_bytes(32)

    def _is_seed_of(self, name: str) -> Callable[[bytes], bool]:
        digest = self._sites[name].seed_digest
        return lambda raw: hashlib.sha256(raw).digest() == digest

    def _is_key_of(self, name: str) -> Callable[[bytes], bool]:
        public = self._sites[name].mask_key
        return lambda raw: X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw() == public

    def _as_requested(self, revealed: Revealed) -> bool:
        request = self._requests[revealed.name]
        shares = [*revealed.seeds.values(), *revealed.keys.values()]
        named = set(revealed.seeds) == set(request.seeds) and set(revealed.keys) == set(request.keys)
        return named and all(len(raw) == shamir.SIZE for raw in shares)

    def _enough(self, stage: str, count: int, needed: int) -> None:
        if count < needed:
            raise TooFew(stage, count, needed)
