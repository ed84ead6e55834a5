"""A task, which is all that an algorithm knows of a model: its first parameters, and each example's loss.

>>> import jax, jax.numpy as jnp
>>> task = Task(init=lambda key: jnp.zeros(2), loss=lambda w, batch, key: (batch["x"] @ w - batch["y"]) ** 2)
>>> batch = Batch({"x": jnp.eye(2), "y": jnp.array([1.0, 9.0])}, mask=jnp.array([1.0, 0.0]))
>>> float(task.mean_loss(jnp.zeros(2), batch, jax.random.key(0)))
1.0
"""

import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import keys, tree
from fedjax_core.constants import Constants
from fedjax_core.types import Array, Batch, Columns, Key, Params

Range = tuple[str, float, float]
"""(metric, the least value that an example can have, the largest)."""


class Statistics(NamedTuple):
    """The leaves of a model that are moved by batches and not by gradients: the running means and variances
    of BatchNorm."""

    names: tuple[str, ...] = ()
    """The names of these leaves, as for `fedjax_core.tree.partition`; () where a model has none."""
    update: Callable[[Params, Batch, Key], Params] = lambda params, batch, key: params
    """(params, batch, key) -> these leaves after a local step on the batch, None in the place of all
    others."""
    personal: bool = False
    """Whether they describe each client's own data and must not leave it: `compose` then refuses an algorithm
    that sends them."""


