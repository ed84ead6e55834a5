"""Per-FedAvg: a model that becomes a good one for a client after one gradient step on the client's own data.

    F_i(w) = f_i(w - alpha grad f_i(w; A); B)        A, B: the even and the odd rows of a batch
    y <- y - local(grad F_i(y))                      local steps from the broadcast x, averaged as in FedAvg

Fallah, Mokhtari and Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach", NeurIPS 2020, eq. 3 and 5. The gradient is (I - alpha H) grad f_i(u; B) at u = w -
alpha grad f_i(w; A), with H the Hessian of the rows of the step, A. JAX computes its product with a vector
exactly; the paper's two ways without it are to leave it out ("none": FO) and the difference of two gradients
("difference": HF).

>>> import optax
>>> from fedjax_core import models
>>> algorithm = perfedavg(models.linear(features=3), alpha=0.01, local=optax.sgd(0.1))
"""

from typing import Any, Literal, TypeAlias

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

Hessian: TypeAlias = Literal["exact", "none", "difference"]


@scheduled("task", "alpha", "local", "server")
def perfedavg(
    task: Task,
    alpha: float,
    local: optax.GradientTransformation,
    *,
    hessian: Hessian = "exact",
    delta: float = 1e-2,
    **rest: Any,
) -> Algorithm:
    """`fedavg` of models that are good after one step of size `alpha`; the other arguments are fedavg's.

    `delta` is the distance from the model of the two gradients of `hessian="difference"`, in units of the
    vector's length.

    The metric `loss` is that after the step, on rows that the step did not see. A batch with a single example
    has none, and moves nothing.
    """
    if hessian not in ("exact", "none", "difference"):
        raise ValueError(f'hessian of perfedavg must be "exact", "none" or "difference", got {hessian!r}')
    return fedavg(task, local, gradient=after_a_step(alpha, hessian, delta), **rest)


def after_a_step(alpha: float, hessian: Hessian = "exact", delta: float = 1e-2) -> Gradient:
    """A `gradient=`: that of the loss on half of the batch after a step of size `alpha` on the other half,
    through that step."""

    def gradient(task: Task, params: Params, batch: Batch, key: Key) -> tuple[Params, dict[str, Mean]]:
        seen, unseen = batch.split(2)
        first, second = jax.random.split(key)

        def uphill(params: Params) -> Params:
            return jax.grad(task.mean_loss)(params, seen, first)

        def later(params: Params) -> Array:
            return task.mean_loss(params, unseen, second)

        moved = tree.sub(params, tree.scale(alpha, uphill(params)))
        value, grads = jax.value_and_grad(later)(moved)
        if hessian == "exact":
            grads = tree.sub(grads, tree.scale(alpha, jax.jvp(uphill, (params,), (grads,))[1]))
        elif hessian == "difference":
            way = tree.scale(delta / jnp.maximum(tree.norm(grads), 1e-12), grads)
            curved = tree.sub(uphill(tree.add(params, way)), uphill(tree.sub(params, way)))
            grads = tree.sub(grads, tree.scale(alpha * tree.norm(grads) / (2 * delta), curved))
        examples = jnp.sum(unseen.mask)
        return grads, {"loss": Mean(value.astype(jnp.float32) * examples, examples)}

    return gradient
