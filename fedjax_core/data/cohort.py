"""A cohort, which is the clients of one round, and the interface of the samplers that draw it.

>>> as_cohort([2, 0], population=3)
Cohort(clients=array([2, 0], dtype=int32), counts=array([1, 1], dtype=int32))
"""

from typing import Any, NamedTuple, Protocol

import numpy as np


class Cohort(NamedTuple):
    """The clients of one round, each distinct one once."""

    clients: np.ndarray  # [K] int32, positions in the population
    counts: np.ndarray  # [K] int32, how often each was drawn


class Sampler(Protocol):
    """The interface of a sampler."""

    @property
    def population(self) -> int:
        """The number of clients to draw from."""

    @property
    def max_size(self) -> int:
        """The most distinct clients that a round can have, which buffers are made for."""

    def __call__(self, round: int, /) -> np.ndarray | Cohort:
        """The round's clients: positions [K] int32, or a `Cohort` where one may be drawn several times."""


def as_cohort(value: Any, population: int) -> Cohort:
    """Converts the clients of a round, an integer array or list of different positions or a `Cohort`, to a
    `Cohort`."""
    counts: Any = None
    if isinstance(value, Cohort):
        value, counts = value
    clients = np.asarray(value)
    if not clients.size and clients.ndim == 1:
        clients = clients.astype(np.int32)
    _check_clients(clients, population)
    if counts is None:
        return Cohort(clients.astype(np.int32, copy=False), np.ones(len(clients), np.int32))
    counts = np.asarray(counts)
    if counts.shape != clients.shape or (counts.size and (counts.dtype.kind not in "iu" or counts.min() < 1)):
        raise ValueError(
            f"counts must be an integer of at least 1 for each of the {len(clients)} clients, got {counts.dtype}{list(counts.shape)}"
        )
    return Cohort(clients.astype(np.int32, copy=False), counts.astype(np.int32, copy=False))


def _check_clients(clients: np.ndarray, population: int) -> None:
    if clients.dtype == np.bool_:
        raise TypeError(
            "a cohort is the positions of its clients, but got a mask of bools; use np.flatnonzero(mask)"
        )
    if clients.dtype.kind not in "iu":
        raise TypeError(
            f"a cohort is an array of integers, the clients' positions, but got {clients.dtype}; convert with .astype(np.int32)"
        )
    if clients.ndim != 1:
        raise ValueError(
            f"a cohort is one-dimensional, [K], but got shape {list(clients.shape)}; for several rounds [R, K] use run_many"
        )
    if not clients.size:
        return
    # sorted, as most cohorts are
    if int(clients[0]) >= 0 and int(clients[-1]) < population and (clients[1:] > clients[:-1]).all():
        return
    if clients.min() < 0 or clients.max() >= population:
        outside = clients[(clients < 0) | (clients >= population)][0]
        raise ValueError(
            f"the cohort names client {outside}, but the population is clients 0 to {population - 1}"
        )
    ordered = np.sort(clients)
    if (ordered[1:] == ordered[:-1]).any():
        twice = ordered[1:][ordered[1:] == ordered[:-1]][0]
        raise ValueError(
            f"the cohort names client {twice} more than once; name it once, or give Cohort(clients, counts) to count it several times, "
            "as uniform(replace=True) does"
        )
