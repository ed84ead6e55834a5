"""Analytic learning (AFL): the head of a pretrained model by ridge regression, exactly as if the data were
pooled, in one message.

    G_i = sum of z z',   C_i = sum of z e_y'           z an example's features, e_y its class as a one-hot row
    W   = (sum_i G_i + ridge I)^-1 sum_i C_i           for any division of the examples

He et al., "AFL: A Single-Round Analytic Approach for Federated Learning with Pre-trained Models", CVPR 2025.
Clients' sums add, so the server accumulates from round to round: let each client take part once. `forget`
removes a client again.

>>> import jax.numpy as jnp
>>> algorithm = analytic(lambda batch: batch["x"], width=3, classes=2, ridge=1.0)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Exchange, Report, Seen, nothing, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import look
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Own, Params
from fedjax_core.work import ONCE


class Sums(NamedTuple):
    """A client's sums, or those of all clients so far."""

    gram: Array  # [d, d]
    cross: Array  # [d, C]


class Global(NamedTuple):
    """The head {"w": [d, C]}, and the sums that it is computed from."""

    params: Params
    sums: Sums


@scheduled()
def analytic(features: Callable[[Batch], Array], width: int, classes: int, ridge: float) -> Algorithm:
    """One-message ridge regression of one-hot classes on `features(batch)`, [B, width]; labels in the column
    `y`.

    For an intercept, let one of the features be 1, which is then regularised too. `ridge` >= 0; with 0 the
    sums must have full rank."""

    def predict(params: Params, batch: Batch) -> Array:
        return features(batch) @ params["w"]

    def loss(params: Params, batch: Batch, key: Key) -> Array:
        return 0.5 * jnp.sum(jnp.square(predict(params, batch) - jax.nn.one_hot(batch["y"], classes)), axis=1)

    def metrics(params: Params, batch: Batch) -> dict[str, Array]:
        return {"accuracy": (predict(params, batch).argmax(-1) == batch["y"]).astype(jnp.float32)}

    def measure(params: Params, own: Own, batch: Batch, key: Key) -> Sums:
        z = features(batch)
        weighted = z * (batch.mask / jnp.maximum(jnp.sum(batch.mask), 1))[:, None]
        return Sums(weighted.T @ z, weighted.T @ jax.nn.one_hot(batch["y"], classes))

    def report(params: Params, own: Own, sums: Sums, seen: Seen) -> Report:
        return Report(tree.scale(seen.examples, sums), uniform(seen), own)

    def update(server: Global, reports: Aggregate) -> Global:
        sums = tree.add(server.sums, tree.scale(reports.clients, reports.value))
        return Global(head(sums, ridge), sums)

    none = Sums(jnp.zeros((width, width)), jnp.zeros((width, classes)))
    task = Task(lambda key: {"w": jnp.zeros((width, classes))}, loss, metrics, predict, classes=classes)
    exchange = Exchange(
        lambda server: server.params,
        look(lambda params, own: none, measure, report),
        update,
        work=ONCE,
        reports="mean",
    )
    return Algorithm(task, task.init, lambda params: Global(params, none), nothing, (exchange,))


def head(sums: Sums, ridge: float) -> Params:
    """The head that these sums give."""
    return {"w": jnp.linalg.solve(sums.gram + ridge * jnp.eye(len(sums.gram)), sums.cross)}


def forget(server: Global, sums: Sums, ridge: float) -> Global:
    """The server without the client that sent these sums."""
    left = tree.sub(server.sums, sums)
    return Global(head(left, ridge), left)
