"""FedPer and FedBN: some layers of each client's model are its own, and never leave it.

    (v_i, w) <- local steps on both        from the client's own v_i and the broadcast w
    w        <- w + mean(w_i - w)          v_i stays with the client

FedPer keeps the last layers, "Federated Learning with Personalization Layers" (Arivazhagan et al., 2019).
FedBN keeps the layers that normalise, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization" (Li et al., ICLR 2021). `state.params` has None for the layers that clients keep; a client that
never trained has these layers as the task initialises them.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedper(models.mlp(features=3, hidden=(4,), classes=2), optax.sgd(0.1), personal=["1"])  # the last of two layers
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, by_examples
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import Local, local_training, server_step
from fedjax_core.task import Task
from fedjax_core.types import Array, Own, Params


class Global(NamedTuple):
    """The layers that clients share, None for the others, and the server optimiser's state."""

    params: Params
    opt: optax.OptState


@scheduled("task", "local", "server")
def fedper(
    task: Task,
    local: optax.GradientTransformation,
    personal: Sequence[str],
    server: optax.GradientTransformation | None = None,
    *,
    weighting: Callable[[Seen], Array] = by_examples,
) -> Algorithm:
    """FedAvg of all leaves except those under the names `personal`, which each client keeps.

    A name is that of a leaf, "Dense_1/kernel", or of a layer, "Dense_1".

    Personal running statistics (`from_flax(..., statistics="personal")`) belong to these without being named.
    FedBN of a linen module: `personal=["params/BatchNorm_0", ...]`; SiloBN, which shares scale and bias:
    `personal=[]`."""
    names = (*personal, *(task.statistics.names if task.statistics.personal else ()))
    averaged = [
        name for name in task.statistics.names if not any(tree.is_under(name, kept) for kept in names)
    ]
    begin, step = local_training(task, local, start=lambda shared, own: tree.combine(own, shared))
    server = optax.sgd(1.0) if server is None else server
    move = server_step(server, averaged)

    def finish(shared: Params, carry: Local, seen: Seen) -> Report:
        own, now = tree.partition(carry.params, names)
        return Report(tree.sub(now, shared), weighting(seen), own)

    def update(state: Global, reports: Aggregate) -> Global:
        return Global(*move(state.params, state.opt, reports.value))

    def init(params: Params) -> Global:
        shared = tree.partition(params, names)[1]
        return Global(shared, server.init(shared))

    def init_client(params: Params) -> Own:
        return tree.partition(params, names)[0]

    exchange = Exchange(lambda state: state.params, Client(begin, step, finish), update)
    return Algorithm(
        task, task.init, init, init_client, (exchange,), lambda state, own: tree.combine(own, state.params)
    )
