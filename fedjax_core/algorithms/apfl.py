"""APFL: each client uses a mixture of the global model and a model of its own, in proportions that it may
learn.

    y   <- y - lr g(y)                                      local steps from y = x, averaged as in FedAvg
    v_i <- v_i - lr a_i g(m),  m = a_i v_i + (1 - a_i) y    on the same batches; v_i and a_i stay with the client
    a_i <- a_i - rate <v_i - y, g(m)>, kept within 0 and 1

Deng, Kamani and Mahdavi, "Adaptive Personalized Federated Learning", 2020, algorithm 1; there a_i moves once
a round, here in each local step. A client uses a_i v_i + (1 - a_i) x.

>>> from fedjax_core import models
>>> algorithm = apfl(models.linear(features=3), lr=0.1, alpha=0.5)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen, gradient
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import Local
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params, known


class Own(NamedTuple):
    """A client's state: its model v_i, and the share a_i of it that it uses."""

    params: Params
    share: Array


class Both(NamedTuple):
    """A client's carry: its steps from the global model, and its state."""

    shared: Local
    own: Own


@scheduled("task", "lr", "alpha", "rate")
def apfl(task: Task, lr: float, alpha: float = 0.5, rate: float = 0.0, **rest: Any) -> Algorithm:
    """`fedavg` by SGD of size `lr`, with personal models whose share begins at `alpha` and moves by `rate`,
    where that is not 0.

    The rest of the arguments are fedavg's. The metric `loss` is that of the global model, `personal_loss`
    that of the mixture."""
    if known(alpha) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the share of a client's own model, from 0 to 1, got {alpha}")
    averaging = fedavg(task, optax.sgd(lr), **rest)
    (exchange,) = averaging.exchanges
    client = exchange.client

    def begin(params: Params, own: Own, key: Key) -> Both:
        return Both(client.begin(params, (), key), own)

    def step(params: Params, carry: Both, batch: Batch, key: Key) -> tuple[Both, dict[str, Mean]]:
        own, y = carry.own, carry.shared.params
        grads, own_metrics = gradient(task, mixture(own, y), batch, key)
        moved = jax.tree.map(lambda v, g: v - lr * own.share.astype(g.dtype) * g, own.params, grads)
        slope = sum(
            jnp.sum((v - w) * g)
            for v, w, g in zip(*map(jax.tree.leaves, (own.params, y, grads)), strict=True)
        )
        share = jnp.clip(own.share - rate * jnp.asarray(slope, jnp.float32), 0, 1)
        shared, metrics = client.step(params, carry.shared, batch, key)
        return Both(shared, Own(moved, share)), {**metrics, "personal_loss": own_metrics["loss"]}

    def finish(params: Params, carry: Both, seen: Seen) -> Report:
        return client.finish(params, carry.shared, seen)._replace(own=carry.own)

    return averaging._replace(
        init_client=lambda params: Own(params, jnp.asarray(alpha, jnp.float32)),
        exchanges=(exchange._replace(client=Client(begin, step, finish)),),
        personal=lambda server, own: mixture(own, server.params),
    )


def mixture(own: Own, params: Params) -> Params:
    """The model that a client uses with this global model."""
    return jax.tree.map(
        lambda v, x: own.share.astype(x.dtype) * v + (1 - own.share.astype(x.dtype)) * x, own.params, params
    )
