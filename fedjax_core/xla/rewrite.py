"""Rewrites the convolutions, pools and recurrences of a step in faster forms, so that an ordinary Flax CNN is
fast in a lane.

A lane runs its step inside a compiled loop, under vmap. There the gradients of convolutions and pooling that
JAX derives are slow with XLA on CPU, up to 80 times; and lanes, each with a kernel of its own, make a grouped
convolution, which is slow on any device. `rewrite` traces the step, gradients included, and evaluates it with
other rules for the same sums:

    convolution                                the fastest of several forms (`fedjax_core.xla.timing`)
    gradient of a pool of separate windows     finds the first of equals by comparing, not by scattering
    a large product of matrices, transposed    the product of the two the other way round
    gradient of a recurrent layer's weights    one product after the loop over time (`fedjax_core.xla.recurrence`)

>>> import jax, jax.numpy as jnp
>>> from jax import lax
>>> def step(kernel, x):
...     return kernel - jax.grad(lambda k: lax.conv(x, k, (1, 1), "SAME").sum())(kernel)
>>> kernel, x = jnp.ones((1, 1, 3, 3)), jnp.ones((2, 1, 5, 5))
>>> bool(jnp.allclose(rewrite(step, lanes=1)(kernel, x), step(kernel, x)))
True
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import reduce, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from fedjax_core.types import Array
from fedjax_core.xla.convolutions import Convolution
from fedjax_core.xla.recurrence import late_products, scan
from fedjax_core.xla.timing import choose

Chosen = dict[Convolution, str]
"""The rule for each convolution."""

# The least number of elements of a product: 9216x128 as the gradient of a dense layer takes 0.9 ms with its
# SGD step, transposed 1.5 to 2.5 ms (2-core x86, one lane); 784x200 gains a tenth of that, and in several
# lanes there is no difference.
_LARGE_PRODUCT = 100_000
_LARGE_WINDOW = 64  # places in a window, each of which is written out


def rewrite(step: Callable[..., Any], lanes: int, *, measure: bool = True) -> Callable[..., Any]:
    """`step` in the form that is fastest in a compiled loop under `jax.vmap` over `lanes` lanes; the same
    function up to rounding.

    Without `measure` it takes the usual form, which is the same wherever and whenever it is traced; such a
    step is not rewritten again. Where there is nothing to rewrite, `step` itself is called. It cannot be
    differentiated: take gradients inside `step`."""
    if getattr(step, "usual", False):
        return step
    swap = lanes == 1 and jax.default_backend() == "cpu"

    @wraps(step)
    def rewritten(*args: Any) -> Any:
        # A new function each time: JAX caches the trace of a function, and this one may have read arguments
        # of the program around it.
        closed, shapes = jax.make_jaxpr(lambda *args: step(*args), return_shape=True)(*args)
        slow = list(_slow(closed.jaxpr, swap))
        if not slow:
            return step(*args)
        chosen = choose(
            (Convolution.of(eqn) for eqn in slow if eqn.primitive.name == "conv_general_dilated"),
            lanes,
            measure,
        )
        out = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), chosen, swap)
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    rewritten.usual = not measure  # type: ignore[attr-defined]
    return rewritten


def _slow(jaxpr: core.Jaxpr, swap: bool) -> Iterator[core.JaxprEqn]:
    """Yields the equations to rewrite, those of inner jaxprs too."""
    yield from _swapped(jaxpr).values() if swap else ()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated" or _separate_windows(eqn) or late_products(eqn):
            yield eqn
        for inner in jaxprs(tuple(eqn.params.values())):
            yield from _slow(inner, swap)


def jaxprs(value: Any) -> Iterator[core.Jaxpr]:
    """The jaxprs in a parameter of an equation: the body of a jit, loop, branch or checkpoint."""
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from jaxprs(one)
    elif isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        yield value.jaxpr if isinstance(value, core.ClosedJaxpr) else value


def _evaluate(
    jaxpr: core.Jaxpr, consts: Any, args: Any, chosen: Chosen, swap: bool, wanted: Sequence[Any] | None = None
) -> list[Any]:
    """The results of the jaxpr, or of its `wanted` variables, by the rules chosen."""
    values: dict[core.Var, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    swapped = _swapped(jaxpr) if swap else {}

    def read(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else values[v]

    for eqn in jaxpr.eqns:
        product = swapped.get(eqn.outvars[0])
        if product is None:
            out = _apply(eqn, [read(v) for v in eqn.invars], chosen, swap)
        else:
            out = [_product_the_other_way(product, *(read(v) for v in product.invars))]
        values.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in (jaxpr.outvars if wanted is None else wanted)]


def _apply(eqn: core.JaxprEqn, args: list[Any], chosen: Chosen, swap: bool) -> list[Any]:
    params = eqn.params
    if eqn.primitive.name == "conv_general_dilated":
        convolution = Convolution.of(eqn)
        return [convolution.by(chosen[convolution], *args)]
    if _separate_windows(eqn):
        return [_pool_gradient(args[0], args[1], params["window_dimensions"], params["padding"])]
    if late_products(eqn):
        return scan(
            eqn,
            args,
            lambda jaxpr, consts, args, wanted: _evaluate(jaxpr, consts, args, chosen, swap, wanted),
        )
    if any(True for inner in jaxprs(tuple(params.values())) for _ in _slow(inner, swap)):
        params = {name: _inside(value, chosen, swap) for name, value in params.items()}
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _inside(value: Any, chosen: Chosen, swap: bool) -> Any:
    """The parameter of an equation with every jaxpr in it rewritten."""
    if isinstance(value, (tuple, list)) and any(True for _ in jaxprs(value)):
        return type(value)(_inside(one, chosen, swap) for one in value)
    if not isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        return value
    closed = value if isinstance(value, core.ClosedJaxpr) else core.ClosedJaxpr(value, ())
    avals: list[Any] = [v.aval for v in closed.jaxpr.invars]
    shapes = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))
        for aval in avals
    ]
    new = jax.make_jaxpr(lambda *args: _evaluate(closed.jaxpr, closed.consts, args, chosen, swap))(*shapes)
    return new if isinstance(value, core.ClosedJaxpr) else new.jaxpr


def _swapped(jaxpr: core.Jaxpr) -> dict[core.Var, core.JaxprEqn]:
    """{the transpose: the product} of each large product of matrices that is only transposed."""
    products: dict[Any, core.JaxprEqn] = {
        eqn.outvars[0]: eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"
    }
    used = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, core.Var))
    used.update(v for v in jaxpr.outvars if isinstance(v, core.Var))
    swaps = {}
    for eqn in jaxpr.eqns:
        product = products.get(eqn.invars[0]) if eqn.primitive.name == "transpose" else None
        if product is None or used[product.outvars[0]] > 1:
            continue
        x: Any = product.invars[0].aval
        y: Any = product.outvars[0].aval
        contracted, batch = product.params["dimension_numbers"]
        rows, axes = x.ndim - len(contracted[0]), range(y.ndim)
        if (
            not batch[0]
            and y.size >= _LARGE_PRODUCT
            and tuple(eqn.params["permutation"]) == (*axes[rows:], *axes[:rows])
        ):
            swaps[eqn.outvars[0]] = product
    return swaps


def _product_the_other_way(eqn: core.JaxprEqn, x: Any, y: Any) -> Array:
    """The transpose of a product of matrices without batch axes: (x y)' = y' x'."""
    (over, _), precision = eqn.params["dimension_numbers"], eqn.params["precision"]
    precision = precision[::-1] if isinstance(precision, tuple) else precision
    return eqn.primitive.bind(
        y, x, **(eqn.params | {"dimension_numbers": (over[::-1], ((), ())), "precision": precision})
    )


