"""A Flax module, linen or nnx, as a task: the module stays as it is, and the task says how training and evaluation call it.

    training       module(x, train=True), random numbers from the loss's key
    evaluation     module(x, train=False), no random numbers: `predict` and every metric, the metric `loss` among them

The argument may be called `train`, `training`, `is_training` or `deterministic`; an nnx module also has its `train()` and
`eval()`. Parameters are all that a client trains and sends, so a module may keep nothing else.

>>> import jax.numpy as jnp, optax
>>> from flax import linen as nn
>>> example = {"x": jnp.zeros((2, 4)), "y": jnp.zeros(2, jnp.int32)}
>>> losses = lambda outputs, batch: optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"])
>>> task = from_flax(nn.Dense(3), example, loss=losses)
>>> jax.tree.map(jnp.shape, task.init(jax.random.key(0)))
{'bias': (3,), 'kernel': (4, 3)}
>>> from_flax(nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=False)]), example, loss=losses)
Traceback (most recent call last):
ValueError: Sequential keeps state beside its parameters (batch_stats: layers_1/mean, layers_1/var), ...
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from fedjax_core.models.base import images, like
from fedjax_core.task import Task, check_losses, check_values
from fedjax_core.tree import wide
from fedjax_core.types import Array, Batch, Key, Params

Init = Callable[[Key], Params]
Apply = Callable[[Params, Any, Key | None], Any]
"""(params, inputs, key) -> outputs; in evaluation the key is None."""


def from_flax(
    module: linen.Module | nnx.Module | Callable[..., nnx.Module],
    example_batch: Mapping[str, Any],
    loss: Callable[[Any, Batch], Array],
    *,
    metrics: Callable[[Any, Batch], Mapping[str, Array]] | None = None,
    inputs: Callable[[Batch], Any] = lambda batch: images(batch["x"]),
) -> Task:
    """The task of a Flax module; raises where the module keeps state, or the loss is not one number an example.

    module: a linen module; an nnx class, or any callable that makes an nnx module from `rngs=`, begun anew from the key given to
        `init`; or an nnx module already made, which every `init` begins from as it now is, whatever the key.
    example_batch: columns of which only the shapes and dtypes are looked at.
    loss, metrics: (outputs, batch) -> one number an example, [B], or a dict of such.
    inputs: batch -> what the module is applied to. By default column `x`, uint8 brought to [0, 1]; for bytes that are
        tokens give `lambda batch: batch["x"]`.
    """
    example = _example(example_batch)
    init, apply = _linen(module, inputs, example) if isinstance(module, linen.Module) else _nnx(module)

    def train_loss(params: Params, batch: Batch, key: Key) -> Array:
        return loss(wide(apply(params, like(params, inputs(batch)), key)), batch)

    def evaluate(params: Params, batch: Batch) -> dict[str, Array]:
        outputs = wide(apply(params, inputs(batch), None))
        return {"loss": loss(outputs, batch), **(metrics(outputs, batch) if metrics else {})}

    task = Task(init, train_loss, evaluate, predict=lambda params, batch: apply(params, inputs(batch), None))
    _check(task, example)
    return task


def _linen(module: linen.Module, inputs: Callable[[Batch], Any], example: Batch) -> tuple[Init, Apply]:
    def variables(key: Key) -> dict[str, Any]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
        return dict(module.init(key, inputs(zeros), **_mode(module, train=False)))

    state = {name: tree for name, tree in jax.eval_shape(variables, jax.random.key(0)).items() if name != "params"}
    leaves = jax.tree_util.tree_leaves_with_path(state)
    _refuse_state(module, [(p[0].key, jax.tree_util.keystr(p[1:], simple=True, separator="/")) for p, _ in leaves])

    def apply(params: Params, x: Any, key: Key | None) -> Any:
        # Streams of any other name fall back to "params".
        rngs = {} if key is None else {name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "params"))}
        return module.apply({"params": params}, x, rngs=rngs, **_mode(module, train=key is not None))

    return jax.jit(lambda key: variables(key).get("params", {})), apply


def _nnx(module: nnx.Module | Callable[..., nnx.Module]) -> tuple[Init, Apply]:
    made = isinstance(module, nnx.Module)
    if not made and (not callable(module) or (inspect.isclass(module) and issubclass(module, linen.Module))):
        raise TypeError(f"from_flax() needs a linen or nnx module, or a callable that makes an nnx module from rngs=, got {module!r}")
    model = module if made else module(rngs=nnx.Rngs(0))
    if not isinstance(model, nnx.Module):
        raise TypeError(f"from_flax() called {module!r} with rngs=, which gave a {type(model).__name__}, not an nnx.Module")
    graph, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, rngs, rest = states
    kept = [(path, leaf) for path, leaf in nnx.to_flat_state(rest) if isinstance(leaf, nnx.Variable)]  # a plain array is a constant
    _refuse_state(model, [(type(leaf).__name__, "/".join(map(str, path))) for path, leaf in kept])
    shapes = jax.eval_shape(lambda: params)
    streams = sorted({leaf.tag for _, leaf in nnx.to_flat_state(rngs)})

    def init(key: Key) -> Params:
        return _values(nnx.state(module(rngs=nnx.Rngs(key)), nnx.Param))

    def apply(values: Params, x: Any, key: Key | None) -> Any:
        params = nnx.from_flat_state([(path, leaf.replace(values[_name(path)])) for path, leaf in nnx.to_flat_state(shapes)])
        fresh = jax.tree.map(lambda leaf: leaf, rngs)  # reseeding changes streams in place: not those of another trace
        model = nnx.merge(graph, params, fresh, rest)
        if key is None:
            model.eval()
        else:
            model.train()
            keys: dict[str, Any] = {tag: jax.random.fold_in(key, i) for i, tag in enumerate(streams)}
            nnx.reseed(model, policy="match_shape", **keys)
        return model(x, **_mode(model, train=key is not None))

    if not made:
        return jax.jit(init), apply
    begin = _values(params)
    return (lambda key: jax.tree.map(jnp.copy, begin)), apply  # copies, for a simulator may donate what it is given


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _values(state: Any) -> dict[str, Array]:
    return {_name(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _mode(module: Any, train: bool) -> dict[str, Any]:
    """The arguments by which the module's `__call__` is told that it trains."""
    named = {"train": train, "training": train, "is_training": train, "deterministic": not train}
    accepted = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in named.items() if name in accepted}


