"""Packing: clients of unequal work are queued in lanes so that every lane does nearly the same number of steps.

Longest first onto the least loaded lane, which ends within one client's work of the best possible (Graham, 1969: at most 4/3 of it).
What is padding is only the tail of a lane and the last batch of a client; `fill` says how much of the slots is work.

>>> import numpy as np
>>> lane, start = assign(np.array([3, 1, 2]), lanes=2)
>>> lane.tolist(), start.tolist()
([0, 1, 1], [0, 2, 0])
"""

import heapq
from typing import NamedTuple

import numpy as np


class Schedule(NamedTuple):
    """Which batch of which client each lane works on at each slot; R rounds are stacked in front where there are several."""

    rows: np.ndarray  # [S, L, B] int32: the example at each place, its complement for padding
    client: np.ndarray  # [S, L] int32: place in the cohort, K where the lane idles
    step: np.ndarray  # [S, L] int32: which of that client's local steps
    slots: np.ndarray  # [L] int32: slots that the lane's device works through, the same for all lanes of a device


def assign(steps: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """For clients of these numbers of steps [K]: (lane [K], first slot [K])."""
    lane, start = np.zeros(len(steps), np.int64), np.zeros(len(steps), np.int64)
    # Longest clients first: the last lane to finish then waits at most one client's work.
    queue = [(0, i) for i in range(lanes)]
    for k in np.argsort(-steps, kind="stable").tolist():
        load, i = queue[0]
        lane[k], start[k] = i, load
        heapq.heapreplace(queue, (load + int(steps[k]), i))
    return lane, start


def pack(rows: np.ndarray, steps: np.ndarray, cohort: int, lanes: int, devices: int, capacity: int) -> Schedule:
    """The schedule of batches `rows` [T, B], given client after client, `steps[k]` for client k.

    `capacity` slots are laid out (at least what `slots_needed` says); `cohort` is the K that marks an idle lane.
    """
    lane, start = assign(steps, lanes)
    owner = np.repeat(np.arange(len(steps)), steps)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(steps) - steps, steps)
    slot, at = start[owner] + step, lane[owner]
    used = int(slot.max(initial=-1)) + 1
    schedule = Schedule(
        rows=np.full((capacity, lanes, rows.shape[1]), -1, np.int32),
        client=np.full((capacity, lanes), cohort, np.int32),
        step=np.zeros((capacity, lanes), np.int32),
        slots=np.zeros(lanes, np.int32),
    )
    if used > capacity:
        raise ValueError(f"{used} slots do not fit a capacity of {capacity}")
    schedule.rows[slot, at], schedule.client[slot, at], schedule.step[slot, at] = rows, owner, step
    ends = np.zeros(lanes, np.int64)
    np.maximum.at(ends, lane, start + steps)
    schedule.slots[:] = ends.reshape(devices, -1).max(axis=1).repeat(lanes // devices)
    return schedule


def slots_needed(steps: np.ndarray, lanes: int) -> int:
    """How many slots the fullest lane takes."""
    lane, start = assign(steps, lanes)
    return int((start + steps).max(initial=0))


def slots_bound(steps: np.ndarray, cohort: int, lanes: int) -> int:
    """Slots that hold any cohort of this size drawn from clients with these numbers of steps [N], all but surely.

    Longest-first packing ends by total / L + max. The total is at most that of the K largest clients; where that would be far
    above what cohorts have in practice, it is taken as 8 standard deviations above the mean of a random cohort.
    """
    if not len(steps) or not cohort:
        return 1
    largest = np.sort(steps)[::-1][:cohort].sum()
    likely = cohort * steps.mean() + 8 * steps.std() * np.sqrt(cohort)
    return max(1, int(min(largest, likely) / lanes) + int(steps.max()))
