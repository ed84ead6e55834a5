"""Splits a cohort into shares by work, and assigns the shares to workers by speed.

    clients, longest first, onto the lightest share            by local steps alone: the same cohort is always split alike
    shares, longest first, to the worker that finishes first   by measured speed: it decides who works, and never the result

The number of shares decides the answer's last bits, as the order of a sum does; which worker does a share
decides nothing.

>>> split_cohort(np.array([5, 1, 0, 4]), shares=2)
[array([0]), array([1, 3])]
>>> assign_to_workers([40, 40, 40], speeds=[2.0, 1.0])
[0, 0, 1]
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_core.lanes.pack import assign, slots_bound
from fedjax_core.work import Work


class Room(NamedTuple):
    """Sizes that any share of any cohort fits in, so that every share runs the same program."""

    cohort: int  # K: places in the whole cohort
    lanes: int
    slots: dict[Work, int]  # one a kind of work
    examples: dict[Work, int]  # one a kind of work, where examples are streamed


def split_cohort(load: np.ndarray, shares: int) -> list[np.ndarray]:
    """Splits a cohort by the work of each client [K], and returns the places of each share's clients. Clients
    without work are in no share."""
    places = np.flatnonzero(load > 0)
    share, _ = assign(load[places], shares)
    return [places[share == s] for s in range(shares)]


def assign_to_workers(
    loads: Sequence[float], speeds: Sequence[float], busy: Sequence[float] | None = None
) -> list[int]:
    """Assigns each share, longest first, to the worker that would finish it first.

    `speeds` is work a second of each worker, and `busy` how much work each has already. Returns the worker of
    each share."""
    left = list(busy) if busy is not None else [0.0] * len(speeds)
    chosen = [0] * len(loads)
    for s in sorted(range(len(loads)), key=lambda s: -loads[s]):
        chosen[s] = min(range(len(speeds)), key=lambda w: (left[w] + loads[s]) / speeds[w])
        left[chosen[s]] += loads[s]
    return chosen


def room_for(
    cohort: int,
    shares: int,
    lanes: int,
    steps: Mapping[Work, np.ndarray],
    load: np.ndarray,
    sizes: np.ndarray,
) -> Room:
    """Room for a share of any cohort of this size; `steps` [N] a kind of work, `load` [N] all the work of a
    client in a round."""
    most = slots_bound(load, cohort, shares)

    def bound(what: np.ndarray) -> int:
        """The most of `what` [N] that a share can hold: no more than the cohort's, and no more than goes with
        its load."""
        a_load = float((what / np.maximum(load, 1)).max(initial=0))
        return min(slots_bound(what, cohort, 1), max(1, int(np.ceil(a_load * most))))

    lanes = min(lanes, -(-cohort // shares))
    slots = {
        kind: int(np.ceil(bound(each) / lanes + (1 - 1 / lanes) * each.max(initial=0)))
        for kind, each in steps.items()
    }
    return Room(cohort, lanes, slots, dict.fromkeys(steps, bound(sizes)))
