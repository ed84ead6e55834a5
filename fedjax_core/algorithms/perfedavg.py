"""Per-FedAvg: a model that one gradient step on a client's own data makes a good one for that client.

    F_i(w) = f_i(w - alpha grad f_i(w; A); B)        A, B: the even and the odd rows of a batch
    y <- y - local(grad F_i(y))                      local steps from the broadcast x, averaged as in FedAvg

Fallah, Mokhtari and Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach", NeurIPS 2020, eq. 3 and 5; the Hessian is of the same rows as the step, A, whose
product with a vector JAX takes exactly.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = perfedavg(models.linear(features=3), alpha=0.01, local=optax.sgd(0.1))
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import Gradient
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params


@scheduled("task", "alpha", "local", "server")
def perfedavg(task: Task, alpha: float, local: optax.GradientTransformation, **rest: Any) -> Algorithm:
    """`fedavg` of models that are good after one step of size `alpha`; the other arguments are fedavg's.

    The metric `loss` is that after the step, on rows that the step did not see. A batch with a single example
    has none, and moves nothing.
    """
    return fedavg(task, local, gradient=after_a_step(alpha), **rest)


def after_a_step(alpha: float) -> Gradient:
    """The gradient of the loss on half of the batch after a step of size `alpha` on the other half, through that step."""

    def gradient(task: Task, params: Params, batch: Batch, key: Key) -> tuple[Params, dict[str, Mean]]:
        seen, unseen = batch.split(2)
        first, second = jax.random.split(key)

        def loss(params: Params) -> Array:
            uphill = jax.grad(task.mean_loss)(params, seen, first)
            return task.mean_loss(tree.sub(params, tree.scale(alpha, uphill)), unseen, second)

        value, grads = jax.value_and_grad(loss)(params)
        examples = jnp.sum(unseen.mask)
        return grads, {"loss": Mean(value.astype(jnp.float32) * examples, examples)}

    return gradient