class Task(NamedTuple):
    """A model with its loss and metrics. Batches are read as their columns, `batch["x"]`, and have a
    `mask`."""

    init: Callable[[Key], Params]
    loss: Callable[[Params, Batch, Key], Array]
    """(params, batch, key) -> [B] floating: one loss an example. The engine masks padding and takes the
    mean."""
    metrics: Callable[[Params, Batch], Mapping[str, Array]] | None = None
    """(params, batch) -> a value an example, {name: [B]}, for evaluation. Where it has no `loss`, that is
    `loss` with a fixed key."""
    predict: Callable[[Params, Batch], Array] | None = None
    """(params, batch) -> [B, ...]: the model's outputs in evaluation (logits, log risks), for metrics made on
    the host."""
    check: Callable[[Any], None] | None = None
    """(clients) -> None: raises where the data cannot be meant for this model (a label out of range).
    Simulators and sites call it once."""
    classes: int | None = None
    """The number of classes of the labels, if there are classes: a site without examples of one has too few
    of it (`minimum.per_class`)."""
    ranges: tuple[Range, ...] = ()
    """The bounds of metrics of one example, as in `(("accuracy", 0, 1),)`: what a site reports beyond them is
    not believed."""

    people: tuple[str, ...] = ()
    """Metrics that are 1 for some examples and 0 for the others, so that their sum counts people: a site tells
    none of fewer than its `minimum.cell`, but for nobody."""
    features: Callable[[Params, Batch, Key], Array] | None = None
    """(params, batch, key) -> [B, d] floating: the model's features of each example, before its last layer,
    in training."""
    statistics: Statistics = Statistics()
    """The leaves that batches move, and not gradients."""
    constants: tuple[Constants, ...] = ()
    """The constants that the functions above read with `now`, such as a frozen body: every backend passes
    them to its programs as arguments."""

    def reading(
        self, constants: Constants, whole: Callable[[Params], Params], init: Callable[[Key], Params]
    ) -> "Task":
        """The task with parameters made by `init`, which computes as this one does with `whole(params)`, and
        reads these constants."""
        loss, metrics, predict, features = self.loss, self.metrics, self.predict, self.features
        return self._replace(
            init=init,
            loss=lambda params, batch, key: loss(whole(params), batch, key),
            metrics=None if metrics is None else lambda params, batch: metrics(whole(params), batch),
            predict=None if predict is None else lambda params, batch: predict(whole(params), batch),
            features=None
            if features is None
            else lambda params, batch, key: features(whole(params), batch, key),
            constants=(*self.constants, constants),
        )

    def mean_loss(self, params: Params, batch: Batch, key: Key) -> Array:
        """The mean loss over the examples that are not padding: what a local step differentiates."""
        losses = jnp.where(batch.mask > 0, tree.wide(self.loss(params, batch, key)), 0)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(batch.mask), 1).astype(losses.dtype)

    def evaluation(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Every metric's value an example, {name: [B]}, `loss` first."""
        values = dict(self.metrics(params, batch)) if self.metrics else {}
        loss = values.pop("loss") if "loss" in values else self.loss(params, batch, jax.random.key(0))
        return {"loss": loss, **values}


def check_task(task: Task, columns: Columns, batch_size: int, *, params: Params | None = None) -> None:
    """Raises where a function of the task does not return what it must for such columns; only their shapes
    matter.

    Parameters are floating, the loss is [B] floating, every metric is [B], and predictions are [B, ...].
    Nothing is computed. With `params`, only what an evaluation of these needs is checked.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"expected a Task, got {type(task).__name__}: build one with fc.Task(init=..., loss=...) or fc.models"
        )
    key = keys.shape()
    training = params is None
    params = jax.eval_shape(task.init, key) if params is None else jax.eval_shape(lambda: params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"the task's init gives parameter {jax.tree_util.keystr(path) or 'array'} of dtype {leaf.dtype}, and a gradient trains "
                "only floating ones: make it floating, or keep it out of init and close over it"
            )
    # A number of rows that no other axis has, so that a shape is not right by chance.
    taken = {1, *(n for x in jax.tree.leaves(columns) for n in x.shape[1:])}
    size = next(size for size in itertools.count(batch_size, batch_size) if size not in taken)
    batch = _rows(columns, size)

    def check_all(batch: Batch) -> None:
        if training:
            check_losses(jax.eval_shape(task.loss, params, batch, key), size)
        check_values(jax.eval_shape(task.evaluation, params, batch), size)
        if training and task.predict is not None:
            check_predictions(jax.eval_shape(task.predict, params, batch), size)
        if training:
            _check_statistics(task, params, batch, key)

    try:
        check_all(batch)
    except KeyError as error:
        if not isinstance(columns, Mapping) or error.args[:1] == () or error.args[0] in columns:
            raise
        names = ", ".join(map(repr, columns))
        raise ValueError(
            f"the task looks up {error}, which is not there: the data have the columns {names}; name them alike"
        ) from error
    except Exception as error:
        if (way_out := _one_axis_too_many(check_all, batch)) is not None:
            raise ValueError(way_out) from error
        raise


def _check_statistics(task: Task, params: Params, batch: Batch, key: Key) -> None:
    """Raises unless `update` gives the leaves that `names` names, of the shapes they have."""
    names, update, _ = task.statistics
    expected, others = tree.partition(params, names)
    if names:
        updated = jax.eval_shape(
            lambda p, batch, key: tree.combine(update(p, batch, key), p), params, batch, key
        )
        if tree.shapes(tree.partition(updated, names)) != tree.shapes((expected, others)):
            raise ValueError(
                f"statistics.update of the task must give the leaves {', '.join(map(repr, tree.names(expected)))} as they are in the "
                "parameters, with None in the place of all others, and gives other shapes"
            )


def _rows(columns: Columns, size: int) -> Batch:
    """The shapes of a batch of `size` rows."""
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)), columns
    )
    return Batch(rows, jax.ShapeDtypeStruct((size,), jnp.float32))  # type: ignore[arg-type]


def _one_axis_too_many(check_all: Callable[[Batch], None], batch: Batch) -> str | None:
    """The way out, in words, if the task would be right with columns [n] instead of [n, 1]; else None."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(batch.columns)
    narrow = [i for i, (_, x) in enumerate(leaves) if len(x.shape) > 1 and x.shape[-1] == 1]
    for chosen in (*([i] for i in narrow), narrow):
        tried = [x.update(shape=x.shape[:-1]) if i in chosen else x for i, (_, x) in enumerate(leaves)]
        with contextlib.suppress(Exception):
            check_all(Batch(jax.tree.unflatten(structure, tried), batch.mask))
            return "; ".join(_drop_axis(*leaves[i]) for i in chosen)
    return None


def _drop_axis(path: Any, column: Any) -> str:
    name, axes = jax.tree_util.keystr(path, simple=True, separator="."), len(column.shape)
    inner = ", ".join(["n", *["..."] * (axes > 2)])
    return (
        f"column {name!r} has shape [{inner}, 1], and the task needs [{inner}]: with one axis more, every example would meet every other. "
        f"Pass {name}[{'..., 0' if axes > 2 else ':, 0'}]"
    )


def check_losses(losses: Any, batch_size: int) -> None:
    """Raises unless `losses` is one floating number an example."""
    shape, dtype = getattr(losses, "shape", None), getattr(losses, "dtype", None)
    if shape != (batch_size,) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        was = f"shape {shape} and dtype {dtype}" if shape is not None else f"a {type(losses).__name__}"
        raise ValueError(
            f"the task's loss must return one floating number an example, shape ({batch_size},) here, but returned {was}. "
            "Leave the mean to the engine, which must mask padding: return the per-example losses before any .mean() or .sum()."
            + _all_pairs(shape, batch_size)
        )


def check_values(values: Any, batch_size: int) -> None:
    """Raises unless `values`, of an evaluation, are one number an example by name."""
    if not isinstance(values, Mapping):
        raise ValueError(
            f"the task's metrics must be a dict of one number an example each, but are a {type(values).__name__}"
        )
    for name, value in values.items():
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if (
            shape != (batch_size,)
            or dtype is None
            or not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_)
        ):
            was = f"shape {shape} and dtype {dtype}" if shape is not None else f"is a {type(value).__name__}"
            raise ValueError(
                f"the metric {name!r} must be one number an example, shape ({batch_size},) here, but has {was}: leave the mean to the "
                "engine, and give several numbers an example several names." + _all_pairs(shape, batch_size)
            )


def check_predictions(outputs: Any, batch_size: int) -> None:
    """Raises unless the model's `outputs` have a row an example."""
    shape = getattr(outputs, "shape", None)
    if not shape or shape[0] != batch_size:
        was = f"has shape {shape}" if shape is not None else f"is a {type(outputs).__name__}"
        raise ValueError(
            f"what predict returns must have a row an example, shape ({batch_size}, ...) here, but it {was}"
        )


def _all_pairs(shape: Any, batch_size: int) -> str:
    if shape != (batch_size, batch_size):
        return ""
    return (
        " Every example met every other: an array [B, 1] was joined with one [B]; take [:, 0] of the first."
    )
