"""`from_flax`: a Flax module, linen or nnx, as a task; the module stays as it is, and is told whether it
trains.

    training       module(x, train=True), random numbers from the loss's key
    evaluation     module(x, train=False), no random numbers: `predict` and every metric, the metric `loss` among them

The argument may be called `train`, `training`, `is_training` or `deterministic`; give one of another name by
`training=` and `evaluation=`. A module whose dropout never drops is refused. For an nnx module `train()` and
`eval()` are called too. A client trains and sends parameters only, so the module may have no other state but
the running statistics of BatchNorm, if `statistics` says whose they are; those of a pretrained network can be
`constants`.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from fedjax_core import keys
from fedjax_core.models.base import images, like
from fedjax_core.models.batch_norm import STATISTICS, masked
from fedjax_core.models.modes import Modes
from fedjax_core.task import Statistics, Task, check_losses, check_values
from fedjax_core.tree import wide
from fedjax_core.types import Array, Batch, Key, Params

Init = Callable[[Key], Params]
Apply = Callable[..., Any]
"""(params, batch's inputs, its mask, key, method="__call__") -> outputs; in evaluation the key is None."""


def from_flax(
    module: linen.Module | nnx.Module | Callable[..., nnx.Module],
    example_batch: Mapping[str, Any],
    loss: Callable[[Any, Batch], Array],
    *,
    metrics: Callable[[Any, Batch], Mapping[str, Array]] | None = None,
    inputs: Callable[[Batch], Any] = lambda batch: images(batch["x"]),
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | Sequence[str] = (),
    statistics: Literal["personal", "shared"] | None = None,
    features: str | None = None,
) -> Task:
    """The task of a Flax module; raises where the module keeps state or never drops, or the loss is not one
    number an example.

    module: a linen module; an nnx class, or any callable that makes an nnx module from `rngs=`, begun anew
        from the key given to `init`; or an nnx module already made, which every `init` begins from as it now
        is, whatever the key.
    example_batch: columns of which only the shapes and dtypes are looked at.
    loss, metrics: (outputs, batch) -> one number an example, [B], or a dict of such.
    inputs: batch -> what the module is applied to. By default column `x`, uint8 brought to [0, 1]; for bytes
        that are tokens give `lambda batch: batch["x"]`.
    training, evaluation: arguments that tell the module its mode, such as `{"mode": "train"}` and
        `{"mode": "eval"}`.
    constants: the module's state beside its parameters that is used as it is, never trained or sent: of a
        linen module its collections, `{"batch_stats": pretrained["batch_stats"]}`; of an nnx module already
        made, the types of its variables, `["BatchStat"]`.
    statistics: whose the running statistics of a linen module's BatchNorm are. "personal": each client's own
        (FedBN), which no algorithm may send; "shared": averaged as parameters are. Parameters are then what
        Flax calls variables, {"params": ..., "batch_stats": ...}.
    features: the method of the module that gives examples' representations, [B, d], for `Task.features`;
        called as the module itself."""
    if statistics not in (None, "personal", "shared"):
        raise ValueError(
            f"statistics={statistics!r} is not known: 'personal' or 'shared'; for those of a pretrained network, used as they are, give "
            "constants={'batch_stats': ...}"
        )
    example, modes = _example(example_batch), Modes(training or {}, evaluation or {})
    if isinstance(module, linen.Module):
        init, apply, draws = _linen(module, inputs, example, modes, constants, statistics is not None)
    elif statistics is None:
        init, apply, draws = _nnx(module, inputs, example, modes, constants)
    else:
        raise ValueError(
            f"statistics={statistics!r} are of a linen module, for an nnx one cannot be told which rows are padding: make it a "
            "linen module, or replace BatchNorm with GroupNorm"
        )

    def train(params: Params, batch: Batch, key: Key, **how: Any) -> Any:
        return apply(
            params, like(params["params"] if statistics else params, inputs(batch)), batch.mask, key, **how
        )

    def train_loss(params: Params, batch: Batch, key: Key) -> Array:
        return loss(wide(train(params, batch, key)), batch)

    def predict(params: Params, batch: Batch) -> Any:
        return apply(params, inputs(batch), batch.mask, None)

    def evaluate(params: Params, batch: Batch) -> dict[str, Array]:
        outputs = wide(predict(params, batch))
        return {"loss": loss(outputs, batch), **(metrics(outputs, batch) if metrics else {})}

    def after(params: Params, batch: Batch, key: Key) -> Params:
        return {"params": None, STATISTICS: train(params, batch, key, changed=True)}

    task = Task(
        init,
        train_loss,
        evaluate,
        predict,
        features=None
        if features is None
        else lambda params, batch, key: wide(train(params, batch, key, method=features)),
        statistics=Statistics()
        if statistics is None
        else Statistics((STATISTICS,), after, statistics == "personal"),
    )
    _check(task, example)
    _check_dropout(module, draws)
    return task


_DRAWS_IN_EVALUATION = (
    "the module draws random numbers in evaluation: give its __call__ an argument `train` or `deterministic` and obey it, "
    "as in nn.Dropout(0.5, deterministic=not train)(x)"
)
Draws = Callable[[], tuple[list[str], bool]]
"""() -> (layers that are meant to drop, whether any random number is drawn in training)."""


def _linen(
    module: linen.Module, inputs: Callable[[Batch], Any], example: Batch, modes: Modes,
    constants: Mapping[str, Any] | Sequence[str], statistics: bool,
) -> tuple[Init, Apply, Draws]:  # fmt: skip
    if constants and not isinstance(constants, Mapping):
        raise TypeError(
            'constants= of a linen module are its collections by name, such as {"batch_stats": pretrained["batch_stats"]}'
        )
    collections = constants if isinstance(constants, Mapping) else {}
    # on no device until they are needed
    fixed = {name: jax.tree.map(np.asarray, tree) for name, tree in collections.items()}

    def variables(key: Key) -> dict[str, Any]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
        return dict(module.init(key, inputs(zeros), **modes.of(module, train=False)))

    state = {name: tree for name, tree in jax.eval_shape(variables, keys.shape()).items() if name != "params"}
    for name, given in fixed.items():
        shapes = jax.tree.map(jnp.shape, dict(given))
        if name not in state or shapes != jax.tree.map(jnp.shape, dict(state[name])):
            wanted = (
                f"the module keeps {jax.tree.map(jnp.shape, dict(state[name]))} there"
                if name in state
                else f"it keeps {[*state]}"
            )
            raise ValueError(
                f"constants={{{name!r}: ...}} do not fit {type(module).__name__}: {wanted}, and was given {shapes}"
            )
    if statistics and STATISTICS not in state.keys() - fixed.keys():
        raise ValueError(
            f"statistics= are of BatchNorm, and {type(module).__name__} keeps none ({STATISTICS}): leave it out"
        )
    own = ("params", STATISTICS) if statistics else ("params",)
    state = {name: tree for name, tree in state.items() if name not in (*own, *fixed)}
    leaves = jax.tree_util.tree_leaves_with_path(state)
    _refuse_state(
        module, [(p[0].key, jax.tree_util.keystr(p[1:], simple=True, separator="/")) for p, _ in leaves]
    )

    def begin(key: Key) -> Params:
        made = variables(key)
        return {name: made.get(name, {}) for name in own} if statistics else made.get("params", {})

    def apply(
        params: Params, x: Any, mask: Array, key: Key | None, method: str = "__call__", changed: bool = False
    ) -> Any:
        """The outputs; or with `changed` the statistics as training changed them."""
        # Streams of any other name fall back to "params".
        rngs = (
            {}
            if key is None
            else {name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "params"))}
        )
        arguments = modes.of(module, key is not None, method)
        whole = {**(params if statistics else {"params": params}), **fixed}
        if key is None or not statistics:
            return module.apply(whole, x, rngs=rngs, method=method, **arguments)
        with masked(mask):
            outputs, after = module.apply(
                whole, x, rngs=rngs, method=method, mutable=[STATISTICS], **arguments
            )
        return after[STATISTICS] if changed else outputs

    def draws() -> tuple[list[str], bool]:
        dropping: list[str] = []

        def look(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if _rate(context.module) > 0:
                dropping.append(type(context.module).__name__)
            return next_fun(*args, **kwargs)

        def train(params: Params, batch: Batch) -> Any:
            whole = {**(params if statistics else {"params": params}), **fixed}
            mutable = [STATISTICS] if statistics else False
            # without any random numbers
            return module.apply(whole, inputs(batch), mutable=mutable, **modes.of(module, train=True))

        with linen.intercept_methods(look):
            try:
                jax.eval_shape(train, jax.eval_shape(lambda: begin(jax.random.key(0))), example)
            except flax.errors.InvalidRngError:
                return dropping, True
        return dropping, False

    return _compiled(begin), apply, draws


def _compiled(init: Init) -> Init:
    """`init` compiled, as a plain function: JAX cannot look at the shapes of a compiled function that came
    from another process, as those of a cluster's workers do."""
    compiled = jax.jit(init)
    return lambda key: compiled(key)


def _nnx(
    module: nnx.Module | Callable[..., nnx.Module], inputs: Callable[[Batch], Any], example: Batch, modes: Modes,
    constants: Mapping[str, Any] | Sequence[str],
) -> tuple[Init, Apply, Draws]:  # fmt: skip
    made = isinstance(module, nnx.Module)
    if not made and (not callable(module) or (inspect.isclass(module) and issubclass(module, linen.Module))):
        raise TypeError(
            f"from_flax() needs a linen or nnx module, or a callable that makes an nnx module from rngs=, got {module!r}"
        )
    model = module if made else module(rngs=nnx.Rngs(0))
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"from_flax() called {module!r} with rngs=, which gave a {type(model).__name__}, not an nnx.Module"
        )
    graph, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, rngs, rest = states
    if constants and (not made or isinstance(constants, (str, Mapping))):
        raise TypeError(
            'constants= of an nnx module, which has to be one already made, are the types of its variables: ["BatchStat"]'
        )
    kept = [
        (path, leaf)
        for path, leaf in nnx.to_flat_state(rest)  # a plain array is a constant
        if isinstance(leaf, nnx.Variable) and type(leaf).__name__ not in constants
    ]
    _refuse_state(model, [(type(leaf).__name__, "/".join(map(str, path))) for path, leaf in kept])
    shapes = jax.eval_shape(lambda: params)
    streams = sorted({leaf.tag for _, leaf in nnx.to_flat_state(rngs)})

    def init(key: Key) -> Params:
        return _values(nnx.state(module(rngs=nnx.Rngs(key)), nnx.Param))

    def apply(values: Params, x: Any, mask: Array, key: Key | None, method: str = "__call__") -> Any:
        params = nnx.from_flat_state(
            [(path, leaf.replace(values[_name(path)])) for path, leaf in nnx.to_flat_state(shapes)]
        )
        # reseeding changes streams in place: not those of another trace
        fresh = jax.tree.map(lambda leaf: leaf, rngs)
        model = nnx.merge(graph, params, fresh, rest)
        tell(model, train=key is not None)
        if key is not None:
            draws: dict[str, Any] = {tag: jax.random.fold_in(key, i) for i, tag in enumerate(streams)}
            nnx.reseed(model, policy="match_shape", **draws)
        return getattr(model, method)(x, **modes.of(model, key is not None, method))

    def tell(model: Any, train: bool) -> None:
        """Tells the model whether it trains; constant statistics are used as they are in any case."""
        if train:
            model.train()
            if constants:
                model.set_attributes(nnx.BatchNorm, use_running_average=True, raise_if_not_found=False)
        else:
            model.eval()

    def draws() -> tuple[list[str], bool]:
        dropping = [type(part).__name__ for _, part in nnx.iter_modules(model) if _rate(part) > 0]
        drawn: dict[bool, bool] = {}

        def call(train: bool, params: Any, rngs: Any, batch: Batch) -> None:
            called = nnx.merge(graph, params, rngs, rest)
            tell(called, train)
            before = _counts(called)
            called(inputs(batch), **modes.of(called, train=train))
            drawn[train] = any(a is not b for a, b in zip(before, _counts(called), strict=True))

        for train in (True, False):
            jax.eval_shape(partial(call, train), params, rngs, example)
        if drawn[False]:
            raise ValueError(_DRAWS_IN_EVALUATION)
        return dropping, drawn[True]

    if not made:
        return _compiled(init), apply, draws
    begin = _values(params)
    # copies, for a simulator may donate what it is given
    return (
        (lambda key: jax.tree.map(jnp.copy, begin)),
        apply,
        draws,
    )


