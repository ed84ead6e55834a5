"""FedALA: before training, each client mixes the new global model into its old one, number by number, with
weights fitted to its data.

    exchange 1 (silent)    z = old_i + (x - old_i) W_i;   W_i <- clip(W_i - rate g(z) (x - old_i), 0, 1)    on each batch
    exchange 2             y <- local steps from z; averaged as in FedAvg, and old_i <- y, which the client uses

W_i covers the leaves under some names, the last layers; all others are taken from x. It begins as ones, and
stays with the client.

Zhang et al., "FedALA: Adaptive Local Aggregation for Personalized Federated Learning", AAAI 2023, algorithm
1. There W_i is trained on a share of the data, until it settles if the client is new; here for some epochs in
each round.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedala(models.mlp(features=3, hidden=(4,), classes=2), optax.sgd(0.1), adaptive=["1"])
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen, gradient
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import Local, keep, local_training
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Batch, Key, Params
from fedjax_core.work import Work


class Own(NamedTuple):
    """A client's state: its last model, and the share that it takes of each number of a new one, None for all
    of it."""

    params: Params
    weights: Params


@scheduled("task", "local", "server", "rate")
def fedala(
    task: Task,
    local: optax.GradientTransformation,
    adaptive: Sequence[str],
    rate: float = 1.0,
    epochs: int = 1,
    **rest: Any,
) -> Algorithm:
    """`fedavg` from a model that each client mixes; `adaptive` names the leaves that are mixed. The other
    arguments are fedavg's."""
    averaging = fedavg(task, local, **rest)
    (exchange,) = averaging.exchanges
    begin, step = local_training(task, local, start=lambda params, own: mixed(params, own))

    def weigh(params: Params, own: Own, batch: Batch, key: Key) -> tuple[Own, dict[str, Mean]]:
        grads, _ = gradient(task, mixed(params, own), batch, key)

        def moved(w: Any, g: Any, x: Any, old: Any) -> Any:
            return None if w is None else jnp.clip(w - rate * g * (x - old), 0, 1)

        weights = jax.tree.map(moved, own.weights, grads, params, own.params, is_leaf=lambda w: w is None)
        return own._replace(weights=weights), {}

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return exchange.client.finish(params, carry, seen)._replace(own=Own(carry.params, carry.own.weights))

    weighing = Client(lambda params, own, key: own, weigh, lambda params, own, seen: keep(own))
    return averaging._replace(
        init_client=lambda params: Own(
            params, jax.tree.map(jnp.ones_like, tree.partition(params, adaptive)[0])
        ),
        exchanges=(
            exchange._replace(client=weighing, update=None, work=Work(epochs=epochs)),
            exchange._replace(client=Client(begin, step, finish)),
        ),
        personal=lambda server, own: own.params,
    )


def mixed(params: Params, own: Own) -> Params:
    """The model that a client begins with: its last one, with the new global model mixed in."""

    def mix(w: Any, x: Any, old: Any) -> Any:
        return x if w is None else old + (x - old) * w

    return jax.tree.map(mix, own.weights, params, own.params, is_leaf=lambda w: w is None)
