"""FedBuff's buffer: clients train when they are free, and every K updates make a step of the server.

    s = version now - version the client began from          x <- server(x, sum_i w_i d(s_i) u_i / sum_i w_i)      over K arrivals

An update is multiplied by d(s), by default 1/sqrt(1 + s); one with s above a bound is refused. A client
begins from the latest model, once from each version, so that (version, client) is the address of all its
draws; a client that is free before the next version waits for it. Nguyen et al., "Federated Learning with
Buffered Asynchronous Aggregation", AISTATS 2022.

The `State` holds what must outlive a crash: who began from which version, and the last models. After a crash
unfinished work begins again, and the same order of arrivals gives the same bits.

>>> Buffer(size=10).damping(3)
0.5
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.data.cohort import as_cohort
from fedjax_core.types import Array, Message


def inverse_root(staleness: int) -> float:
    """1 / sqrt(1 + s), as in the paper."""
    return 1 / math.sqrt(1 + staleness)


@dataclass(frozen=True)
class Buffer:
    """The buffer's settings: its size, the damping, and the oldest update that counts."""

    size: int
    """The number of updates that make a step of the server (K)."""
    damping: Callable[[int], float] = inverse_root
    """staleness -> the factor of an update."""
    max_staleness: int = 10
    """An update older than this is refused. The `State` holds one model more than this."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.max_staleness < 0:
            raise ValueError(
                f"a buffer needs size >= 1 and max_staleness >= 0, got {self.size} and {self.max_staleness}"
            )
        for staleness in range(self.max_staleness + 1):
            if not (math.isfinite(factor := self.damping(staleness)) and factor >= 0):
                raise ValueError(
                    f"damping({staleness}) is {factor}, and an update cannot be multiplied by that: return a number >= 0"
                )


class InFlight(NamedTuple):
    """The clients at work, and the models that they began from."""

    started: Array  # [N] int32: the version that a client at work began from, -1 for one that is free
    last: Array  # [N] int32: the last version that it began from, -1 before its first
    models: Message  # leaves [max_staleness + 1, ...]: the message of version v is at v % (max_staleness + 1)


def free_clients(cohort: Any, population: int) -> np.ndarray:
    """[K] int32: the cohort's clients, who begin when free; raises for one drawn several times, as without
    rounds none can count twice."""
    clients, counts = as_cohort(cohort, population)
    if (counts != 1).any():
        raise ValueError(
            f"client {clients[counts != 1][0]} is {counts[counts != 1][0]} times in the cohort, and each reports once from a version: draw "
            "the cohort without replacement, as fc.cohorts.uniform does"
        )
    return clients


def idle(population: int, message: Message, buffer: Buffer) -> InFlight:
    """The bookkeeping before the first step: no client is at work."""
    none = jnp.full(population, -1, jnp.int32)
    return InFlight(
        none,
        none,
        jax.tree.map(lambda x: jnp.zeros((buffer.max_staleness + 1, *jnp.shape(x)), x.dtype), message),
    )


def store_model(models: Any, version: int, message: Message) -> Any:
    """The models with this version's message in place of the oldest."""
    return _put(models, np.int32(version % len(jax.tree.leaves(models)[0])), message)


def load_model(models: Any, version: int) -> Message:
    """The message of a version."""
    return _take(models, np.int32(version % len(jax.tree.leaves(models)[0])))


_put = jax.jit(lambda models, at, message: jax.tree.map(lambda x, m: x.at[at].set(m), models, message))
_take = jax.jit(lambda models, at: jax.tree.map(lambda x: x[at], models))
