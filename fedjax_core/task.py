"""A task is all that an algorithm knows of a model: how it begins, and each example's loss.

>>> import jax, jax.numpy as jnp
>>> task = Task(init=lambda key: jnp.zeros(2), loss=lambda w, batch, key: (batch["x"] @ w - batch["y"]) ** 2)
>>> batch = Batch({"x": jnp.eye(2), "y": jnp.array([1.0, 9.0])}, mask=jnp.array([1.0, 0.0]))
>>> float(task.mean_loss(jnp.zeros(2), batch, jax.random.key(0)))
1.0
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.types import Array, Batch, Columns, Key, Params


class Task(NamedTuple):
    """A model and what it is judged by. Batches are read as their columns, `batch["x"]`, and know their `mask`."""

    init: Callable[[Key], Params]
    loss: Callable[[Params, Batch, Key], Array]
    """(params, batch, key) -> [B] floating: one loss an example. The engine masks padding and takes the mean."""
    metrics: Callable[[Params, Batch], Mapping[str, Array]] | None = None
    """(params, batch) -> a value an example, {name: [B]}, for evaluation. Where it has no `loss`, that is `loss` with a fixed key."""
    predict: Callable[[Params, Batch], Array] | None = None
    """(params, batch) -> [B, ...]: the model's outputs in evaluation (logits, log risks), for metrics made on the host."""
    check: Callable[[Any], None] | None = None
    """(clients) -> None: raises where the data cannot be meant for this model (a label out of range). Simulators call it once."""
    classes: int | None = None
    """How many classes the labels are of, where they are of some: a site that lacks one has none of its examples (`minimum.per_class`)."""

    def mean_loss(self, params: Params, batch: Batch, key: Key) -> Array:
        """The mean loss over the examples that are not padding: what a local step differentiates."""
        losses = jnp.where(batch.mask > 0, tree.wide(self.loss(params, batch, key)), 0)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(batch.mask), 1).astype(losses.dtype)

    def evaluation(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Every metric's value an example, {name: [B]}, `loss` first."""
        found = dict(self.metrics(params, batch)) if self.metrics else {}
        loss = found.pop("loss") if "loss" in found else self.loss(params, batch, jax.random.key(0))
        return {"loss": loss, **found}


def check_task(task: Task, columns: Columns, batch_size: int) -> None:
    """Raises where the task does not fit the columns: a loss of another shape than [B], or one that cannot be traced."""
    if not isinstance(task, Task):
        raise TypeError(f"expected a Task, got {type(task).__name__}: build one with fc.Task(init=..., loss=...) or fc.models")
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)), columns)
    mask: Any = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
    batch = Batch(rows, mask)
    key = jax.eval_shape(lambda: jax.random.key(0))
    check_losses(jax.eval_shape(task.loss, jax.eval_shape(task.init, key), batch, key), batch_size)


def check_losses(losses: Any, batch_size: int) -> None:
    """Raises unless `losses` is one floating number an example."""
    shape, dtype = getattr(losses, "shape", None), getattr(losses, "dtype", None)
    if shape != (batch_size,) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        was = f"shape {shape} and dtype {dtype}" if shape is not None else f"a {type(losses).__name__}"
        raise ValueError(
            f"the task's loss must return one floating number an example, shape ({batch_size},) here, but returned {was}. "
            "Leave the mean to the engine, which must mask padding: return the per-example losses before any .mean() or .sum()."
        )
