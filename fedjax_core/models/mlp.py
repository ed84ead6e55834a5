"""A multilayer perceptron with ReLU between its layers, as plain matrix products: they run vmapped over lanes
inside compiled loops.

>>> import jax
>>> task = mlp(features=784, hidden=(200, 200), classes=10)
>>> sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))
199210
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp

from fedjax_core.models.base import classifier, flat, like
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params


def mlp(features: int, hidden: Sequence[int] = (32,), *, classes: int) -> Task:
    """A classifier on columns `x` and `y`; parameters a list of {"w": [in, out], "b": [out]}, begun as Flax
    begins its `Dense`.

    `classes=1` has one logit, for labels 0 and 1, as in `logistic`.
    """
    sizes = (features, *hidden, classes)
    if min(sizes) < 1:
        raise ValueError(f"mlp() needs features, hidden sizes and classes of at least 1, got {sizes}")
    weights = jax.nn.initializers.lecun_normal()

    def init(key: Key) -> Params:
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            {"w": weights(k, (m, n)), "b": jnp.zeros(n)}
            for k, (m, n) in zip(keys, pairwise(sizes), strict=True)
        ]

    def logits(params: Params, batch: Batch) -> Array:
        x = like(params, flat(batch["x"], features))
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"][None, :])
        x = x @ params[-1]["w"] + params[-1]["b"][None, :]
        return x[:, 0] if classes == 1 else x

    return classifier(init, logits, classes)
