"""Builds the host's arrays of a dispatch: who takes part, the batch of each lane and slot, and streamed
examples.

    resident    every example is on the device; a schedule names rows of the whole data
    streamed    a dispatch brings its cohorts' examples, read from memory or memory-mapped files; a schedule names rows of those

Shapes depend on how much room was reserved, not on the cohort, so that a new cohort runs the same program.
While the device computes, the host packs and reads what comes next.

>>> from fedjax_core.data.cohort import as_cohort
>>> from fedjax_core.work import TRAIN
>>> clients = Clients.from_list([{"x": np.arange(n, dtype=np.float32)} for n in (2, 3, 1)])
>>> feed = DispatchBuilder(clients, Plan(batch_size=2, epochs=1), [TRAIN], streamed=True)
>>> feed.reserve(2, lanes=1, devices=1)
>>> packed, load = feed.pack([as_cohort([0, 2], 3)], first=0, held=1)
>>> packed.streamed[TRAIN]["x"].shape, load.clients, load.steps, load.examples
((1, 1, 5), 2, 2, 3)
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core.data.batches import Plan
from fedjax_core.data.clients import Clients
from fedjax_core.data.cohort import Cohort
from fedjax_core.data.columns import Column, narrow, target_of
from fedjax_core.lanes.pack import Layout, Packed, Places, lay_out, pack, slots_bound, typical_cohorts
from fedjax_core.types import Columns
from fedjax_core.work import Work

log = logging.getLogger("fedjax_core")


class Load(NamedTuple):
    """The work in some rounds: clients, steps, examples, and places for examples."""

    clients: int
    steps: int
    examples: int  # examples in local steps, counted once for each step
    room: int  # places for examples in all lanes until the last one ends


def slots_of(plan: Plan, sizes: np.ndarray, work: Work) -> np.ndarray:
    """[N]: how many slots of a lane clients of these sizes take: their steps, or one in which they begin and
    end without any."""
    return np.maximum(plan.of(work).most_steps(sizes), sizes > 0)


class DispatchBuilder:
    """Packs rounds of `clients` who go through their data by `plan`; `kinds` are those of the algorithm's
    exchanges."""

    def __init__(self, clients: Clients, plan: Plan, kinds: Sequence[Work], *, streamed: bool) -> None:
        self.clients, self.plan, self.kinds, self.streamed = clients, plan, list(kinds), streamed
        # The most steps foreseen for each client.
        self.steps = {k: slots_of(plan, clients.sizes, k).astype(np.int32) for k in self.kinds}
        self.cohort_size, self.lanes, self.devices = 0, 1, 1
        self._columns: Columns = jax.tree_util.tree_map_with_path(Column, clients.columns) if streamed else ()
        self.capacity: dict[Work, int] = {}  # slots
        self.room: dict[Work, int] = {}  # examples on a device

    @property
    def longest(self) -> Work:
        """The kind of work that takes clients most steps."""
        return max(self.kinds, key=lambda kind: int(self.steps[kind].sum()))

    def reserve(self, cohort_size: int, *, lanes: int, devices: int) -> None:
        """Makes room for cohorts of up to this size."""
        self.cohort_size, self.lanes, self.devices = cohort_size, lanes, devices
        self.capacity = {kind: slots_bound(self.steps[kind], cohort_size, lanes) for kind in self.kinds}
        most = slots_bound(self.clients.sizes, cohort_size, devices) if self.streamed else 0
        self.room = {kind: 1 if kind.idle else most for kind in self.kinds} if self.streamed else {}

    def bytes_a_round(self) -> int:
        """Bytes of the streamed examples of one round, on one device."""
        row = sum(
            target_of(x).itemsize * int(np.prod(x.shape[1:])) for x in jax.tree.leaves(self.clients.columns)
        )
        return row * sum(self.room.values())

    def typical(self) -> tuple[Columns, np.ndarray]:
        """A batch of examples [B, ...] that somebody has, and every client's number of local steps [N]."""
        sizes = self.clients.sizes
        first = int(np.argmax(sizes > 0))
        rows = np.arange(self.plan.batch_size) % sizes[first] + self.clients.offsets[first]
        return narrow(jax.tree.map(lambda x: np.asarray(x[rows]), self.clients.columns)), self.steps[
            self.longest
        ]

    def fill(self, cohort_size: int, lanes: int) -> float:
        """The share of `lanes` lanes that a random cohort of this size fills with steps; 1 where there are
        none."""
        steps = [
            self.steps[self.longest][cohort] for cohort in typical_cohorts(len(self.clients), cohort_size)
        ]
        slots = sum(lay_out(np.zeros((0, self.plan.batch_size)), taken, lanes).slots for taken in steps)
        return sum(int(taken.sum()) for taken in steps) / (slots * lanes) if slots else 1.0

    def pack(
        self, cohorts: Sequence[Cohort], first: int, held: int, positions: Sequence[np.ndarray] | None = None
    ) -> tuple[Packed, Load]:
        """Packs rounds `first`, `first` + 1, ... of these cohorts: (arrays that hold `held` rounds, the work
        in them).

        `positions`: where each client's row of client state is, if not at the client's own position."""
        clients = [np.asarray(cohort.clients, np.int64) for cohort in cohorts]
        row_positions = clients if positions is None else positions
        nowhere = len(self.clients) if positions is None else min(len(self.clients), held * self.cohort_size)
        places = [
            self._places(w, a, cohort.counts, nowhere)
            for w, a, cohort in zip(clients, row_positions, cohorts, strict=True)
        ]
        schedules: dict[Work, Any] = {}
        streamed: dict[Work, Any] = {}
        load = Load(sum(int((self.clients.sizes[w] > 0).sum()) for w in clients), 0, 0, 0)
        for kind in self.kinds:
            layouts = [lay_out(*self._batches(kind, w, first + r), self.lanes) for r, w in enumerate(clients)]
            if self.streamed:
                local = [self._stream(kind, w, layout) for w, layout in zip(clients, layouts, strict=True)]
                layouts = [
                    layout._replace(rows=rows) for layout, (rows, _) in zip(layouts, local, strict=True)
                ]
                room = self._grown(
                    self.room, kind, max(int(owners[1].max(initial=1)) for _, owners in local), "examples"
                )
                streamed[kind] = self._read(
                    [w[:0] for w in clients] if kind.idle else clients,
                    [owners[0] for _, owners in local],
                    room,
                    held,
                )
            capacity = self._grown(
                self.capacity, kind, max(layout.slots for layout in layouts), "slots of work"
            )
            packed = [
                pack(layout, self.cohort_size, self.lanes, self.devices, capacity) for layout in layouts
            ]
            schedules[kind] = jax.tree.map(lambda *x: _stack(x, held), *packed)
            if not kind.idle:
                load = load._replace(
                    steps=load.steps + sum(len(layout.rows) for layout in layouts),
                    examples=load.examples + sum(int((layout.rows >= 0).sum()) for layout in layouts),
                    room=load.room
                    + sum(layout.slots for layout in layouts) * self.lanes * self.plan.batch_size,
                )
        return Packed(jax.tree.map(lambda *x: _stack(x, held), *places), schedules, streamed), load

    def _grown(self, room: dict[Work, int], kind: Work, needed: int, what: str) -> int:
        """The room for this kind of work, made larger where `needed` does not fit."""
        if needed > room[kind]:
            log.warning(
                "a cohort needs %d %s, more than the %d foreseen: compiling again", needed, what, room[kind]
            )
            room[kind] = int(needed * 1.25)
        return room[kind]

    def _batches(self, kind: Work, clients: np.ndarray, round: int) -> tuple[np.ndarray, np.ndarray]:
        if kind.idle:  # one slot, of padding alone
            starts, sizes = self.clients.offsets[clients], self.clients.sizes[clients]
            padding = np.repeat(~starts[sizes > 0, None], self.plan.batch_size, axis=1)
            return padding.astype(np.int32), (sizes > 0).astype(np.int64)
        return self.plan.of(kind).batches(clients, self.clients.offsets, self.clients.addresses, round)

    def _places(self, clients: np.ndarray, rows: np.ndarray, counts: np.ndarray, nowhere: int) -> Places:
        short = self.cohort_size - len(clients)
        return Places(
            position=np.pad(rows, (0, short), constant_values=nowhere).astype(np.int32),
            address=np.pad(self.clients.addresses[clients], ((0, short), (0, 0))),
            examples=np.pad(self.clients.sizes[clients], (0, short)).astype(np.float32),
            times=np.pad(counts, (0, short)).astype(np.float32),
            client=np.pad(clients, (0, short), constant_values=len(self.clients)).astype(np.int32),
        )

    def _stream(
        self, kind: Work, clients: np.ndarray, layout: Layout
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """(the rows counted within the device's own examples, (device and first place there of each client
        [K, 2], examples a device))."""
        sizes = np.where((layout.steps > 0) & (not kind.idle), self.clients.sizes[clients], 0)
        device = layout.lane // (self.lanes // self.devices)
        begin, used = np.zeros(len(clients), np.int64), np.zeros(self.devices, np.int64)
        for d in range(self.devices):
            on_device = device == d
            begin[on_device] = np.cumsum(sizes[on_device]) - sizes[on_device]
            used[d] = sizes[on_device].sum()
        shift = np.repeat(begin - self.clients.offsets[clients], layout.steps).astype(np.int32)[:, None]
        rows = np.where(layout.rows >= 0, layout.rows + shift, layout.rows - shift)
        return rows, (np.stack([device, begin], axis=1), used)

    def _read(
        self, cohorts: Sequence[np.ndarray], owners: Sequence[np.ndarray], room: int, held: int
    ) -> Columns:
        """The cohorts' examples, leaves [held, devices, room, ...]."""
        offsets = self.clients.offsets

        def read(column: Column) -> np.ndarray:
            out = np.zeros((held, self.devices, room, *column.shape[1:]), column.target)
            for r, (clients, owner) in enumerate(zip(cohorts, owners, strict=True)):
                order = np.argsort(clients)  # from the front of a file to its end
                starts, ends = offsets[clients[order]].tolist(), offsets[clients[order] + 1].tolist()
                for (device, begin), start, end in zip(owner[order].tolist(), starts, ends, strict=True):
                    if end > start:
                        column.read(start, end, out[r, device, begin : begin + end - start])
            return out

        return jax.tree.map(read, self._columns)


def _stack(rounds: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The rounds' arrays one above another, with nothing where there are fewer than `count`."""
    stacked = np.zeros((count, *rounds[0].shape), rounds[0].dtype)
    for r, array in enumerate(rounds):
        stacked[r] = array
    return stacked
