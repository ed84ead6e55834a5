"""Splits clients' examples in two parts: at random, by person, or with rare cases on both sides.

    drawn by (seed, client's id)         a client's division does not depend on the other clients or their order
    by = "patient"                       all examples of a person are in one part: a test part then has people that nobody trained on
    stratify = "y"                       of each class alike: of a class of two examples, one is in each part

>>> first_part([0, 4], [7], 0.5, 0, by=np.array([1, 1, 2, 2])).tolist() in ([True, True, False, False], [False, False, True, True])
True
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_core.data import host_random


def first_part(
    offsets: Sequence[int] | np.ndarray,
    words: Sequence[int] | np.ndarray,
    fraction: float,
    seed: int,
    *,
    by: Any = None,
    stratify: Any = None,
) -> np.ndarray:
    """[examples] bool: whether an example is in the first part, which has `fraction` (to the nearest, half
    up) of each client's examples.

    `words` [N] are the clients' addresses; `by` [examples] the person, and `stratify` [examples] the class of
    an example. With `by`, `fraction` is that of persons. With `stratify` it is that of each class, and both
    parts have at least one of each: raises where a class has only one. A person counts for the one of their
    classes that is rarest at the client.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"fraction must lie between 0 and 1, got {fraction!r}; it is the share of each client's examples in the first part"
        )
    host_random.check_seed(seed)
    chosen = np.zeros(offsets[-1], bool)
    for i, (start, end, word) in enumerate(zip(offsets[:-1], offsets[1:], words, strict=True)):
        generator = host_random.generator(host_random.SPLIT, seed, word)
        if by is None and stratify is None:
            chosen[start + generator.permutation(end - start)[: int(fraction * (end - start) + 0.5)]] = True
            continue
        person = np.arange(end - start) if by is None else np.unique(by[start:end], return_inverse=True)[1]
        first = _of_each_class(
            i, person, None if stratify is None else np.asarray(stratify[start:end]), fraction, generator
        )
        chosen[start:end] = np.isin(person, first)
    return chosen


class Alone(ValueError):
    """A class has one example, or person, at a client, and two parts were to have one each: `client` is the
    position."""

    def __init__(self, client: int, value: Any) -> None:
        super().__init__(f"class {value} is one example, or person, alone")
        self.client, self.value = client, value


def _of_each_class(
    client: int,
    person: np.ndarray,
    classes: np.ndarray | None,
    fraction: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """The persons, numbered from 0, that are in the first part."""
    if classes is None or not len(person):
        count = len(np.unique(person))
        return generator.permutation(count)[: int(fraction * count + 0.5)]
    values, code, counts = np.unique(classes, return_inverse=True, return_counts=True)
    rarest = np.lexsort((counts[code], person))  # by person, the rarest class of each first
    of = code[rarest[np.unique(person[rarest], return_index=True)[1]]]
    first = []
    for one in np.unique(of):
        persons = np.flatnonzero(of == one)
        if len(persons) == 1:
            raise Alone(client, values[one])
        first.append(
            generator.permutation(persons)[
                : min(max(1, int(fraction * len(persons) + 0.5)), len(persons) - 1)
            ]
        )
    return np.concatenate(first)