def _separate_windows(eqn: core.JaxprEqn) -> bool:
    """Whether the equation is the gradient of a maximum over windows that do not overlap."""
    if eqn.primitive.name != "select_and_scatter_add":
        return False
    p: Any = eqn.params
    x: Any = eqn.invars[1].aval
    separate = (
        tuple(p["window_dimensions"]) == tuple(p["window_strides"])
        and math.prod(p["window_dimensions"]) <= _LARGE_WINDOW
    )
    return separate and p["select_prim"].name == "ge" and jnp.issubdtype(x.dtype, jnp.floating)


def _pool_gradient(
    source: Array, x: Array, window: tuple[int, ...], padding: tuple[tuple[int, int], ...]
) -> Array:
    """Puts each window's number of `source` at the first place where x is largest, and zeros elsewhere.

    For x [20, 24, 24, 64] and windows of 2x2, in a loop on a 2-core x86: 0.23 ms, where XLA's own takes 5.4
    ms."""
    pads = [
        (lo, n * w - lo - size, 0)
        for size, n, w, (lo, _) in zip(x.shape, source.shape, window, padding, strict=True)
    ]
    split = [size for pair in zip(source.shape, window, strict=True) for size in pair]
    wide = lax.pad(x, jnp.array(-jnp.inf, x.dtype), pads).reshape(split)
    each = [
        wide[tuple(a for i in offsets for a in (slice(None), i))]
        for offsets in itertools.product(*map(range, window))
    ]
    most = reduce(jnp.maximum, each)
    first = jnp.full(most.shape, len(each) - 1, jnp.int32)
    for place in reversed(range(len(each) - 1)):
        first = jnp.where(each[place] == most, jnp.int32(place), first)
    here = jnp.arange(len(each), dtype=jnp.int32).reshape([size for w in window for size in (1, w)])
    apart = [size for n in source.shape for size in (n, 1)]
    spread = jnp.where(first.reshape(apart) == here, source.reshape(apart), jnp.zeros((), source.dtype))
    whole = spread.reshape([n * w for n, w in zip(source.shape, window, strict=True)])
    return lax.pad(whole, jnp.zeros((), source.dtype), [(-lo, -hi, 0) for lo, hi, _ in pads])
