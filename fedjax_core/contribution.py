"""The contribution of each client of a round to its model: exact or sampled Shapley values, and leave-one-out
scores.

    phi_i = sum over S without i of |S|! (K - |S| - 1)! / K! * (v(S + i) - v(S))          Shapley value
    l_i   = v(all) - v(all without i)                                                     leave one out

v(S) is the utility of the model that a round would have ended with, had the clients of S alone reported.
Shapley values add up to v(all) - v(nobody). They need 2^K models where they are exact; with `permutations`,
the mean over random orders of what a client adds to those before it, with a standard error, needs at most K +
1 models for each order.

Shapley, "A Value for n-Person Games", 1953. Castro et al., "Polynomial calculation of the Shapley value based
on sampling", 2009. Of a round's own reports: Song et al., "Profit Allocation for Federated Learning", IEEE
Big Data 2019.

>>> import jax, optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.data import Clients
>>> from fedjax_core.lanes import Simulator
>>> clients = Clients.from_list([{"x": np.ones((1, 1), np.float32), "y": np.full(1, y, np.float32)} for y in (1, 1, -2)])
>>> composed = compose(algorithms.fedavg(models.linear(features=1), optax.sgd(0.1)))
>>> simulator = Simulator(composed, clients, batch_size=1, lanes=1)
>>> before = simulator.init(jax.random.key(0))
>>> after, metrics, (visits,) = simulator.inspect(before, [0, 1, 2])
>>> value = of_round(composed, before, visits, lambda params: params["w"][0])
>>> shapley(value, 3).score.round(3).tolist(), leave_one_out(value, 3).round(3).tolist()
([0.15, 0.15, -0.3], [0.1, 0.1, -0.2])
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import tree
from fedjax_core.lanes.inspection import Visits
from fedjax_core.round import Round, State
from fedjax_core.types import Array, Params

Value = Callable[[np.ndarray], Any]
"""(coalitions [n, K] bool) -> what each is worth [n]."""

_EXACT = 12  # clients up to whom all coalitions are tried: 4,096 models
_AT_ONCE = 16  # models made side by side


class Scores(NamedTuple):
    """Each client's contribution, and its standard error."""

    score: np.ndarray  # [K] float64
    standard_error: np.ndarray  # [K] float64; zeros where all coalitions were tried


def shapley(value: Value, clients: int, *, permutations: int | None = None, seed: int = 0) -> Scores:
    """The Shapley value of each of this many clients: exact, or the mean over random orders, which `seed`
    draws.

    Raises ValueError for more than 12 clients without `permutations`, and for fewer than two of these.
    """
    if permutations is not None:
        return _sampled(value, clients, permutations, np.random.default_rng(seed))
    if not 1 <= clients <= _EXACT:
        raise ValueError(
            f"exact Shapley values of {clients} clients need 2^{clients} models, and are for 1 to {_EXACT} clients: "
            "give permutations=200 for a mean over random orders, with its standard error"
        )
    numbers = np.arange(2**clients)
    inside = (numbers[:, None] >> np.arange(clients)) & 1 == 1  # [2^K, K]
    worth, size = _worth(value, inside), inside.sum(axis=1)
    share = np.array(
        [
            math.factorial(s) * math.factorial(clients - s - 1) / math.factorial(clients)
            for s in range(clients)
        ]
    )
    without = [numbers[~inside[:, i]] for i in range(clients)]
    score = [np.sum(share[size[s]] * (worth[s | 1 << i] - worth[s])) for i, s in enumerate(without)]
    return Scores(np.array(score), np.zeros(clients))


def leave_one_out(value: Value, clients: int) -> np.ndarray:
    """The loss in value without each of this many clients, [K] float64."""
    worth = _worth(value, np.vstack([np.ones((1, clients), bool), ~np.eye(clients, dtype=bool)]))
    return worth[0] - worth[1:]


def of_round(composed: Round, before: State, visits: Visits, utility: Callable[[Params], Array]) -> Value:
    """The worth of coalitions of a round's clients: the utility of the model, had they alone reported.

    `before` is the state that the round began with, `visits` what `Simulator.inspect` gave of it, with
    updates and weights. `utility` is a function of JAX from parameters to a number. The server's optimiser,
    the aggregator and the second half of the stages have their part in each model. Raises ValueError where
    the server does not learn a round from updates and weights alone."""
    exchanges, update = composed.algorithm.exchanges, visits.update
    if len(exchanges) != 1 or exchanges[0].slots != 1 or exchanges[0].reports == "all" or visits.stats:
        raise ValueError(
            f"{composed.algorithm.name} has several exchanges, slots, or a server that sees more of a client than its update and weight; "
            "write the value of a coalition as a function of masks [n, K] for shapley() and leave_one_out()"
        )
    if composed.uplink.recover is not None or composed.uplink.hides:
        raise ValueError(
            f"{composed.uplink.name} hides every report in their sum: inspect a round without it"
        )
    if update is None or visits.weight is None:
        raise ValueError('visits lack updates or weights: inspect(state, cohort, ("update", "weight"))')
    rows: Any = jax.tree.map(jnp.asarray, update)
    weight, here, times = jnp.asarray(visits.weight), jnp.asarray(visits.here), jnp.asarray(visits.times)
    places, aggregator = jnp.arange(len(visits.here), dtype=jnp.int32), composed.aggregator
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)

    def worth(chosen: Array) -> Array:
        there = chosen & here
        weights = jnp.where(there, weight, 0) * times
        updates = tree.where(there, rows, tree.zeros_like(rows))
        acc = aggregator.add(
            aggregator.zero(one, len(places)), updates, weights, jnp.where(there, places, len(places))
        )
        clients = jnp.sum(jnp.where(there, times, 0))
        return utility(composed.conclude(0, before, acc, jnp.sum(weights), clients, here, there).params)

    return jax.jit(lambda chosen: jax.lax.map(worth, jnp.asarray(chosen), batch_size=_AT_ONCE))


def _sampled(value: Value, clients: int, permutations: int, rng: np.random.Generator) -> Scores:
    """The mean over random orders of what each client adds to those before it."""
    if permutations < 2:
        raise ValueError(f"permutations must be at least 2, for a standard error, got {permutations}")
    # [m, K]: where each client stands
    place = rng.permuted(np.tile(np.arange(clients), (permutations, 1)), axis=1)
    # [m, K + 1, K]: the first s of each order
    inside = place[:, None] < np.arange(clients + 1)[None, :, None]
    different, which = np.unique(inside.reshape(-1, clients), axis=0, return_inverse=True)
    worth = _worth(value, different)[which.reshape(permutations, clients + 1)]
    added = np.take_along_axis(np.diff(worth, axis=1), place, axis=1)  # [m, K]
    return Scores(added.mean(axis=0), added.std(axis=0, ddof=1) / math.sqrt(permutations))


def _worth(value: Value, coalitions: np.ndarray) -> np.ndarray:
    worths = np.asarray(value(coalitions), np.float64)
    if worths.shape != coalitions.shape[:1]:
        raise ValueError(
            f"the value of {len(coalitions)} coalitions must be so many numbers, got shape {worths.shape}"
        )
    if not np.isfinite(worths).all():
        raise ValueError(
            f"the value of coalition {np.flatnonzero(coalitions[~np.isfinite(worths)][0]).tolist()} is not a finite number"
        )
    return worths
