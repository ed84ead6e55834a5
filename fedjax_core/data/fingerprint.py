"""A fingerprint of data: equal for populations with the same examples, for the same clients, in the same
order.

>>> one = fingerprint([np.arange(4)], ["x"], np.array([0, 4]), np.zeros((1, 2), np.uint32))
>>> two = fingerprint([np.array([0, 1, 2, 9])], ["x"], np.array([0, 4]), np.zeros((1, 2), np.uint32))
>>> len(one), one == two
(16, False)
"""

import hashlib
from collections.abc import Iterator

import numpy as np

WHOLE_BYTES = 64 << 20  # data up to this size is hashed whole
_BLOCKS = 256  # blocks of consecutive rows, in each column of larger data


def fingerprint(
    leaves: list[np.ndarray], names: list[str], offsets: np.ndarray, addresses: np.ndarray
) -> str:
    """16 hexadecimal digits of a SHA-256 over names, dtypes, shapes, offsets, addresses and contents.

    Of data larger than 64 MB, 256 evenly spaced blocks of rows of each column are hashed, 64 MB in all, so
    that it takes a fraction of a second for memory-mapped files of any size: a change between the blocks goes
    unseen. In memory or mapped makes no difference."""
    digest = hashlib.sha256()
    total = sum(leaf.nbytes for leaf in leaves)
    digest.update(offsets.astype("<i8").tobytes())
    digest.update(addresses.astype("<u4").tobytes())
    for name, leaf in zip(names, leaves, strict=True):
        digest.update(f"{name}:{leaf.dtype.name}{leaf.shape};".encode())
        share = 1.0 if total <= WHOLE_BYTES else WHOLE_BYTES / total
        for block in _blocks(leaf, share):
            digest.update(block.tobytes())
    return digest.hexdigest()[:16]


def _blocks(leaf: np.ndarray, share: float) -> Iterator[np.ndarray]:
    """This share of the rows, in evenly spaced blocks; the first and the last block hold the first and the
    last rows."""
    length = -(-len(leaf) // _BLOCKS) if share == 1 else max(1, int(share * len(leaf) / _BLOCKS))
    starts = (
        range(0, len(leaf), length)
        if share == 1
        else np.linspace(0, len(leaf) - length, _BLOCKS).astype(np.int64)
    )
    for start in starts:
        yield leaf[start : start + length]
