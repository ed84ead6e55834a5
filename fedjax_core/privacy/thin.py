"""Clipped sums of the gradients of single examples, without the gradients of weight matrices.

For one example, the gradient of a matrix that multiplies a vector x is an outer product, of x and of the
gradient y of what comes out. Its norm is |x| |y|, and a sum over examples, each with a factor of its own, is
one product of two matrices:

    |x y'| = |x| |y|        sum_i c_i x_i y_i' = (c_1 x_1, ..., c_B x_B) (y_1, ..., y_B)'

So an MLP's clipped gradients cost about what its plain gradient does, and the memory of a batch of
activations, where B gradients were computed and gone over twice. Goodfellow, "Efficient Per-Example Gradient
Computations", 2015. Outer products are looked for in the jaxpr of one example's gradient, in whatever the
model is written; of all other leaves (biases, convolutions, layers inside a loop) the gradients are made as
they are.

>>> import jax.numpy as jnp
>>> grad = one_by_one(lambda x: {"w": jax.grad(lambda w: jnp.sum((x[None] @ w) ** 2))(jnp.ones((2, 1)))}, jnp.ones(2))
>>> {name: type(leaf).__name__ for name, leaf in grad(jnp.ones((5, 2))).items()}
{'w': 'Thin'}
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from fedjax_core.types import Array, Params

_LARGEST = 1e37  # its reciprocal is no denormal number


@partial(jax.tree_util.register_dataclass, data_fields=["x", "y"], meta_fields=["shape", "order"])
@dataclass(frozen=True)
class Thin:
    """A leaf's gradients of B examples, each of which is an outer product: of a row of `x` [B, m] and one of
    `y` [B, n]."""

    x: Array
    y: Array
    shape: tuple[int, ...]
    """Of the product before its axes are put in `order`."""
    order: tuple[int, ...]

    def norms(self) -> Array:
        """The l2 norm of each example's gradient, [B]."""
        return _norms(self.x) * _norms(self.y)

    def total(self, counts: Array, factors: Array) -> Array:
        """The sum of the gradients that count, each times its factor."""
        x, y = (jnp.where(counts[:, None], rows, jnp.zeros((), rows.dtype)) for rows in (self.x, self.y))
        # In full precision on every device: a product in 16 bits would be longer than its factors say.
        product = partial(
            lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST
        )
        x = x * factors[:, None]
        axes = len(self.shape)
        turned = next((k for k in range(1, axes) if self.order == (*range(k, axes), *range(k))), 0)
        if turned and _size(self.shape[:turned]) == x.shape[1]:
            return product(y, x).reshape([self.shape[i] for i in self.order])
        return product(x, y).reshape(self.shape).transpose(self.order)


def norms(rows: Any) -> Array:
    """The l2 norm over all leaves of each example's gradient, [B], accumulated in float32; `rows` has leaves
    [B, ...] or `Thin`. Where float32 cannot hold it, it is not finite."""
    squares = [
        jnp.square(leaf.norms())
        if isinstance(leaf, Thin)
        else jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(rows, is_leaf=lambda leaf: isinstance(leaf, Thin))
    ]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def total(rows: Any, counts: Array, factors: Array) -> Params:
    """The sum over examples of the gradients that count [B], each times its factor [B]."""

    def of_a_leaf(leaf: Any) -> Array:
        if isinstance(leaf, Thin):
            return leaf.total(counts, factors)
        shape = (len(counts),) + (1,) * (leaf.ndim - 1)
        scaled = leaf * factors.astype(leaf.dtype).reshape(shape)
        return jnp.sum(jnp.where(counts.reshape(shape), scaled, jnp.zeros((), leaf.dtype)), axis=0)

    return jax.tree.map(of_a_leaf, rows, is_leaf=lambda leaf: isinstance(leaf, Thin))


def made(rows: Any) -> list[Any]:
    """The leaves that are not `Thin`."""
    leaves = jax.tree.leaves(rows, is_leaf=lambda leaf: isinstance(leaf, Thin))
    return [leaf for leaf in leaves if not isinstance(leaf, Thin)]


def _norms(rows: Array) -> Array:
    """[B, n] -> the norm of each row, whose squares neither overflow nor vanish; infinite where a number is
    above 1e37."""
    largest = jnp.max(jnp.abs(rows), axis=1, initial=0.0)
    # XLA multiplies by the reciprocal. That of a larger number would be flushed to 0, and with it the norm.
    fits = largest < _LARGEST
    unit = jnp.where(fits & (largest > 0), largest, 1)
    root = jnp.sqrt(jnp.sum(jnp.square(rows / unit[:, None]), axis=1))
    return jnp.where(fits, largest * root, jnp.inf)


def one_by_one(gradient: Callable[..., Params], *example: Any) -> Callable[..., Any]:
    """A function of B examples at once, leaves [B, ...], which gives the gradient of each: of a leaf `Thin`
    where it is an outer product, else an array [B, ...].

    `gradient` is of one example, and `example` one with its shapes."""
    closed, shapes = jax.make_jaxpr(gradient, return_shape=True)(*example)
    jaxpr = closed.jaxpr
    products = [_outer_product(jaxpr, v) for v in jaxpr.outvars]
    wanted = [
        v
        for product, v in zip(products, jaxpr.outvars, strict=True)
        for v in ([v] if product is None else product.factors)
    ]

    def of_all(*examples: Any) -> Any:
        values = iter(
            jax.vmap(lambda *one: _evaluate(jaxpr, closed.consts, jax.tree.leaves(one), wanted))(*examples)
        )
        leaves = [next(values) if p is None else p.thin(next(values), next(values)) for p in products]
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return of_all


@dataclass(frozen=True)
class _OuterProduct:
    """A leaf of one example's gradient as an outer product of two values of the jaxpr."""

    factors: tuple[Any, Any]
    shape: tuple[int, ...]
    order: tuple[int, ...]

    def thin(self, x: Array, y: Array) -> Thin:
        return Thin(x.reshape(len(x), -1), y.reshape(len(y), -1), self.shape, self.order)


def _outer_product(jaxpr: Any, leaf: Any) -> _OuterProduct | None:
    """The two values whose outer product this result of the jaxpr is; None where it is none of float32."""
    made = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    used = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, core.Var))
    used.update(v for v in jaxpr.outvars if isinstance(v, core.Var))
    value, order = leaf, tuple(range(leaf.aval.ndim))
    while value in made if isinstance(value, core.Var) else False:
        eqn = made[value]
        if used[value] > 1:
            return None
        if eqn.primitive.name == "transpose":
            order = tuple(eqn.params["permutation"][i] for i in order)
            value = eqn.invars[0]
            continue
        if eqn.primitive.name != "dot_general":
            return None
        (over_x, _), (batch, _) = eqn.params["dimension_numbers"]
        x, y = eqn.invars
        single = all(v.aval.dtype == jnp.float32 for v in (x, y, value)) and not batch
        if single and all(x.aval.shape[axis] == 1 for axis in over_x):
            return _OuterProduct((x, y), value.aval.shape, order)
        return None
    return None


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
    """Evaluates the wanted values of the jaxpr, and nothing that they do not need."""
    needed = {v for v in wanted if isinstance(v, core.Var)}
    steps = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(v for v in eqn.invars if isinstance(v, core.Var))
            steps.append(eqn)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else values[v]

    for eqn in reversed(steps):
        with eqn.ctx.manager:
            out = eqn.primitive.bind(*map(read, eqn.invars), **eqn.primitive.get_bind_params(eqn.params))
        values.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))
    return [read(v) for v in wanted]


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
