"""One affine map: multinomial or binary logistic regression, and least squares.

    logits = x @ w + b

All parameters begin at zero: the problems are convex, so nothing need be drawn.

>>> import jax
>>> task = logistic(features=60, classes=10)
>>> jax.tree.map(jax.numpy.shape, task.init(jax.random.key(0)))
{'b': (10,), 'w': (60, 10)}
"""

import jax.numpy as jnp

from fedjax_core.models.base import POSITIVE_LOSS, classifier, flat, like
from fedjax_core.task import Task
from fedjax_core.tree import wide
from fedjax_core.types import Array, Batch, Key, Params


def logistic(features: int, classes: int) -> Task:
    """Logistic regression on columns `x` and `y`; parameters {"w": [features, classes], "b": [classes]}.

    `classes=1` has one logit, for labels 0 and 1; two classes or more have a logit each, for labels
    0..classes-1."""
    if features < 1 or classes < 1:
        raise ValueError(
            f"logistic() needs features and classes of at least 1, got features={features}, classes={classes}"
        )

    def init(key: Key) -> Params:
        return {"w": jnp.zeros((features, classes)), "b": jnp.zeros(classes)}

    def logits(params: Params, batch: Batch) -> Array:
        outputs = like(params, flat(batch["x"], features)) @ params["w"] + params["b"][None, :]
        return outputs[:, 0] if classes == 1 else outputs

    return classifier(init, logits, classes)


def linear(features: int) -> Task:
    """Least squares on columns `x` and `y`: loss (x @ w + b - y)^2 an example; parameters {"w": [features],
    "b": []}."""
    if features < 1:
        raise ValueError(f"linear() needs features of at least 1, got {features}")

    def init(key: Key) -> Params:
        return {"w": jnp.zeros(features), "b": jnp.zeros(())}

    def predict(params: Params, batch: Batch) -> Array:
        return wide(like(params, flat(batch["x"], features)) @ params["w"] + params["b"])

    def loss(params: Params, batch: Batch, key: Key) -> Array:
        return jnp.square(predict(params, batch) - batch["y"].astype(jnp.float32))

    return Task(init, loss, predict=predict, ranges=(POSITIVE_LOSS,))
