"""FedLESAM: FedSAM with a step uphill along the global model's last change, which costs no second gradient.

    d <- rho (x_last - x) / |x_last - x|        x_last is the model that the client was sent when it last took part
    y <- y - local(g(y + d))                    local steps from y = x, with the same d

Fan et al., "Locally Estimated Global Perturbations are Better than Local Perturbations for Federated
Sharpness-aware Minimization", ICML 2024. The length is over all leaves together. The authors' code divides by
the sum of the leaves' lengths, which makes d shorter: `norm="sum"`.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedlesam(models.linear(features=3), rho=0.05, local=optax.sgd(0.1))
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import Local, Loss, local_training
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params, known


@scheduled("task", "rho", "local", "server")
def fedlesam(
    task: Task,
    rho: float,
    local: optax.GradientTransformation,
    *,
    norm: Literal["global", "sum"] = "global",
    **rest: Any,
) -> Algorithm:
    """`fedavg` with the loss taken at distance `rho` >= 0; the other arguments are fedavg's. A client's first
    round is FedAvg's."""
    if known(rho) and rho < 0:
        raise ValueError(f"rho must be at least 0, got {rho}: it is how far away the loss is taken")
    if norm not in ("global", "sum"):
        raise ValueError(f'norm of fedlesam must be "global" or "sum", got {norm!r}')

    def objective(params: Params, last: Params) -> Loss:
        way = tree.sub(last, params)
        length = (
            tree.norm(way)
            if norm == "global"
            else jnp.sum(jnp.stack([tree.norm(leaf) for leaf in jax.tree.leaves(way)]))
        )
        away = tree.scale(rho / jnp.maximum(length, 1e-12), way)

        def loss(here: Params, batch: Batch, key: Key) -> Array:
            return task.loss(tree.add(here, away), batch, key)

        return loss

    averaging = fedavg(task, local, **rest)
    (exchange,) = averaging.exchanges
    begin, step = local_training(task, local, objective=objective)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return exchange.client.finish(params, carry, seen)._replace(own=params)

    trained = exchange._replace(client=Client(begin, step, finish))
    return averaging._replace(init_client=lambda params: params, exchanges=(trained,))
