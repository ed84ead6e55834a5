"""Finds the updates that are absurdly larger than the others of the same exchange, in whatever order.

The norm of an update may be at most 100 times the median of the norms above zero. A site with more steps to
do than the median site may be larger in proportion, so one large hospital among clinics passes. An update
that is small beside the model itself, at most a hundredth of its norm, always passes. Fewer than three norms
cannot be compared: then a norm may be a million times the model's, or a million if the model is smaller than
1.

The lower median counts, so two of four sites that send far too much do not set the bound. Two of four that
send next to nothing do: then the others are rejected, by name, unless their updates are small beside the
model.

>>> outlying([1.0, 2.0, 1e20], [10, 10, 10], lambda: 5.0), outlying([1.0, 2.0, 150.0], [10, 10, 10], lambda: 5.0)
([2], [])
>>> outlying([1.0, 1.0, 900.0], [1, 1, 1000], lambda: 0.0), outlying([1.0, 1e20], [10, 10], lambda: 0.0)
([], [1])
"""

from collections.abc import Callable, Sequence

MOST = 100.0
"""How many times the median a number may be."""
LEAST = 3
"""The least count of numbers from which a median is meaningful."""
_OF_THE_MODEL = 0.01
_ALONE = 1e6


def outlying(norms: Sequence[float], work: Sequence[float], model: Callable[[], float]) -> list[int]:
    """The indices of the norms that are too large; `work`: the steps of each, `model`: the model's norm."""
    here = list(range(len(norms)))
    while True:
        large, share = _large([norms[i] for i in here], [work[i] for i in here])
        size = model() if large else 0.0
        bad = {here[i] for i in large if norms[here[i]] > share * size}
        if not bad:
            return [i for i in range(len(norms)) if i not in here]
        here = [i for i in here if i not in bad]


def median(values: Sequence[float]) -> float:
    """The median; the lower one if two are in the middle."""
    return sorted(values)[(len(values) - 1) // 2]


def _large(norms: Sequence[float], work: Sequence[float]) -> tuple[list[int], float]:
    """(positions of the norms that are too large beside the others, the share of the model's norm that still
    passes)."""
    some = [norm for norm in norms if norm > 0]
    if len(some) < LEAST:
        return [i for i, norm in enumerate(norms) if norm > _ALONE], _ALONE
    most, usual = MOST * median(some), max(1.0, median(work))
    return [i for i, norm in enumerate(norms) if norm > most * max(1.0, work[i] / usual)], _OF_THE_MODEL
