"""LoRA-FAIR: factors are averaged, and b is then corrected to bring the product nearer to the mean product.

    a <- mean a_i,   b <- mean b_i + d,        d = argmin_d |mean(a_i b_i) - a (mean b_i + d)|^2 + ridge |d|^2
                                                 = (a' a + ridge I)^-1 a' (mean(a_i b_i) - a mean b_i)

The weights do not change, so clients need not be sent new ones. The paper also offers the cosine instead of
the square.

Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", ICCV
2025.

>>> import jax, optax
>>> from fedjax_core import models
>>> inner = models.mlp(features=8, hidden=(6,), classes=3)
>>> algorithm = lora_fair(models.lora(inner, inner.init(jax.random.key(0)), "0/w", rank=2), optax.sgd(0.1), ridge=0.01)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_core.algorithms.base import Algorithm
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.low_rank import Factors, low_rank, missed
from fedjax_core.lora import LowRank
from fedjax_core.task import Task
from fedjax_core.types import Array, Key, Params, known


@scheduled("local", "ridge")
def lora_fair(task: Task, local: optax.GradientTransformation, ridge: float = 0.01, **rest: Any) -> Algorithm:
    """Averaging with a corrected b of the factors of a task made by `fc.models.lora`; `weighting` as for
    `fedavg`."""
    if known(ridge) and ridge <= 0:
        raise ValueError(
            f"ridge must be above 0, got {ridge}: without it a factor of lower rank could not be inverted"
        )

    def nearer(a: Array, b: Array, lacks: Array) -> Array:
        return b + jnp.linalg.solve(a.T @ a + ridge * jnp.eye(a.shape[1], dtype=a.dtype), a.T @ lacks)

    def merge(model: LowRank, mean: Factors, products: Params, key: Key) -> LowRank:
        return model._replace(a=mean.a, b=jax.tree.map(nearer, mean.a, mean.b, missed(mean, products)))

    return low_rank(task, local, merge, **rest)
