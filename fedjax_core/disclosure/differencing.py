"""The guard against differencing: declines a release that would, with those before it, single out few people.

Each release is a number about a set of people. Sets can be added and subtracted: everybody, less everybody
but one, is one person. Let Q [q, n] have a row for each set, with the number of records that each person has
there. A number about people in S alone can be calculated where Q's row space has a vector that is 0 outside
S. The guard admits a set only while every such vector but 0 covers at least `minimum` people.
That covers repeated queries after somebody came or left, overlapping ones, complements, and chains of them.

People who are in the same sets are one atom, so that Q is small. The combinations that vanish on all atoms of
at least `minimum` people have a basis over the small atoms. Groups of small atoms with fewer people are tried
one by one; where there are too many, the guard declines.

The cells of one table are released together (`joint`). What can be calculated within a table, such as the gap
between two hidden cells, is judged by linear programming in `tables`, and not once more here. Numbers are
taken as exact, also where they were rounded.

>>> guard = Guard(minimum=5)
>>> guard.admit([range(20)]), guard.admit([range(1, 20)]), guard.admit([range(10)]), guard.admit([range(10, 20)])
(True, False, True, True)
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_core.checks import at_least

_TOLERANCE = 1e-8  # of singular values; those of matrices of 0 and 1 are far larger, or 0


class Guard:
    """Remembers the people behind every release, as keyed hashes, and admits what cannot be subtracted to
    fewer than `minimum`.

    `key` makes the hashes: a secret of the site, always the same, so that a record on disk names nobody.
    """

    def __init__(self, minimum: int, *, combinations: int = 1_000, key: bytes = b"") -> None:
        at_least(2, minimum=minimum)
        at_least(1, combinations=combinations)
        self.minimum, self.combinations, self._key = minimum, combinations, key
        self.released: list[list[frozenset[str]]] = []  # the sets of each release
        self._names: dict[Hashable, str] = {}

    def admit(self, sets: Sequence[Iterable[Hashable]], *, joint: bool = False) -> bool:
        """Whether numbers about all these sets of people may leave after those before; if so, it remembers
        them.

        `joint` means that they are one table, which is safe by itself.
        """
        hashed = [each for each in dict.fromkeys(self._hashed(each) for each in sets) if each]
        if any(len(each) < self.minimum for each in hashed):
            return False
        new = [hashed] if joint else [[each] for each in hashed]
        new = [each for each in new if each and each not in self.released]
        if new and not self._safe(self.released + new):
            return False
        self.released = self.released + new
        return True

    def _hashed(self, people: Iterable[Hashable]) -> frozenset[str]:
        """The set of people's hashes; "hash times" for a person who occurs more than once."""
        times = Counter(self._names.get(p) or self._name(p) for p in people)
        return frozenset(name if k == 1 else f"{name} {k}" for name, k in times.items())

    def _name(self, person: Hashable) -> str:
        name = hmac.digest(self._key, repr(_plain(person)).encode(), hashlib.sha256).hex()[:32]
        self._names[person] = name
        return name

    def saved(self) -> dict[str, Any]:
        """The guard's memory as plain JSON values: each release's sets by number, and each person's sets."""
        sets = list(dict.fromkeys(each for release in self.released for each in release))
        place = {each: i for i, each in enumerate(sets)}
        people: dict[str, list[int]] = {}
        for i, each in enumerate(sets):
            for person in each:
                people.setdefault(person, []).append(i)
        atoms: dict[str, list[str]] = {}
        for person, places in people.items():
            atoms.setdefault(" ".join(map(str, places)), []).append(person)
        return {"releases": [[place[each] for each in release] for release in self.released], "people": atoms}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Loads a `saved` memory."""
        sets: dict[int, set[str]] = {i: set() for release in saved["releases"] for i in release}
        for places, people in saved["people"].items():
            for i in places.split():
                sets[int(i)].update(people)
        known = {i: frozenset(each) for i, each in sets.items()}
        self.released = [[known[i] for i in release] for release in saved["releases"]]

    def _safe(self, releases: list[list[frozenset[str]]]) -> bool:
        sets = list(dict.fromkeys(each for release in releases for each in release))
        matrix, sizes = _atoms(sets)
        small = sizes < self.minimum
        if not small.any():
            return True
        ways = _cancelling(matrix[:, ~small])
        left = ways @ matrix[:, small]  # [ways, small atoms] what cancels everybody else
        _, lengths, basis = np.linalg.svd(left, full_matrices=False)
        basis = basis[lengths > _TOLERANCE]  # orthonormal rows
        if not len(basis):
            return True
        # A group of at most minimum - 1 atoms can be singled out only if the squared lengths of its columns sum
        # to 1: few atoms are left to try.
        shares = (basis**2).sum(axis=0)
        able = shares + np.sort(shares)[::-1][: self.minimum - 2].sum() >= 1 - _TOLERANCE
        place = {each: i for i, each in enumerate(sets)}
        alone = [matrix[[place[each] for each in release]] for release in releases if len(release) > 1]
        tried = 0
        for chosen in _groups(sizes[small][able], self.minimum):
            group = np.flatnonzero(able)[chosen]
            tried += 1
            if tried > self.combinations:
                return False
            # A combination of the rows is 0 outside of the group just where its columns in the group have the
            # length of the whole, 1.
            turns, inside, _ = np.linalg.svd(basis[:, group], full_matrices=False)
            alike = inside > 1 - _TOLERANCE
            if not alike.any():
                continue
            derived = np.zeros((int(alike.sum()), len(sizes)))
            derived[:, small] = turns[:, alike].T @ basis
            if not any(_rank(np.concatenate([own, derived])) == _rank(own) for own in alone):
                return False
        return True


def _atoms(sets: list[frozenset[str]]) -> tuple[np.ndarray, np.ndarray]:
    """([q, atoms] how often the people of each atom are in each set, [atoms] how many people they are)."""
    signatures: dict[str, list[tuple[int, int]]] = {}
    for i, people in enumerate(sets):
        for person in people:
            name, _, times = person.partition(" ")
            signatures.setdefault(name, []).append((i, int(times or 1)))
    atoms: dict[tuple[tuple[int, int], ...], int] = {}
    for places in signatures.values():
        atoms[tuple(places)] = atoms.get(tuple(places), 0) + 1
    matrix = np.zeros((len(sets), len(atoms)))
    for j, signature in enumerate(atoms):
        matrix[[i for i, _ in signature], j] = [times for _, times in signature]
    return matrix, np.array(list(atoms.values()))


def _groups(sizes: np.ndarray, minimum: int) -> Iterable[list[int]]:
    """Every group of atoms with fewer than `minimum` people to which no other atom can be added."""
    order = np.argsort(sizes, kind="stable")

    def grow(group: list[int], people: int, start: int) -> Iterable[list[int]]:
        for k in range(start, len(order)):
            atom = int(order[k])
            if people + sizes[atom] >= minimum:
                break
            yield from grow([*group, atom], people + int(sizes[atom]), k + 1)
        if group and all(people + sizes[j] >= minimum for j in range(len(sizes)) if j not in group):
            yield group

    yield from grow([], 0, 0)


def _plain(person: Hashable) -> Hashable:
    """A NumPy number as Python's, so that 1 from an array and 1 from a list are one person."""
    return person.item() if isinstance(person, np.generic) else person


def _cancelling(matrix: np.ndarray) -> np.ndarray:
    """A basis [k, q] of the sums and differences of a matrix's rows [q, n] that give 0."""
    if not matrix.shape[1]:
        return np.eye(len(matrix))
    if matrix.shape[1] > len(matrix):  # R' has the same ways, and no more columns than rows
        matrix = np.transpose(np.linalg.qr(matrix.T, mode="r"))
    left, sizes, _ = np.linalg.svd(matrix)
    return left[:, int((sizes > _TOLERANCE).sum()) :].T


def _rank(matrix: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(matrix, tol=_TOLERANCE)) if matrix.size else 0
