"""Packs clients of unequal work in lanes, so that every lane does nearly the same number of steps.

Clients go longest first onto the least loaded lane, which ends within one client's work of the best possible
(Graham, 1969: at most 4/3 of it). Only the tail of a lane and the last batch of a client are padding; `fill`
is the share of the slots that is work.

>>> import numpy as np
>>> lane, start = assign(np.array([3, 1, 2]), lanes=2)
>>> lane.tolist(), start.tolist()
([0, 1, 1], [0, 2, 0])
"""

import heapq
from typing import Any, NamedTuple

import numpy as np

from fedjax_core.types import Columns
from fedjax_core.work import Work


class Schedule(NamedTuple):
    """The client and batch that each lane works on at each slot: arrays of numpy or JAX; rounds are stacked
    in front."""

    rows: Any  # [S, L, B] int32: the example at each place, its complement for padding
    client: Any  # [S, L] int32: place in the cohort, K where the lane idles
    step: Any  # [S, L] int32: which of that client's local steps
    slots: Any  # [L] int32: slots that the lane's device runs, the same for all lanes of a device


class Places(NamedTuple):
    """A cohort as arrays: K places, the last of which may be empty (client N, drawn 0 times)."""

    position: Any  # [K] int32: the row of the client's state
    address: Any  # [K, 2] uint32
    examples: Any  # [K] float32
    times: Any  # [K] float32: how often the client was drawn; its report counts that often
    client: Any  # [K] int32, in the population; same as `position`, unless client state is stored by cohorts


class Packed(NamedTuple):
    """R rounds as arrays, leaves [R, ...]."""

    places: Places
    schedules: dict[Work, Schedule]  # one a kind of work
    # one a kind of work, leaves [R, devices, E, ...]; empty where the data is resident
    streamed: dict[Work, Columns]


def assign(steps: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Assigns clients with these numbers of steps [K] to lanes: (lane [K], first slot [K])."""
    lane, start = np.zeros(len(steps), np.int64), np.zeros(len(steps), np.int64)
    # Longest clients first: the last lane to finish then waits at most one client's work.
    queue = [(0, i) for i in range(lanes)]
    for k in np.argsort(-steps, kind="stable").tolist():
        load, i = queue[0]
        lane[k], start[k] = i, load
        heapq.heapreplace(queue, (load + int(steps[k]), i))
    return lane, start


class Layout(NamedTuple):
    """Batches, client after client, and the lane and first slot of each client."""

    rows: np.ndarray  # [T, B] int32
    steps: np.ndarray  # [K] int64, sum T
    lane: np.ndarray  # [K] int64
    start: np.ndarray  # [K] int64: the client's first slot

    @property
    def slots(self) -> int:
        """The number of slots of the fullest lane."""
        return int((self.start + self.steps).max(initial=0))


def lay_out(rows: np.ndarray, steps: np.ndarray, lanes: int) -> Layout:
    """Lays out the batches `rows` [T, B] of clients with these numbers of steps in lanes."""
    return Layout(rows, steps, *assign(steps, lanes))


def pack(layout: Layout, cohort: int, lanes: int, devices: int, capacity: int) -> Schedule:
    """The layout as a schedule with room for `capacity` slots, at least `layout.slots`; `cohort` is the K
    that marks an idle lane."""
    rows, steps, lane, start = layout
    if layout.slots > capacity:
        raise ValueError(f"{layout.slots} slots do not fit a capacity of {capacity}")
    owner = np.repeat(np.arange(len(steps)), steps)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(steps) - steps, steps)
    slot, lane_of = start[owner] + step, lane[owner]
    schedule = Schedule(
        rows=np.full((capacity, lanes, rows.shape[1]), -1, np.int32),
        client=np.full((capacity, lanes), cohort, np.int32),
        step=np.zeros((capacity, lanes), np.int32),
        slots=np.zeros(lanes, np.int32),
    )
    schedule.rows[slot, lane_of], schedule.client[slot, lane_of], schedule.step[slot, lane_of] = (
        rows,
        owner,
        step,
    )
    ends = np.zeros(lanes, np.int64)
    np.maximum.at(ends, lane, start + steps)
    schedule.slots[:] = ends.reshape(devices, -1).max(axis=1).repeat(lanes // devices)
    return schedule


def slots_bound(steps: np.ndarray, cohort: int, lanes: int) -> int:
    """The number of slots that holds any cohort of this size from clients with these numbers of steps [N],
    all but surely.

    Longest-first packing ends by total / L + (1 - 1 / L) max. The total is at most that of the K largest
    clients; where that is far above what cohorts have in practice, 8 standard deviations above the mean of a
    random cohort are taken."""
    if not len(steps) or not cohort:
        return 1
    largest = np.sort(steps)[::-1][:cohort].sum()
    likely = cohort * steps.mean() + 8 * steps.std() * np.sqrt(cohort)
    return max(1, int(np.ceil(min(largest, likely) / lanes + (1 - 1 / lanes) * steps.max())))


def typical_cohorts(population: int, cohort: int, times: int = 3) -> list[np.ndarray]:
    """A few cohorts drawn at random, always the same ones."""
    rng = np.random.default_rng(0)
    return [rng.choice(population, cohort, replace=False) for _ in range(times)]
