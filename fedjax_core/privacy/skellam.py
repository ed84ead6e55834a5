"""Distributed noise in whole numbers: each client adds a little, and only the sum, which secure aggregation
reveals, has enough.

    x = clip(u, C),   k = x / g rounded at random, again until |g k| is at most B            (g a power of two)
    sent = k + Skellam(mu / n),   sum of sent = sum of k + Skellam(mu)                         mu = (z C / g)^2 / (1 - dropped / n)
    B = min(C + g sqrt(d), sqrt(C^2 + g^2 d / 4 + g (C + g sqrt(d) / 2)))

Sums of Skellam variables are Skellam, so nothing is lost by adding the noise in parts; whole numbers have no
last bits that leak; and the ring of secure aggregation adds them exactly. The server is not trusted to add
noise, only to see nothing but the sum. With D2 = B / g and D1 = min(sqrt(d) D2, D2^2) one round costs in
Renyi divergence of whole order a

    a D2^2 / (2 mu) + min(((2 a - 1) D2^2 + 6 D1) / (4 mu^2), 3 D1 / (2 mu))

Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021,
theorem 3.5; rounding: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism", ICML 2021,
proposition 26 (here with beta = exp(-1/2)).

Neighbours differ in one client's report, which is zeros in one of them: who takes part is public. `clients`
report in each round; `dropped` of them may fail to, or lie about their noise. With fewer the noise would be
less than stated, so real sites open no sum of fewer than `clients - dropped` reports. Every client takes
part, so sampling adds nothing. A real site draws the noise by a secret from the operating system, and a
repeated request gets the same bytes.

>>> private = distributed(clients=20, parameters=1000, rounds=10, clip=1.0, noise=8.0, delta=1e-5)
>>> f"{private.epsilon(rounds=1):.3f} {private.epsilon():.3f} {private.step:.2e}"
'0.478 1.672 9.77e-04'
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from scipy.special import ive

from fedjax_core import tree
from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.total import total
from fedjax_core.checks import at_least
from fedjax_core.data.cohorts import Sampler, everyone
from fedjax_core.privacy import accounting, clipping
from fedjax_core.types import Array, Key, Message, Own, Update
from fedjax_core.uplink.base import Promises, Sender, Stage, chain, stage
from fedjax_core.uplink.secure import secure

_ORDERS = (*range(2, 65), *range(68, 257, 4), *range(272, 1025, 16))
_TRIES = 32  # attempts at rounding, before numbers are truncated instead, which only shortens
_TAIL = (
    10  # standard deviations of a client's noise, beyond which it is cut off: with a probability below 1e-20
)


@dataclass(frozen=True)
class Distributed:
    """The result of `distributed`: its settings, and the pieces made from them."""

    clients: int
    parameters: int
    rounds: int
    clip: float
    noise: float
    """The standard deviation of the noise in the sum, in multiples of the clip."""
    delta: float
    step: float
    """The distance between two neighbouring values: a power of two with which a report fits into `bits`
    bits."""
    bits: int = 16
    dropped: int = 0
    open_metrics: bool = False

    @property
    def local(self) -> float:
        """The standard deviation of one client's noise: the noise of all who are sure to report adds up to
        the whole."""
        return self.noise * self.clip / math.sqrt(self.clients - self.dropped)

    @property
    def longest(self) -> float:
        """The largest norm of a report after rounding."""
        return longest(self.clip, self.step, self.parameters)

    @property
    def cohorts(self) -> Sampler:
        """All clients in every round."""
        return everyone(self.clients)

    @property
    def aggregator(self) -> Aggregator:
        """The sum of the reports."""
        return total()

    @cached_property
    def uplink(self) -> Stage:
        """Clips, rounds, adds the client's share of the noise, and hides the report in the sum of all; the
        value is the mean."""
        bound = self.step * (2 ** (self.bits - 1) - 1)
        noisy = skellam(self.clip, self.local, self.step, self.parameters, bound)
        promises = noisy.promises._replace(account=self, reports=self.clients - self.dropped)
        noisy = noisy._replace(promises=promises)
        return chain(noisy, secure(bound, self.bits, 1 << (self.clients - 1).bit_length()))

    @property
    def terms(self) -> dict[str, Any]:
        """The terms that must not change for one epsilon to cover all rounds, in plain values."""
        names = ("clients", "parameters", "clip", "noise", "delta", "bits", "dropped")
        return {name: getattr(self, name) for name in names} | {"mechanism": "skellam"}

    def epsilon(self, rounds: int | None = None) -> float:
        """The epsilon of this many rounds (default: all that are planned), at `delta`."""
        rounds = self.rounds if rounds is None else int(rounds)
        deviation = self.noise * self.clip / self.step
        return _epsilon(self.longest / self.step, self.parameters, deviation, rounds, self.delta)

    def told(self, rounds: int) -> float:
        """The `epsilon`."""
        return self.epsilon(rounds)


def distributed(
    *,
    clients: int,
    parameters: int,
    rounds: int,
    clip: float,
    epsilon: float | None = None,
    noise: float | None = None,
    delta: float = 1e-6,
    bits: int = 16,
    dropped: int = 0,
    open_metrics: bool = False,
) -> Distributed:
    """Differential privacy of whole clients towards a server that reads only sums: noise added by all clients
    together, under secure aggregation.

    Give `epsilon`, at `delta`, for which the noise is computed, or `noise`, in multiples of `clip`.
    `parameters`: the size of an update. `bits`: of a number on the wire; fewer cost a little epsilon, as
    rounding then lengthens reports. Raises ValueError where no noise is enough. `compose` needs an algorithm
    that weights its reports alike: weighting=fc.algorithms.uniform."""
    at_least(1, clients=clients, parameters=parameters, rounds=rounds)
    if not 0 <= dropped < clients:
        raise ValueError(
            f"dropped={dropped} is how many of the {clients} clients may fail to report: from 0 to {clients - 1}"
        )
    if not 8 <= bits <= 24:
        raise ValueError(f"bits={bits} is of a number on the wire: from 8 to 24, which float32 holds exactly")
    if (epsilon is None) == (noise is None):
        raise ValueError(
            f"give epsilon=, for which the noise is found, or noise= itself, and not both: got {epsilon} and {noise}"
        )
    bound = clipping.bounds(clip)
    if not isinstance(bound, float):
        raise ValueError("clip= is one norm here, of all leaves together")
    if noise is not None and not noise > 0:
        raise ValueError(f"noise= must be above 0, in multiples of the clip, got {noise!r}")
    accounting.epsilon(1.0, rounds=0, delta=delta, sampling="everyone")  # checks
    start = noise or accounting.noise_for(
        epsilon or 1.0, rounds=rounds, delta=delta, sampling="everyone", accountant="rdp"
    )
    made = _fitting(
        Distributed(
            clients, parameters, rounds, bound, float(start), float(delta), 0.0, bits, dropped, open_metrics
        )
    )
    return made if epsilon is None else _calibrated(made, epsilon)


def _calibrated(made: Distributed, epsilon: float) -> Distributed:
    """The account with the least noise for this epsilon. For one step the epsilon falls with the noise, for
    which the step may have to grow."""
    quiet = replace(
        made, noise=accounting.least(lambda noise: replace(made, noise=noise).epsilon() - epsilon, made.noise)
    )
    fitting = _fitting(quiet)
    return quiet if fitting.step <= made.step else _calibrated(fitting, epsilon)


def _fitting(made: Distributed) -> Distributed:
    """The account with the smallest step with which a report and its noise fit into `bits` bits."""
    return replace(
        made, step=2.0 ** math.ceil(math.log2((made.clip + _TAIL * made.local) / (2 ** (made.bits - 1) - 1)))
    )


def skellam(clip: float, deviation: float, step: float, parameters: int, bound: float) -> Stage:
    """Clips updates to norm `clip`, rounds them to multiples of `step`, and adds Skellam noise of this
    standard deviation; within +-`bound`.

    It is a client's half of `distributed`, which puts secure aggregation after it.
    """
    most = longest(clip, step, parameters)
    table = _thresholds((deviation / step) ** 2)

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        leaves = jax.tree.leaves(update)
        if (count := sum(x.size for x in leaves)) != parameters:
            raise ValueError(
                f"the update has {count} numbers, and the account is of {parameters}: give parameters={count}"
            )
        if any(x.dtype.itemsize < 4 for x in leaves):
            raise ValueError(
                "numbers of 16 bits hold no sums of whole numbers: leave fc.uplink.half() out before secure aggregation"
            )
        # as one vector: one generator instead of one a leaf
        flat, unravel = ravel_pytree(clipping.clip_by_norm(update, clip))
        whole = _rounded(flat / step, most / step, sender.key)
        noisy = whole + _draw(table, sender.secret, flat.shape).astype(flat.dtype)
        return unravel(jnp.clip(noisy, -bound / step, bound / step) * step), own

    return stage("skellam", encode=encode, promises=Promises(clip, deviation / clip, "client"))


def longest(clip: float, step: float, parameters: int) -> float:
    """The largest norm of a vector of norm `clip` after random rounding to multiples of `step`."""
    root = math.sqrt(parameters)
    return min(
        clip + step * root, math.sqrt(clip**2 + step**2 * parameters / 4 + step * (clip + step * root / 2))
    )


def divergence(order: int, sensitivity: float, parameters: int, variance: float) -> float:
    """The Renyi divergence of this order of one sum of whole numbers with Skellam noise, which a client
    changes by l2 norm `sensitivity`."""
    ones = min(math.sqrt(parameters) * sensitivity, sensitivity**2)
    more = min(((2 * order - 1) * sensitivity**2 + 6 * ones) / (4 * variance**2), 3 * ones / (2 * variance))
    return order * sensitivity**2 / (2 * variance) + more


@lru_cache(maxsize=4096)
def _epsilon(sensitivity: float, parameters: int, deviation: float, rounds: int, delta: float) -> float:
    from dp_accounting.rdp import rdp_privacy_accountant

    if rounds == 0:
        return 0.0
    costs = [rounds * divergence(order, sensitivity, parameters, deviation**2) for order in _ORDERS]
    return float(rdp_privacy_accountant.compute_epsilon(np.array(_ORDERS, float), np.array(costs), delta)[0])


def _rounded(x: Array, most: float, key: Key) -> Array:
    """Rounds each number down or up at random, without bias except that the l2 norm of all is at most
    `most`."""
    below = jnp.floor(x)

    def long(rounded: Array) -> Array:
        return tree.norm(rounded) > most * (1 - 1e-6)

    def again(loop: tuple[Array, Array]) -> tuple[Array, Array]:
        up = jax.random.uniform(jax.random.fold_in(key, loop[0]), x.shape, x.dtype) < x - below
        return loop[0] + 1, below + up.astype(x.dtype)

    def go_on(loop: tuple[Array, Array]) -> Array:
        return (loop[0] == 0) | (long(loop[1]) & (loop[0] <= _TRIES))

    _, result = lax.while_loop(go_on, again, (jnp.int32(0), below))
    return jnp.where(long(result), jnp.trunc(x), result)


@lru_cache(maxsize=16)
def _thresholds(variance: float) -> tuple[np.ndarray, np.ndarray, int]:
    """(high, low words of 2^64 P[Skellam(variance) <= k] for k = -m, ..., m - 1; m)."""
    most = math.ceil(_TAIL * math.sqrt(variance)) + 4
    # exp(-mu) I_k(mu): of two Poisson variables' difference
    mass = ive(np.abs(np.arange(-most, most)), variance)
    words = (np.cumsum(mass) * 2.0**64).clip(0, 2.0**64 - 2048).astype(np.uint64)
    return (words >> np.uint64(32)).astype(np.uint32), words.astype(np.uint32), most


def _draw(table: tuple[np.ndarray, np.ndarray, int], key: Key, shape: tuple[int, ...]) -> Array:
    """Skellam variables as float32, by inversion of 64 random bits each."""
    high, low, most = jnp.asarray(table[0]), jnp.asarray(table[1]), table[2]
    a, b = jax.random.bits(key, (2, *shape), jnp.uint32)
    begin, end = jnp.zeros(shape, jnp.int32), jnp.full(shape, len(high), jnp.int32)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        begin, end = ends
        middle = (begin + end) // 2
        inside = jnp.minimum(middle, len(high) - 1)
        over = (a > high[inside]) | ((a == high[inside]) & (b >= low[inside]))
        open_ = begin < end
        return jnp.where(open_ & over, middle + 1, begin), jnp.where(open_ & ~over, middle, end)

    index, _ = lax.fori_loop(0, len(high).bit_length(), halve, (begin, end))
    return (index - most).astype(jnp.float32)
