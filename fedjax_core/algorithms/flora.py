"""FLoRA: the clients' products are added to the weights exactly, as one stack of factors, and each round
begins with new factors.

    W <- W + scale sum_i p_i a_i b_i = W + scale [a_1 ... a_K] [p_1 b_1; ...; p_K b_K],        p_i = w_i / sum_j w_j
    a drawn anew, the same for all;  b <- 0

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
NeurIPS 2024; ranks are alike here.

>>> import jax, optax
>>> from fedjax_core import models
>>> inner = models.mlp(features=8, hidden=(6,), classes=3)
>>> algorithm = flora(models.lora(inner, inner.init(jax.random.key(0)), "0/w", rank=2), local=optax.sgd(0.1))
"""

from typing import Any

import jax
import optax

from fedjax_core.algorithms.base import Algorithm
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.low_rank import Factors, added, low_rank
from fedjax_core.lora import LowRank, begin
from fedjax_core.task import Task
from fedjax_core.types import Key, Params


@scheduled("local")
def flora(task: Task, local: optax.GradientTransformation, **rest: Any) -> Algorithm:
    """Stacking of the factors of a task made by `fc.models.lora`; `weighting` as for `fedavg`."""

    def merge(model: LowRank, mean: Factors, products: Params, key: Key) -> LowRank:
        rank = jax.tree.leaves(model.b)[0].shape[0]
        return begin(key, model._replace(base=added(model.base, model.scale, products)), rank)

    return low_rank(task, local, merge, **rest)
