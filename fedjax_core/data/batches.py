"""Chooses the examples of each client's batches: on the host, by address, and the same for every backend.

A client's pass over its data is a permutation drawn from (seed, client, pass): with `epochs=E` the passes of
round r are numbered (r, 0), ..., (r, E-1); with `steps=T` a client's epoch continues across rounds, so round
r takes steps r*T to (r+1)*T of an endless walk whose pass p has its own permutation. Either may be a function
of the round and the clients, so that some do less than others (stragglers) or all do as much as a coin says.
The last batch of a pass is short and kept. `order` gives the batches outright. Nothing depends on who else
takes part, so any round of any client can be recomputed alone.

A batch is a row of `rows` [T, B]: the example's position in the flat columns, or for padding the bitwise
complement (negative) of a position in the same client, so that padding reads the client's own data and a mask
is a sign.

>>> import numpy as np
>>> plan = Plan(batch_size=2, epochs=1)
>>> clients = np.array([0, 1]); offsets = np.array([0, 3, 4]); addresses = np.array([[0, 0], [0, 1]], np.uint32)
>>> rows, steps = plan.batches(clients, offsets, addresses, round=0)
>>> steps.tolist(), sorted(rows[rows >= 0].tolist()), (rows < 0).sum()
([2, 1], [0, 1, 2, 3], np.int64(2))
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fedjax_core.checks import at_least, takes
from fedjax_core.work import TRAIN, Work

Order = np.ndarray | Callable[[int, int], Any]
Amount = int | Callable[[int, np.ndarray], Any]
"""A number, or a function (round, positions [K]) -> the numbers of these clients in this round, [K] or one
for all."""

_FORESEEN = 16  # rounds that are looked at to know how much a function asks for


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan by which clients go through their data: `epochs` whole passes a round, or `steps` batches a
    round; by `order` where given.

    `order` is an int array [N, T, B] of examples within each client: round r takes batches r*steps to
    (r+1)*steps, or all of them without `steps`; or a function (round, client) -> [T, B] with T = `steps`,
    which is then needed. -1 is an unused place; a batch has one example at least, unless the function has
    `may_be_empty`. A client without examples takes no steps.

    Exchanges whose work is not the run's have a plan of their own, `of(work)`, without `order`.

    `epochs` and `steps` may be functions (round, positions [K]) -> whole numbers of at least 1, [K], that
    depend on nothing else, so that all machines get the same. With such `steps` each round begins a new pass,
    as the steps of earlier rounds are not counted.
    """

    batch_size: int
    epochs: Amount | None = None
    steps: Amount | None = None
    seed: int = 0
    order: Order | None = None
    work: Work = TRAIN
    """The work of the exchanges that this plan is for; see `of`."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)
        amounts = {"epochs": self.epochs, "steps": None if self.work.idle else self.steps}
        at_least(
            1, **{name: value for name, value in amounts.items() if value is not None and not callable(value)}
        )
        for name, value in amounts.items():
            if callable(value):
                takes(name, value, "round", "positions")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"give epochs or steps, not both (got epochs={self.epochs}, steps={self.steps})")
        if self.order is None and self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)
        if callable(self.steps) and self.order is not None and not callable(self.order):
            raise ValueError(
                "steps= that is a function needs order= that is one: where a round begins in an array would not be known"
            )
        if self.order is not None and not callable(self.order):
            order = np.asarray(self.order)
            if (
                order.ndim != 3
                or order.shape[2] != self.batch_size
                or not np.issubdtype(order.dtype, np.integer)
            ):
                raise ValueError(
                    f"order must be an integer array [clients, updates, batch_size={self.batch_size}], got {order.dtype}{list(order.shape)}"
                )

    def __str__(self) -> str:
        amount = "steps" if self.steps is not None else "epochs"
        value = getattr(self, amount)
        work = (
            "order=..."
            if self.steps is None and self.order is not None
            else f"{amount}={'...' if callable(value) else value}"
        )
        return f"batch_size={self.batch_size}, {work}, seed={self.seed}"

    def of(self, work: Work) -> "Plan":
        """The plan of exchanges with this work: the run's, except for what the work says itself."""
        if work == TRAIN:
            return self
        if work not in self._others:
            own = work.epochs is not None or work.steps is not None
            epochs, steps = (work.epochs, work.steps) if own else (self.epochs, self.steps)
            self._others[work] = replace(self, epochs=epochs, steps=steps, order=None, work=work)
        return self._others[work]

    @cached_property
    def _others(self) -> "dict[Work, Plan]":
        """The plans of exchanges with other work."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name, for a run's configuration."""
        return {
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "steps": self.steps,
            "seed": self.seed,
            "order": self.order,
        }

    @property
    def changes(self) -> bool:
        """Whether a client's number of steps depends on the round, or on more than its number of examples."""
        return callable(self.epochs) or callable(self.steps)

    def of_client(self, position: int) -> "Plan":
        """The plan of the client at this position alone, for a population of one."""

        def alone(amount: Amount | None) -> Amount | None:
            return (lambda round, _: amount(round, np.array([position]))) if callable(amount) else amount

        return replace(self, epochs=alone(self.epochs), steps=alone(self.steps))

    def most_steps(self, sizes: np.ndarray) -> np.ndarray:
        """[N] local steps of all clients in a round; where these change, the most of the first rounds: later
        ones may have more."""
        rounds = range(_FORESEEN if self.changes else 1)
        return np.max([self.steps_of(sizes, round) for round in rounds], axis=0)

    def steps_of(self, sizes: np.ndarray, round: int = 0, clients: np.ndarray | None = None) -> np.ndarray:
        """The local steps of clients of these sizes in a round, [K] int64; 0 for one without examples.

        `clients` are their positions [K]; without, they are all there are.
        """
        clients = np.arange(len(sizes)) if clients is None else clients
        if self.work.idle:
            return np.zeros(len(sizes), np.int64)
        per_pass = -(-sizes // self.batch_size)
        if self.order is not None:
            known = (
                np.asarray(self.order).shape[1]
                if self.steps is None and not callable(self.order)
                else self.steps
            )
            if known is None:
                raise ValueError(
                    "an order function needs steps=, the number of batches that it gives a round"
                )
            return np.where(sizes > 0, _amount("steps", known, round, clients), 0)
        if self.steps is not None:
            return np.where(sizes > 0, _amount("steps", self.steps, round, clients), 0)
        return per_pass * _amount("epochs", self.epochs or 1, round, clients)

    def batches(
        self, clients: np.ndarray, offsets: np.ndarray, addresses: np.ndarray, round: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The batches of these clients (positions [K]) in a round, client after client: (rows [T, B] int32,
        steps [K] with sum T)."""
        starts, sizes = offsets[clients], offsets[clients + 1] - offsets[clients]
        steps = self.steps_of(sizes, round, clients)
        walks = self.steps is not None and not callable(self.steps)  # rounds go on where the one before ended
        if self.order is not None:
            return self._ordered(clients, starts, sizes, steps, round), steps
        if self.epochs == 1 and not self.work.shuffled:
            return in_order(clients, offsets, self.batch_size)
        whole = np.maximum(-(-sizes // self.batch_size), 1)  # batches in a pass
        first = round * steps if walks else np.zeros_like(steps)  # where in its walk each client is
        passes = np.where(steps > 0, -(-(first + steps) // whole) - first // whole, 0)
        owner = np.repeat(np.arange(len(clients)), passes)  # the client of each pass
        number = first[owner] // whole[owner] + _within(passes)
        high, low = addresses[clients][owner].astype(np.int64).T
        words = _address(self.seed, -1 if walks else round, high, low, number)
        of, place, local = _shuffle(words, sizes[owner]) if self.work.shuffled else _as_stored(sizes[owner])
        client = owner[of]
        batch = number[of] * whole[client] + place // self.batch_size - first[client]
        if self.steps is not None:  # a client may enter or leave a pass midway
            taken = (batch >= 0) & (batch < steps[client])
            client, batch, place, local = client[taken], batch[taken], place[taken], local[taken]
        rows = np.repeat(~starts, steps)[:, None].repeat(self.batch_size, axis=1).astype(np.int32)
        rows[(np.cumsum(steps) - steps)[client] + batch, place % self.batch_size] = starts[client] + local
        return rows, steps

    def _ordered(
        self, clients: np.ndarray, starts: np.ndarray, sizes: np.ndarray, steps: np.ndarray, round: int
    ) -> np.ndarray:
        batches = []
        for client, start, size, count in zip(clients, starts, sizes, steps, strict=True):
            if not count:
                continue
            local = self._order_of(round, int(client), int(count))
            empty = (local < 0).all(axis=1)
            if (local >= size).any() or (empty.any() and not getattr(self.order, "may_be_empty", False)):
                raise ValueError(
                    f"order for client {int(client)} in round {round} must name examples 0 to {size - 1}, at least one a batch "
                    f"(-1 for an unused place); got values from {local.min()} to {local.max()}"
                )
            # padding reads an example of the same batch, where there is one
            own = np.where(empty, 0, local.max(axis=1))[:, None]
            batches.append(np.where(local >= 0, start + local, ~(start + own)).astype(np.int32))
        return np.concatenate(batches) if batches else np.zeros((0, self.batch_size), np.int32)

    def _order_of(self, round: int, client: int, count: int) -> np.ndarray:
        if callable(self.order):
            local = np.asarray(self.order(round, client))
        else:
            order = np.asarray(self.order)
            begin = round * count if self.steps is not None else 0
            if client >= len(order) or begin + count > order.shape[1]:
                raise ValueError(
                    f"order holds {order.shape[1]} batches for {len(order)} clients; round {round} of client {client} needs {begin + count}"
                )
            local = order[client, begin : begin + count]
        if local.shape != (count, self.batch_size):
            raise ValueError(
                f"order for client {client} in round {round} must be [{count}, {self.batch_size}], got {list(local.shape)}"
            )
        return local


def _amount(name: str, amount: Amount, round: int, clients: np.ndarray) -> np.ndarray:
    """The epochs or steps of each of these clients in a round, [K] int64; raises where a function gives
    something else."""
    amounts = np.asarray(amount(round, clients) if callable(amount) else amount)
    if (
        amounts.shape not in ((), clients.shape)
        or not np.issubdtype(amounts.dtype, np.integer)
        or (amounts < 1).any()
    ):
        raise ValueError(
            f"{name}= gave {amounts.dtype}{list(amounts.shape)} {amounts.tolist()} for {len(clients)} clients in round {round}: it needs "
            "a whole number of at least 1 for each, or one for all. Leave out of the cohort who is to do nothing"
        )
    return np.broadcast_to(amounts, clients.shape).astype(np.int64)


def in_order(clients: np.ndarray, offsets: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every example of these clients once, as stored: (rows [T, B] int32, steps [K])."""
    starts, sizes = offsets[clients], offsets[clients + 1] - offsets[clients]
    steps = -(-sizes // batch_size)
    owner = np.repeat(np.arange(len(clients)), steps)
    place = _within(steps)[:, None] * batch_size + np.arange(batch_size)
    start = starts[owner][:, None]
    return np.where(place < sizes[owner][:, None], start + place, ~start).astype(np.int32), steps


def _within(counts: np.ndarray) -> np.ndarray:
    """0, 1, ..., count - 1 for each count, one after another."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _shuffle(words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A permutation for each word, of 0 to its length - 1, one after another: (which permutation, place,
    value at that place)."""
    of, place = np.repeat(np.arange(len(lengths)), lengths), _within(lengths)
    return of, place, _sort_within(of, _draws(words, of, place), place)


def _as_stored(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Like `_shuffle`, with permutations that leave everything in its place."""
    place = _within(lengths)
    return np.repeat(np.arange(len(lengths)), lengths), place, place


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every bit of the input moves every
    bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _address(*parts: Any) -> np.ndarray:
    """One 64-bit word for an address of several parts, which broadcast."""
    word = np.zeros(1, np.uint64)
    for part in parts:
        word = _mix((word ^ np.asarray(part).astype(np.int64).astype(np.uint64)) * np.uint64(3) + _GOLDEN)
    return word


def _draws(words: np.ndarray, of: np.ndarray, place: np.ndarray) -> np.ndarray:
    """32 random bits for each place of each stream, as uint64: splitmix64 started at the stream's word."""
    return _mix(words[of] + (place.astype(np.uint64) + np.uint64(1)) * _GOLDEN) >> np.uint64(32)


def _sort_within(of: np.ndarray, draws: np.ndarray, place: np.ndarray) -> np.ndarray:
    """`place` reordered inside each group `of` (ascending) by its draw, ties by place."""
    if not len(of):
        return place
    place_bits = int(place.max()).bit_length()
    if int(of[-1]).bit_length() + place_bits > 32:
        return place[np.lexsort((place, draws, of))]
    # One word holds group, draw and place, so that a plain sort does it: 3 times faster than argsort for 60,000
    # examples.
    low = np.uint64(place_bits)
    word = (of.astype(np.uint64) << (np.uint64(32) + low)) | (draws << low) | place.astype(np.uint64)
    word.sort()
    return (word & np.uint64((1 << place_bits) - 1)).astype(np.int64)
