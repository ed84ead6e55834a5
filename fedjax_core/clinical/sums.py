"""Sums of what sites send: each site's part is a tuple of arrays, and the sum of all parts is the part of all
people together.

>>> from fedjax_core.clinical.ranks import Counts
>>> added([Counts(np.array([1, 2]), np.array([0, 1])), Counts(np.array([3, 0]), np.array([1, 1]))])
Counts(ill=array([4, 2]), well=array([1, 2]))
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

Part = TypeVar("Part", bound=tuple[Any, ...])


def added(parts: Iterable[Part]) -> Part:
    """The sum of all sites' parts, field by field; raises ValueError for no parts, and where shapes
    differ."""
    parts = list(parts)
    if not parts:
        raise ValueError("there is nothing to add: no site sent its part")
    kind: Any = type(parts[0])
    fields = []
    for i, values in enumerate(zip(*parts, strict=True)):
        shapes = {np.shape(value) for value in values}
        if len(shapes) > 1:
            name = kind._fields[i]
            raise ValueError(
                f"sites sent {name} of shapes {sorted(shapes)}: all must use the same grid, knots and groups"
            )
        fields.append(sum(values[1:], values[0]))
    return kind(*fields)
