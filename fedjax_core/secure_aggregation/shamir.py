"""Shamir's secret sharing: splits a secret in n shares; any t of them give it back, t - 1 reveal nothing.

    f(z) = secret + a_1 z + ... + a_{t-1} z^{t-1}  modulo p,   a_k uniform;   the share of point z is f(z)
    secret = f(0) = sum_z f(z) prod_{y != z} y / (y - z)                      over any t points

The prime p is 2^521 - 1, so that a secret of 32 bytes is one number. Shamir, "How to share a secret", CACM
1979. Python's whole numbers take time that depends on their values.

>>> shares = share(42, threshold=2, points=[1, 2, 3])
>>> recover({1: shares[1], 3: shares[3]})
42
"""

import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache

PRIME = 2**521 - 1
SIZE = 66
"""Bytes of a share."""


def share(secret: int, threshold: int, points: Iterable[int], prime: int = PRIME) -> dict[int, int]:
    """{point: share}; `threshold` of them give the secret back. Points are distinct, and 1 to `prime` - 1."""
    points = list(points)
    if not 0 <= secret < prime:
        raise ValueError(
            f"a secret to share is a whole number from 0 to below the prime, of {prime.bit_length()} bits; this one is not"
        )
    if not 1 <= threshold <= len(points):
        raise ValueError(
            f"a threshold of {threshold} of {len(points)} shares: it must be from 1 to their number"
        )
    if len(set(points)) < len(points) or not all(0 < z < prime for z in points):
        raise ValueError(
            "points must be distinct and from 1 to below the prime: the share of point 0 would be the secret"
        )
    coefficients = [secrets.randbelow(prime) for _ in range(threshold - 1)] + [secret]
    shares = {}
    for z in points:
        value = 0
        for c in coefficients:  # Horner's rule
            value = (value * z + c) % prime
        shares[z] = value
    return shares


def recover(shares: Mapping[int, int], prime: int = PRIME) -> int:
    """The secret of these shares {point: share}. Fewer than the threshold, or a false one, give another
    number: check the result."""
    if not shares:
        raise ValueError("no share is there to recover a secret from")
    points = tuple(sorted(shares))
    return sum(shares[z] * w for z, w in zip(points, _at_zero(points, prime), strict=True)) % prime


@lru_cache(maxsize=64)
def _at_zero(points: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """The factor of each share. The same points serve many secrets of a round."""
    factors = []
    for z in points:
        above = below = 1
        for y in points:
            if y != z:
                above, below = above * y % prime, below * (y - z) % prime
        factors.append(above * pow(below, -1, prime) % prime)
    return tuple(factors)
