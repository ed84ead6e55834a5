"""LG-FedAvg: each client has feature layers of its own, and all share the last layers.

    (v_i, w) <- local steps on both        from the client's own first layers v_i and the broadcast last ones w
    w        <- w + mean(w_i - w)          v_i stays with the client

Liang et al., "Think Locally, Act Globally: Federated Learning with Local and Global Representations", 2020.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = lgfedavg(models.mlp(features=3, hidden=(4,), classes=2), optax.sgd(0.1), shared=["1"])  # the last of two layers
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from fedjax_core import keys, tree
from fedjax_core.algorithms.base import Algorithm
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedper import fedper
from fedjax_core.task import Task


@scheduled("task", "local", "server")
def lgfedavg(
    task: Task, local: optax.GradientTransformation, shared: Sequence[str], **rest: Any
) -> Algorithm:
    """`fedper` with the names reversed: all leaves except those under the names `shared` are personal."""
    params = jax.eval_shape(task.init, keys.shape())
    _, others = tree.partition(params, shared)
    return fedper(task, local, personal=tree.names(others), **rest)
