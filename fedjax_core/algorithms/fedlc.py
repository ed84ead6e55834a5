"""FedLC: each client's logits are lowered for classes with few examples, so that rare classes are not
forgotten.

    loss of an example = -log softmax(z - tau n^(-1/4))[y]        z its logits, n the client's examples of each class

A class that a client lacks is left out of its softmax. The counts are found in a silent pass, and never leave
the client. Averaged as in FedAvg.

Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration", ICML 2022, eq. 6.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedlc(models.logistic(features=3, classes=2), tau=1.0, local=optax.sgd(0.1))
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import Local, Loss, keep, local_training, look
from fedjax_core.task import Task
from fedjax_core.tree import scale, wide
from fedjax_core.types import Array, Batch, Key, Own, Params
from fedjax_core.work import ONCE


@scheduled("task", "tau", "local", "server")
def fedlc(task: Task, tau: float, local: optax.GradientTransformation, **rest: Any) -> Algorithm:
    """`fedavg` with calibrated logits of the task's `predict`, and labels in the column `y`; the other
    arguments are fedavg's."""
    predict, classes = task.predict, task.classes
    if predict is None or classes is None:
        raise ValueError(
            "fedlc() lowers a classifier's logits, and the task has none: give Task(predict=, classes=)"
        )

    def objective(params: Params, counts: Array) -> Loss:
        def loss(params: Params, batch: Batch, key: Key) -> Array:
            margin = tau * jnp.maximum(counts, 1) ** -0.25
            logits = jnp.where(counts[None] > 0, wide(predict(params, batch)) - margin[None], -1e9)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"].astype(jnp.int32))

        return loss

    averaging = fedavg(task, local, **rest)
    (exchange,) = averaging.exchanges
    begin, step = local_training(task, local, objective=objective)

    def share(params: Params, own: Own, batch: Batch, key: Key) -> Array:
        return batch.mask @ jax.nn.one_hot(batch["y"], classes) / jnp.maximum(jnp.sum(batch.mask), 1)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return exchange.client.finish(params, carry, seen)._replace(own=carry.own)

    count = look(
        lambda params, own: own,
        share,
        lambda params, own, shares, seen: keep(jnp.round(scale(seen.examples, shares))),
    )
    return averaging._replace(
        init_client=lambda params: jnp.zeros(classes),
        exchanges=(
            exchange._replace(client=count, update=None, work=ONCE),
            exchange._replace(client=Client(begin, step, finish)),
        ),
    )
