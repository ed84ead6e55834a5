"""Ditto: beside the global model each client trains a model of its own, which is pulled towards the global
one and never sent.

    y   <- y - local(g(y))                           local steps from y = x, averaged as in FedAvg
    v_i <- v_i - local(g(v_i) + lam (v_i - x))       on the same batches; stays with the client, which uses it

Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
algorithm 1.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = ditto(models.linear(features=3), lam=0.1, local=optax.sgd(0.1))
"""

from typing import Any, NamedTuple

import optax

from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.tree import scale, sub
from fedjax_core.types import Batch, Key, Own, Params, known


class Both(NamedTuple):
    """A client's carry: its steps from the global model, and those of its own model."""

    shared: Local
    personal: Local


@scheduled("task", "lam", "local", "server")
def ditto(task: Task, lam: float, local: optax.GradientTransformation, **rest: Any) -> Algorithm:
    """`fedavg`, with a model of each client's own and pull `lam` >= 0; the other arguments are fedavg's.

    The metric `loss` is that of the global model, `personal_loss` that of clients' own, both as they train.
    """
    if known(lam) and lam < 0:
        raise ValueError(
            f"lam must be at least 0, got {lam}: a negative pull pushes clients away from the global model"
        )
    averaging = fedavg(task, local, **rest)
    (exchange,) = averaging.exchanges
    client = exchange.client

    def pulled(grads: Params, point: Any) -> Params:
        return optax.tree.add(grads, scale(lam, sub(point.params, point.message)))

    begin_own, step_own = local_training(task, local, start=lambda params, own: own, correct=pulled)

    def begin(params: Params, own: Own, key: Key) -> Both:
        return Both(client.begin(params, (), key), begin_own(params, own, key)._replace(own=()))

    def step(params: Params, carry: Both, batch: Batch, key: Key) -> tuple[Both, dict[str, Mean]]:
        shared, metrics = client.step(params, carry.shared, batch, key)
        personal, own_metrics = step_own(params, carry.personal, batch, key)
        return Both(shared, personal), {**metrics, "personal_loss": own_metrics["loss"]}

    def finish(params: Params, carry: Both, seen: Seen) -> Report:
        return client.finish(params, carry.shared, seen)._replace(own=carry.personal.params)

    return averaging._replace(
        init_client=lambda params: params,
        exchanges=(exchange._replace(client=Client(begin, step, finish)),),
        personal=lambda server, own: own,
    )
