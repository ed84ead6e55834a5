"""Samplers of cohorts: `sampler(round)` gives the positions of the clients that take part in a round.

Each draw is addressed by (seed, round), so any round can be recomputed alone, after a crash or on another
machine. Samplers print as they are written and compare by their settings; an accountant reads the rate from
the sampler itself. cohort.py has `Cohort` itself, choice.py a sampler that looks at the model first.

>>> sampler = uniform(1000, size=4, seed=0)
>>> sampler
uniform(population=1000, size=4, seed=0, replace=False)
>>> sampler(7).tolist() == uniform(1000, 4)(7).tolist(), sampler(7).tolist() == sampler(8).tolist()
(True, False)
>>> poisson(1000, rate=0.01).max_size
49
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedjax_core.checks import at_least
from fedjax_core.data import host_random
from fedjax_core.data.choice import Chooser as Chooser
from fedjax_core.data.choice import Score as Score
from fedjax_core.data.choice import power_of_choice as power_of_choice
from fedjax_core.data.cohort import Cohort as Cohort
from fedjax_core.data.cohort import Sampler as Sampler
from fedjax_core.data.cohort import as_cohort as as_cohort


# The samplers are classes in lower case, so that what is printed is what was written.
@dataclass(frozen=True)
class uniform:
    """`size` clients, every set of so many equally likely; sorted.

    With `replace=True` each of `size` draws is from the whole population: the round is a `Cohort` with
    counts."""

    population: int
    size: int
    seed: int = 0
    replace: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_population(self.population, self.seed)
        at_least(1, size=self.size)
        if self.size > self.population and not self.replace:
            raise ValueError(
                f"cannot draw {self.size} different clients from {self.population}; use size <= {self.population}, "
                "or replace=True to draw some several times"
            )

    @property
    def max_size(self) -> int:
        return min(self.size, self.population)

    def __call__(self, round: int) -> np.ndarray | Cohort:
        # 60 microseconds for 1000 of 1,000,000 clients on one x86 core: the population is never listed.
        rng = _generator(self.seed, round)
        if self.replace:
            clients, counts = np.unique(rng.integers(self.population, size=self.size), return_counts=True)
            return Cohort(clients.astype(np.int32), counts.astype(np.int32))
        return _distinct(rng, self.population, self.size)


@dataclass(frozen=True)
class poisson:
    """Each client by itself with probability `rate`; the size varies and may be 0. What privacy amplification
    by sampling assumes.

    A round of an empty cohort is an empty round, with any backend: the model and all else that the server
    keeps, such as its optimiser's momentum, stay as they are, and only the number of the round goes on. A
    stage that adds noise to the sum adds it then, too."""

    population: int
    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check_population(self.population, self.seed)
        if not 0 < self.rate <= 1:
            raise ValueError(
                f"rate must be above 0 and at most 1, got {self.rate!r}; it is each client's probability of taking part: size / population"
            )

    @property
    def max_size(self) -> int:
        """Mean + 8 standard deviations and a little for the skew of rare draws, by Bernstein's inequality:
        exceeded with p < 1.3e-14."""
        mean = self.population * self.rate
        return _most(mean, mean * (1 - self.rate), self.population)

    def __call__(self, round: int) -> np.ndarray:
        # How many first, then which: the same distribution as a coin a client, without tossing a million of them.
        rng = _generator(self.seed, round)
        return _distinct(rng, self.population, int(rng.binomial(self.population, self.rate)))


@dataclass(frozen=True)
class weighted:
    """`size` different clients, drawn one after another with probability proportional to weight among those
    left; sorted.

    The clients with the smallest Exponential(1) / weight: Efraimidis and Spirakis, "Weighted random sampling
    with a reservoir", Information Processing Letters 2006. A client of weight 0 is never drawn.
    """

    weights: np.ndarray = field(repr=False, compare=False)  # [N] float64
    size: int
    seed: int = 0
    population: int = field(init=False)
    digest: str = field(init=False)  # of the weights, by which samplers compare

    def __post_init__(self) -> None:
        weights = np.array(self.weights, np.float64)
        _check_weights(weights, self.size)
        _check_population(len(weights), self.seed)
        weights.flags.writeable = False
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "population", len(weights))
        object.__setattr__(self, "digest", hashlib.sha256(weights.tobytes()).hexdigest()[:16])

    @property
    def max_size(self) -> int:
        return self.size

    def __call__(self, round: int) -> np.ndarray:
        waits = _generator(self.seed, round).standard_exponential(self.population)
        with np.errstate(divide="ignore"):
            first = np.argpartition(waits / self.weights, self.size - 1)[: self.size]
        return np.sort(first).astype(np.int32)


@dataclass(frozen=True)
class independent:
    """Each client by itself with a probability of its own, `rates` [N]; the size varies and may be 0.

    For `fc.algorithms.importance`, whose reports count by 1 / rate.
    """

    rates: np.ndarray = field(repr=False, compare=False)  # [N] float64, above 0 and at most 1
    seed: int = 0
    population: int = field(init=False)
    digest: str = field(init=False)  # of the rates, by which samplers compare

    def __post_init__(self) -> None:
        rates = np.array(self.rates, np.float64)
        if rates.ndim != 1 or not rates.size or not ((rates > 0) & (rates <= 1)).all():
            raise ValueError(
                f"rates must be a probability above 0 and at most 1 for each client, got {self.rates!r}"
            )
        _check_population(len(rates), self.seed)
        rates.flags.writeable = False
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "population", len(rates))
        object.__setattr__(self, "digest", hashlib.sha256(rates.tobytes()).hexdigest()[:16])

    @property
    def max_size(self) -> int:
        """Mean + 8 standard deviations and a little for the skew of rare draws, by Bernstein's inequality:
        exceeded with p < 1.3e-14."""
        return _most(float(self.rates.sum()), float((self.rates * (1 - self.rates)).sum()), self.population)

    def __call__(self, round: int) -> np.ndarray:
        return np.flatnonzero(_generator(self.seed, round).random(self.population) < self.rates).astype(
            np.int32
        )


def optimal_rates(norms: Any, size: float) -> np.ndarray:
    """The probabilities [N] with which samples of `size` clients on average estimate a sum of N parts of
    these norms best.

    They minimise the variance sum_i (1 / p_i - 1) a_i^2 of sum_i X_i / p_i, where X_i has norm a_i: p_i is
    proportional to a_i, and 1 where that would be more (Chen, Horváth and Richtárik, TMLR 2022, eq. 7). For
    `fc.algorithms.importance` give shares times norms.

    >>> optimal_rates([1.0, 1.0, 2.0, 100.0], 2).tolist()
    [0.25, 0.25, 0.5, 1.0]
    """
    checked = np.asarray(norms, np.float64)
    if checked.ndim != 1 or not (np.isfinite(checked) & (checked > 0)).all():
        raise ValueError(f"norms must be a number above 0 for each client, got {norms!r}")
    if not 0 < size <= len(checked):
        raise ValueError(
            f"size must be above 0 and at most {len(checked)}, the number of clients, got {size}"
        )
    order, rates = np.argsort(checked, kind="stable"), np.ones(len(checked))
    for count in range(len(checked), 0, -1):  # the number of smallest norms whose rate is below 1
        small = order[:count]
        share = (size + count - len(checked)) / checked[small].sum()
        if share > 0 and share * checked[small[-1]] <= 1:
            rates[small] = share * checked[small]
            break
    return rates


@dataclass(frozen=True)
class everyone:
    """All clients, every round."""

    population: int

    def __post_init__(self) -> None:
        _check_population(self.population, 0)

    @property
    def max_size(self) -> int:
        return self.population

    def __call__(self, round: int) -> np.ndarray:
        return np.arange(self.population, dtype=np.int32)


@dataclass(frozen=True)
class listed:
    """The cohorts of a list, or the rows of an array [R, K], one a round; raises where a run has more
    rounds."""

    cohorts: Sequence[Any] = field(repr=False, compare=False)
    population: int
    rounds: int = field(init=False)
    digest: str = field(init=False)  # of the cohorts, by which samplers compare

    def __post_init__(self) -> None:
        _check_population(self.population, 0)
        if any(not isinstance(cohort, Cohort) and np.ndim(cohort) == 0 for cohort in self.cohorts):
            raise ValueError(
                "a list of cohorts has one for each round, [[0, 1], [2, 3]], and this one has numbers: for the same "
                "clients in every round give a function, lambda round: [0, 1]"
            )
        checked = tuple(as_cohort(cohort, self.population) for cohort in self.cohorts)
        digest = hashlib.sha256(b"".join(np.stack(cohort).tobytes() + b"|" for cohort in checked))
        object.__setattr__(self, "cohorts", checked)
        object.__setattr__(self, "rounds", len(checked))
        object.__setattr__(self, "digest", digest.hexdigest()[:16])

    @property
    def max_size(self) -> int:
        return max((len(cohort.clients) for cohort in self.cohorts), default=0)

    def __call__(self, round: int) -> Cohort:
        if round >= self.rounds:
            raise ValueError(
                f"{self.rounds} cohorts are listed, and one is wanted for round {round}, from 0: list one for each"
            )
        cohort: Cohort = self.cohorts[round]
        return cohort


def _check_weights(weights: np.ndarray, size: int) -> None:
    at_least(1, size=size)
    if weights.ndim != 1 or not len(weights):
        raise ValueError(
            f"weights must be a one-dimensional array, one number a client, got shape {list(weights.shape)}"
        )
    if (bad := np.flatnonzero(~((weights >= 0) & np.isfinite(weights)))).size:
        raise ValueError(
            f"weights must be finite and not negative, but client {bad[0]} has {weights[bad[0]]}"
        )
    if (positive := int(np.count_nonzero(weights))) < size:
        raise ValueError(
            f"cannot draw {size} different clients, for only {positive} have a weight above 0; use size <= {positive}"
        )


def _check_population(population: int, seed: int) -> None:
    at_least(1, population=population)
    if population >= 2**31:
        raise ValueError(f"population must be below 2**31, for positions are int32, got {population}")
    host_random.check_seed(seed)


def _most(mean: float, variance: float, population: int) -> int:
    """An upper bound on the number of independent draws, which holds all but surely."""
    bound = 8**2 / 2
    return min(population, math.ceil(mean + bound / 3 + math.sqrt(bound**2 / 9 + 2 * bound * variance)))


def _generator(seed: int, round: int) -> np.random.Generator:
    at_least(0, round=round)
    return host_random.generator(host_random.COHORT, seed, round)


def _distinct(rng: np.random.Generator, population: int, size: int) -> np.ndarray:
    # Sorted, because rows are then read in the order of the file.
    return np.sort(rng.choice(population, size, replace=False, shuffle=False)).astype(np.int32)
