"""Addresses of clients: the 64 bits of a client's id, from which its randomness is made.

An integer id is its own 64 bits. Those of a string are its BLAKE2b digest (8 bytes, big-endian), so that an
address needs no list of all clients.

>>> addresses_of(np.array([7, 2**40])).tolist()
[[0, 7], [256, 0]]
>>> words_of(np.array(["charite"])) == int.from_bytes(hashlib.blake2b(b"charite", digest_size=8).digest(), "big")
array([ True])
"""

import hashlib

import numpy as np


def words_of(ids: np.ndarray) -> np.ndarray:
    """[N] uint64: the 64 bits of each id, an integer or a string."""
    if ids.dtype.kind != "U":
        return ids.astype(np.uint64)
    digests = b"".join(hashlib.blake2b(id.encode(), digest_size=8).digest() for id in ids.tolist())
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def addresses_of(ids: np.ndarray) -> np.ndarray:
    """[N, 2] uint32, read-only: the (high, low) words of each id."""
    words = words_of(ids)
    addresses = np.stack([words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32)
    addresses.flags.writeable = False
    return addresses
