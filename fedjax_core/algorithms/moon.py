"""MOON: a client's features are pulled towards those of the global model, and away from those of its own last
model.

    loss of an example = l(y) - mu log( exp(s(z, z_glob)/t) / (exp(s(z, z_glob)/t) + exp(s(z, z_prev)/t)) )

with z, z_glob and z_prev the example's features by the trained model, by the broadcast one, and by the
client's last model (at first, the one that all began with); s is the cosine. Averaged as in FedAvg.

Li, He and Song, "Model-Contrastive Federated Learning", CVPR 2021, eq. 3 and 5.

>>> import jax.numpy as jnp, optax
>>> from fedjax_core import models
>>> task = models.linear(features=3)._replace(features=lambda params, batch, key: batch["x"] * params["w"])
>>> algorithm = moon(task, mu=1.0, local=optax.sgd(0.1))
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen, by_examples
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import Local, Loss, local_training
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params, known


@scheduled("task", "mu", "local", "temperature", "server")
def moon(
    task: Task,
    mu: float,
    local: optax.GradientTransformation,
    temperature: float = 0.5,
    server: optax.GradientTransformation | None = None,
    *,
    weighting: Callable[[Seen], Array] = by_examples,
) -> Algorithm:
    """FedAvg with a contrastive term of weight `mu` in each client's loss, on the task's `features`."""
    features = task.features
    if features is None:
        raise ValueError(
            "moon() compares what models make of examples, and the task has no features: give from_flax(..., features=), or Task(features=)"
        )
    if known(temperature) and temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: it divides the cosines")

    def objective(broadcast: Params, previous: Params) -> Loss:
        def loss(params: Params, batch: Batch, key: Key) -> Array:
            z, z_glob, z_prev = (
                tree.wide(features(model, batch, key)) for model in (params, broadcast, previous)
            )
            nearer, farther = _cosine(z, z_glob) / temperature, _cosine(z, z_prev) / temperature
            return tree.wide(task.loss(params, batch, key)) + mu * jax.nn.softplus(farther - nearer)

        return loss

    # FedAvg with other local steps
    averaging = fedavg(task, optax.identity(), server, weighting=weighting)
    (exchange,) = averaging.exchanges
    begin, step = local_training(task, local, objective=objective)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return exchange.client.finish(params, carry, seen)._replace(own=carry.params)

    trained = exchange._replace(client=Client(begin, step, finish))
    return averaging._replace(init_client=lambda params: params, exchanges=(trained,))


def _cosine(a: Array, b: Array) -> Array:
    """The cosine of each row, [B]; rows of zeros have a cosine of 0 with any."""
    norms = jnp.sqrt(jnp.maximum(jnp.sum(a * a, -1) * jnp.sum(b * b, -1), 1e-16))
    return jnp.sum(a * b, -1) / norms
