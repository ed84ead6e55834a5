"""`to_nnx`: puts trained parameters back into the nnx module that a task was made from.

>>> import jax
>>> from fedjax_core.models.from_flax import from_flax
>>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
>>> example = {"x": jnp.zeros((2, 2)), "y": jnp.zeros((2, 3))}
>>> task = from_flax(linear, example, loss=lambda outputs, batch: ((outputs - batch["y"]) ** 2).sum(axis=1))
>>> trained = jax.tree.map(lambda x: x + 1, task.init(jax.random.key(0)))
>>> to_nnx(linear, trained)(jnp.ones((1, 2))).shape
(1, 3)
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from fedjax_core.types import Params


def to_nnx(module: nnx.Module | Callable[..., nnx.Module], params: Params) -> Any:
    """A new module with these parameters ({name with dots: array}), such as `state.params` of a task by
    `from_flax`.

    `module` is the one given to `from_flax`, and does not change: a module, whose other variables the new one
    has too, or a class or callable that makes one from `rngs=`. Raises ValueError where names or shapes are
    not the module's."""
    model = module if isinstance(module, nnx.Module) else module(rngs=nnx.Rngs(0))
    graph, *states = nnx.split(nnx.clone(model), nnx.Param, ...)
    variables, rest = states
    flat = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(variables)}
    shapes = {name: jnp.shape(leaf.get_value()) for name, (_, leaf) in flat.items()}
    given = {name: jnp.shape(x) for name, x in params.items()}
    if wrong := [name for name in {**shapes, **given} if shapes.get(name) != given.get(name)]:
        raise ValueError(
            f"these are not the parameters of {type(model).__name__}: {wrong[0]} has the shape {shapes.get(wrong[0], 'absent')} in the "
            f"module and {given.get(wrong[0], 'absent')} in what was given"
        )
    filled = nnx.from_flat_state(
        [(path, leaf.replace(jnp.asarray(params[name]))) for name, (path, leaf) in flat.items()]
    )
    return nnx.merge(graph, filled, rest)