def _counts(model: nnx.Module) -> list[Any]:
    """The number of draws from each of the module's random streams."""
    return [leaf.get_value() for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.RngCount))]


def _rate(layer: Any) -> float:
    """The share that a layer is meant to drop; 0 if it drops nothing."""
    rate = getattr(layer, "rate" if isinstance(layer, (linen.Dropout, nnx.Dropout)) else "dropout_rate", 0.0)
    return float(rate) if isinstance(rate, (int, float)) else 0.0


def _check_dropout(module: Any, draws: Draws) -> None:
    """Raises where layers are meant to drop but training draws no random numbers."""
    dropping, drawn = draws()
    if dropping and not drawn:
        kind = module if inspect.isclass(module) else type(module)
        raise ValueError(
            f"{kind.__name__} has dropout ({dropping[0]}), and none of it drops in training: from_flax says that it trains by an argument "
            "train, training, is_training or deterministic of its __call__. Where the argument has another name, give it: "
            "from_flax(..., training={'mode': 'train'}, evaluation={'mode': 'eval'})"
        )


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _values(state: Any) -> dict[str, Array]:
    return {_name(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _refuse_state(module: Any, kept: Iterable[tuple[str, str]]) -> None:
    """Raises if there is anything in `kept`: (kind, path) of the module's state beside parameters and random
    streams."""
    paths_of: dict[str, list[str]] = {}
    for kind, path in kept:
        paths_of.setdefault(kind, []).append(path)
    if paths_of:
        names = "; ".join(
            f"{kind}: {', '.join(paths[:3])}{', …' if len(paths) > 3 else ''}"
            for kind, paths in sorted(paths_of.items())
        )
        raise ValueError(
            f"{type(module).__name__} keeps state beside its parameters ({names}), which a federated task cannot have: each client's "
            "running statistics describe its own data, and their average describes nobody's. Normalise each example by itself: "
            "replace BatchNorm with GroupNorm or LayerNorm, and turn other variables into parameters or inputs. The statistics of a "
            "pretrained network, used as they are, can be given as constants={'batch_stats': ...}, and those of a linen module can be each "
            "client's own, or averaged all the same: statistics='personal' or 'shared'."
        )


def _example(columns: Mapping[str, Any]) -> Batch:
    """The shapes of a batch of two examples with these columns: two, to tell a scalar or a sum from a loss an
    example."""
    if not isinstance(columns, Mapping):
        raise TypeError(
            f'example_batch is a dict of columns such as {{"x": ..., "y": ...}}, got a {type(columns).__name__}'
        )

    def rows(x: Any) -> jax.ShapeDtypeStruct:
        x = x if hasattr(x, "shape") and hasattr(x, "dtype") else np.asarray(x)
        return jax.ShapeDtypeStruct((2, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))

    columns = columns.columns if isinstance(columns, Batch) else dict(columns)
    return Batch(jax.tree.map(rows, columns), jax.ShapeDtypeStruct((2,), jnp.float32))  # type: ignore[arg-type]


def _check(task: Task, example: Batch) -> None:
    """Raises unless training and evaluation can be traced and give one number an example."""
    key = keys.shape()
    params = jax.eval_shape(task.init, key)
    try:
        check_losses(jax.eval_shape(task.loss, params, example, key), 2)
    except (flax.errors.ModifyScopeVariableError, flax.errors.TraceContextError) as error:
        raise ValueError(
            "the module changes its constants in training, and there they are used as they are: make it with "
            "nn.BatchNorm(use_running_average=True), or have it told so by training={...}"
        ) from error
    try:
        values = jax.eval_shape(task.evaluation, params, example)
    except flax.errors.InvalidRngError as error:
        raise ValueError(_DRAWS_IN_EVALUATION) from error
    except flax.errors.ModifyScopeVariableError as error:
        raise ValueError(
            "the module changes its statistics in evaluation: give its __call__ an argument train and obey it, as in "
            "nn.BatchNorm(use_running_average=not train)(x)"
        ) from error
    check_values(values, 2)
    if task.features is not None:
        shape = jax.eval_shape(task.features, params, example, key)
        if len(shape.shape) != 2 or shape.shape[0] != 2:
            raise ValueError(
                f"features= must give a vector an example, [B, d], and gives {list(shape.shape)} for 2 examples: flatten it"
            )
