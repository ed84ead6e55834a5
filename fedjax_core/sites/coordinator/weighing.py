"""Computes a report's weight and stats from the site's examples and steps, instead of believing the site.

FedAvg weighs a report by its examples, SCAFFOLD all alike, others by steps. Each weight is a function of what
a client had to work on (`Seen`), which the coordinator knows from the site's description and the study's
plan. So no site can give itself more weight. The same holds for the numbers that a server reads client by
client (`Report.stats`), such as FedNova's steps. A number that depends on anything else, such as the loss,
cannot be computed here.

>>> import jax, numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> task = models.linear(features=2)
>>> examples, steps = np.array([3.0, 50.0], np.float32), np.array([1.0, 7.0], np.float32)
>>> weigher(compose(algorithms.fedavg(task, optax.sgd(0.1))), 0)(examples, steps).tolist()
[3.0, 50.0]
>>> weigher(compose(algorithms.scaffold(task, 0.1, population=2)), 0)(examples, steps).tolist()
[1.0, 1.0]
>>> counters(compose(algorithms.fednova(task, 0.1)), 0, {"steps": np.float32(0)})["steps"](examples, steps).tolist()
[1.0, 7.0]
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fedjax_core import keys
from fedjax_core.algorithms.base import Report, Seen
from fedjax_core.round import Round, state_shapes
from fedjax_core.types import Array

Weigher = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(examples [N], steps [N]) -> a number of each report [N], such as its weight."""


def weigher(composed: Round, e: int) -> Weigher | None:
    """The function for the weights of reports in exchange `e`; None if examples and steps do not suffice."""
    return _of_seen(composed, e, lambda report: report.weight)


def counters(composed: Round, e: int, stats: Mapping[str, Any]) -> dict[str, Weigher]:
    """The functions for those scalar `stats` (name -> shape) of exchange `e` that examples and steps
    determine."""
    candidates = {
        name: _of_seen(composed, e, partial(_stat, name)) for name, shape in stats.items() if not shape.shape
    }
    return {name: one for name, one in candidates.items() if one is not None}


def _stat(name: str, report: Report) -> Array:
    return report.stats[name]


def _of_seen(composed: Round, e: int, read: Callable[[Report], Array]) -> Weigher | None:
    client, key = composed.algorithm.exchanges[e].client, keys.shape()
    state = state_shapes(composed)
    message = jax.eval_shape(partial(composed.told, e), state)
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.clients.own)
    carry = jax.eval_shape(client.begin, message, own, key)
    one = jax.ShapeDtypeStruct((), jnp.float32)

    def number(examples: Array, steps: Array, message: object, carry: object) -> Array:
        return jnp.float32(read(client.finish(message, carry, Seen(examples, steps))))

    closed = jax.make_jaxpr(number)(one, one, message, carry)
    whole: Any = closed.jaxpr
    needed, eqns = {v for v in whole.outvars if isinstance(v, core.Var)}, []
    for eqn in reversed(whole.eqns):
        if needed.intersection(eqn.outvars):
            eqns.append(eqn)
            needed.update(v for v in eqn.invars if isinstance(v, core.Var))
    if needed.intersection(whole.invars[2:]):
        return None
    part = whole.replace(
        invars=whole.invars[:2], eqns=eqns[::-1], debug_info=whole.debug_info.with_unknown_names()
    )
    one_report: Any = core.jaxpr_as_fun(core.ClosedJaxpr(part, closed.consts))
    all_reports: Any = jax.vmap(one_report)
    return lambda examples, steps: np.asarray(all_reports(examples, steps)[0], np.float64)
