"""Shakespeare's lines as tokens: the coding of characters, and how a client's lines become sequences and
their next characters.

    lines "ab", "c" in sequences of 4:   x = [begin a b end], [begin c end pad]... with y one place further

Token 0 is padding, then come where a line begins and ends, the 86 characters that TFF's tutorial lists, and
one for all others: 90 in all, as `fc.models.char_lstm` has by default.

>>> x, y = sequences(["ab", "c"], length=4)
>>> x.shape, text(x[0]), text(y[0])
((2, 4), '<ab>', 'ab><')
"""

import string
from collections.abc import Sequence

import numpy as np

LETTERS = string.digits + string.ascii_letters + " $(,[_#'/;?\"&*.:\n]!%)-\r@"
BEGIN, END, OTHER = 1, 2, 3 + len(LETTERS)
VOCABULARY = OTHER + 1
_TOKEN = np.full(256, OTHER, np.int32)
_TOKEN[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(3, OTHER)


def tokens(line: str | bytes) -> np.ndarray:
    """A line's characters as tokens, int32; a character beyond ASCII is as many unknown ones as it has
    bytes."""
    return _TOKEN[np.frombuffer(line if isinstance(line, bytes) else line.encode(), np.uint8)]


def text(of: np.ndarray) -> str:
    """Tokens as characters, with < and > where a line begins and ends, nothing for padding, and ~ for
    others."""
    return "".join(np.array(["", "<", ">", *LETTERS, "~"])[of])


def sequences(lines: Sequence[str | bytes], length: int) -> tuple[np.ndarray, np.ndarray]:
    """All of a client's lines, one after another, as (x [n, length], y [n, length]) int32; y is one token
    ahead of x."""
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    joined = [part for line in lines for part in ([BEGIN], tokens(line), [END])]
    whole = np.concatenate(joined).astype(np.int32) if joined else np.zeros(1, np.int32)
    room = -(-(len(whole) - 1) // length) * length
    return tuple(np.pad(side, (0, room - len(side))).reshape(-1, length) for side in (whole[:-1], whole[1:]))  # type: ignore[return-value]
