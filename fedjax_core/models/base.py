"""Shared parts of the models: inputs as floats, and the losses and metrics of one example, for these tasks
and for your own Flax modules.

>>> import jax.numpy as jnp
>>> cross_entropy(jnp.zeros((2, 4)), jnp.array([3, 0])).tolist() == [jnp.log(4.0)] * 2
True
>>> images(jnp.array([[0, 255]], jnp.uint8)).tolist()
[[0.0, 1.0]]
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_core.task import Task
from fedjax_core.tree import wide
from fedjax_core.types import Array, Batch, Key, Params

POSITIVE_LOSS = ("loss", 0.0, math.inf)
"""The range of a loss that is never below zero."""


def images(x: Array) -> Array:
    """`x` with uint8 scaled to floats in [0, 1]; any other dtype is left as it is."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def like(params: Params, x: Any) -> Any:
    """`x` with its floating leaves in the dtype of the floating parameters, in which the model is
    computed."""
    dtypes = {p.dtype for p in jax.tree.leaves(params) if jnp.issubdtype(p.dtype, jnp.floating)}
    if len(dtypes) != 1:
        return x
    (dtype,) = dtypes
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, x)


def flat(x: Array, features: int) -> Array:
    """`x` [B, ...] as float32 [B, features], uint8 scaled to [0, 1]; raises where the number of features
    differs."""
    size = x.size // max(x.shape[0], 1)
    if size != features:
        raise ValueError(
            f'the model was built for {features} features, but batch["x"] has {size} an example (shape {x.shape}). '
            f"Build it with features={size}."
        )
    return images(x).astype(jnp.float32).reshape(x.shape[0], features)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label] for each example: logits [B, C], labels [B] of any dtype.

    NaN where a label is outside 0..C-1, or not a whole number, so that a wrong label cannot pass for a
    perfect answer."""
    # A comparison, not a gather: logistic 60x10, B=10 on a 2-core x86 does 3.4 M examples/s in 4 lanes and 4.0 M in
    # 64 either way, but with uint8 labels the gather falls to 2.6 M in 4 lanes.
    classes = logits.shape[-1]
    whole, labels = _is_whole(labels), labels.astype(jnp.int32)
    shifted = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    hit = labels[:, None] == jnp.arange(classes, dtype=jnp.int32)[None, :]
    chosen = jnp.where(
        whole & (labels >= 0) & (labels < classes), jnp.where(hit, shifted, 0).sum(-1), jnp.nan
    )
    return jnp.log(jnp.exp(shifted).sum(-1)) - chosen


def _is_whole(labels: Array) -> Array | bool:
    """A mask of the labels that are whole numbers; all are for an integer dtype."""
    return labels == jnp.round(labels) if jnp.issubdtype(labels.dtype, jnp.floating) else True


def binary_cross_entropy(logits: Array, labels: Array) -> Array:
    """-log of the probability that sigmoid(logit) gives to each example's label, 0 or 1: both [B]. NaN for
    any other label."""
    labels = labels.astype(logits.dtype)
    return jax.nn.softplus(logits) - jnp.where((labels == 0) | (labels == 1), labels, jnp.nan) * logits


def accuracy(logits: Array, labels: Array) -> Array:
    """1 where the largest logit (or for logits [B] the sign) is that of the label, else 0: [B]."""
    guess = (logits > 0).astype(jnp.int32) if logits.ndim == 1 else logits.argmax(-1).astype(jnp.int32)
    return (_is_whole(labels) & (guess == labels.astype(jnp.int32))).astype(jnp.float32)


def classifier(init: Callable[[Key], Params], logits: Callable[[Params, Batch], Array], classes: int) -> Task:
    """The task of a model without randomness: logits [B, C] for C classes, or [B] if `classes` is 1 (labels 0
    and 1); labels in `y`."""

    def losses(outputs: Array, batch: Batch) -> Array:
        return (binary_cross_entropy if outputs.ndim == 1 else cross_entropy)(outputs, batch["y"])

    def loss(params: Params, batch: Batch, key: Key) -> Array:
        return losses(wide(logits(params, batch)), batch)

    def metrics(params: Params, batch: Batch) -> dict[str, Array]:
        outputs = wide(logits(params, batch))
        return {"loss": losses(outputs, batch), "accuracy": accuracy(outputs, batch["y"])}

    ranges = (POSITIVE_LOSS, ("accuracy", 0.0, 1.0))
    return Task(init, loss, metrics, logits, labels_below(max(classes, 2)), max(classes, 2), ranges)


def labels_below(classes: int) -> Callable[[Any], None]:
    """A task's `check` that the labels in column `y` are whole numbers from 0 to classes - 1, in any
    dtype."""

    def check(clients: Any) -> None:
        if "y" in clients.columns:  # else it is the shapes that are wrong
            clients.check_labels("y", classes)

    return check
