"""FedEx-LoRA: factors are averaged, and the error of their product is added to the frozen weights, so that
aggregation is exact.

    a <- mean a_i,   b <- mean b_i,   W <- W + scale (mean(a_i b_i) - a b)

The model is then W + scale mean(a_i b_i), the mean of the clients' models.

Singhal, Ponkshe and Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of
Foundation Models", ACL 2025.

>>> import jax, optax
>>> from fedjax_core import models
>>> inner = models.mlp(features=8, hidden=(6,), classes=3)
>>> algorithm = fedex(models.lora(inner, inner.init(jax.random.key(0)), "0/w", rank=2), local=optax.sgd(0.1))
"""

from typing import Any

import optax

from fedjax_core.algorithms.base import Algorithm
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.low_rank import Factors, added, low_rank, missed
from fedjax_core.lora import LowRank
from fedjax_core.task import Task
from fedjax_core.types import Key, Params


@scheduled("local")
def fedex(task: Task, local: optax.GradientTransformation, **rest: Any) -> Algorithm:
    """Exact averaging of the factors of a task made by `fc.models.lora`; `weighting` as for `fedavg`."""

    def merge(model: LowRank, mean: Factors, products: Params, key: Key) -> LowRank:
        return model._replace(base=added(model.base, model.scale, missed(mean, products)), a=mean.a, b=mean.b)

    return low_rank(task, local, merge, **rest)