def _refuse_state(module: Any, kept: Iterable[tuple[str, str]]) -> None:
    """Raises if anything is `kept`: (kind, path) of what the module holds beside parameters and random streams."""
    found: dict[str, list[str]] = {}
    for kind, path in kept:
        found.setdefault(kind, []).append(path)
    if found:
        names = "; ".join(f"{kind}: {', '.join(paths[:3])}{', …' if len(paths) > 3 else ''}" for kind, paths in sorted(found.items()))
        raise ValueError(
            f"{type(module).__name__} keeps state beside its parameters ({names}), which a federated task cannot have: each client's "
            "running statistics describe its own data, and their average describes nobody's. Normalise each example by itself: "
            "replace BatchNorm with GroupNorm or LayerNorm, and turn other variables into parameters or inputs."
        )


def _example(columns: Mapping[str, Any]) -> Batch:
    """The shapes of a batch of two examples with these columns: two, so that a scalar or a sum is told from a loss an example."""
    if not isinstance(columns, Mapping):
        raise TypeError(f'example_batch is a dict of columns such as {{"x": ..., "y": ...}}, got a {type(columns).__name__}')

    def rows(x: Any) -> jax.ShapeDtypeStruct:
        x = x if hasattr(x, "shape") and hasattr(x, "dtype") else np.asarray(x)
        return jax.ShapeDtypeStruct((2, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))

    columns = columns.columns if isinstance(columns, Batch) else dict(columns)
    return Batch(jax.tree.map(rows, columns), jax.ShapeDtypeStruct((2,), jnp.float32))  # type: ignore[arg-type]


def _check(task: Task, example: Batch) -> None:
    """Raises unless training and evaluation can be traced and give one number an example."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(task.init, key)
    check_losses(jax.eval_shape(task.loss, params, example, key), 2)
    try:
        found = jax.eval_shape(task.evaluation, params, example)
    except flax.errors.InvalidRngError as error:
        raise ValueError(
            "the module draws random numbers in evaluation: give its __call__ an argument `train` or `deterministic` and obey it, "
            "as in nn.Dropout(0.5, deterministic=not train)(x)"
        ) from error
    check_values(found, 2)
