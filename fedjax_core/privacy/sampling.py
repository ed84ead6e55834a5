"""Samplers with a rate for the accountant and a largest cohort for the buffers.

>>> capped(1000, rate=0.05, cap=60)(3).size <= 60, set((turns(1000, rate=0.05, cap=60, bands=4)(3) % 4).tolist())
(True, {3})
"""

import math
from dataclasses import dataclass

import numpy as np

from fedjax_core.data import host_random
from fedjax_core.data.cohorts import poisson


@dataclass(frozen=True)
class capped:
    """Draws each client by itself with probability `rate`; of more than `cap`, a random `cap` are kept.

    Somebody who knows `seed` knows who takes part: an epsilon that assumes secret sampling does not protect
    from them."""

    population: int
    rate: float
    cap: int
    seed: int = 0

    def __post_init__(self) -> None:
        poisson(self.population, self.rate, self.seed)
        if not 1 <= self.cap <= self.population:
            raise ValueError(f"cap must be from 1 to the population, {self.population}, got {self.cap}")

    @property
    def max_size(self) -> int:
        return self.cap

    def __call__(self, round: int) -> np.ndarray:
        rng = host_random.generator(host_random.COHORT, self.seed, round)
        size = min(int(rng.binomial(self.population, self.rate)), self.cap)
        return np.sort(rng.choice(self.population, size, replace=False, shuffle=False)).astype(np.int32)


@dataclass(frozen=True)
class turns:
    """Draws as `capped` does from clients that take turns: in round r those whose position is r modulo
    `bands`, each with probability `rate`.

    So two rounds of one client are at least `bands` rounds apart, as noise shared by `bands` rounds needs
    it."""

    population: int
    rate: float
    cap: int
    bands: int
    seed: int = 0

    def __post_init__(self) -> None:
        poisson(self.population, self.rate, self.seed)
        if not 1 <= self.bands <= self.population:
            raise ValueError(f"bands must be from 1 to the population, {self.population}, got {self.bands}")
        if self.cap < 1:
            raise ValueError(f"cap must be at least 1, got {self.cap}")

    @property
    def max_size(self) -> int:
        return min(self.cap, -(-self.population // self.bands))

    def __call__(self, round: int) -> np.ndarray:
        rng = host_random.generator(host_random.COHORT, self.seed, round)
        group = len(range(round % self.bands, self.population, self.bands))
        size = min(int(rng.binomial(group, self.rate)), self.max_size)
        chosen = np.sort(rng.choice(group, size, replace=False, shuffle=False)).astype(np.int32)
        return (chosen * self.bands + round % self.bands).astype(np.int32)


@dataclass(frozen=True)
class batches:
    """Poisson-sampled batches, an `order` for simulators: each example by itself with probability `size` / n,
    at most `cap`.

    So a batch of a client with n examples has about `size`, whatever n is, and may be empty. Its shape is
    always `cap`. A client of fewer examples than that takes all of them each time. Somebody who knows `seed`
    knows the batches: an epsilon that assumes secret sampling does not protect from them.

    >>> order = batches(sizes=(100, 5), size=8, cap=30, steps=2)
    >>> order(0, 0).shape, (order(0, 1) >= 0).sum(axis=1).tolist()
    ((2, 30), [5, 5])
    """

    sizes: tuple[int, ...]
    """The number of examples of each client."""
    size: int
    cap: int
    steps: int
    seed: int = 0
    may_be_empty = True

    def __call__(self, round: int, client: int) -> np.ndarray:
        n = self.sizes[client]
        rng = host_random.generator(host_random.BATCH, self.seed, (round << 32) | client)
        rows = np.full((self.steps, self.cap), -1, np.int64)
        for row, count in zip(
            rows, np.minimum(rng.binomial(n, min(1.0, self.size / n), self.steps), self.cap), strict=True
        ):
            row[:count] = rng.choice(n, count, replace=False, shuffle=False)
        return rows


def headroom(population: int, rate: float) -> int:
    """A cap that cohorts exceed with a probability below 1.3e-14: at least 5 square roots of the mean above
    the mean."""
    mean = population * rate
    return min(population, max(poisson(population, rate).max_size, math.ceil(mean + 5 * math.sqrt(mean))))
