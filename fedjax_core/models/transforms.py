"""Transforms of a task that save memory (`remat`, `accumulate`) or memory and time (`bfloat16`). The model
stays as it is.

    remat         the loss in segments; only what passes from one to the next is kept for the gradient, the rest is computed again
    accumulate    the batch in parts, one after another; their gradients add up in float32
    bfloat16      the model computed in 16 bits, the parameters, gradients and losses in 32

They can be nested, with `bfloat16` innermost so that sums stay float32: `accumulate(remat(bfloat16(task), 8),
4)`.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; Micikevicius et al., "Mixed Precision
Training", ICLR 2018.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.models.mlp import mlp
>>> from fedjax_core.types import Batch
>>> task = mlp(features=2, hidden=[8] * 15, classes=2)
>>> batch = Batch({"x": jnp.ones((6, 2)), "y": jnp.array([0, 1, 0, 1, 1, 1])}, mask=jnp.ones(6))
>>> key = jax.random.key(0)
>>> for saving in (task, remat(task, segments=4), accumulate(task, parts=3), bfloat16(task)):
...     print(f"{saving.mean_loss(task.init(key), batch, key):.2f}")
0.69
0.69
0.69
0.69
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from fedjax_core.checks import at_least
from fedjax_core.task import Task
from fedjax_core.tree import wide
from fedjax_core.types import Array, Batch, Columns, Key, Params


def remat(task: Task, segments: int) -> Task:
    """The task with its loss cut into `segments` of about equal activations; the gradient recomputes all but
    the last.

    About the square root of the model's depth needs the least memory. It costs at most one more forward pass;
    losses and gradients are the same. An MLP of 16 layers of 64, batch 256: less than half of the memory in 4
    segments. For reverse mode only. A loop (`lax.scan`) or a jitted function within the loss is never cut.
    """
    at_least(1, segments=segments)

    def loss(params: Params, batch: Batch, key: Key) -> Array:
        # not kept: it may read a program's arguments
        traced = jax.make_jaxpr(lambda *given: task.loss(*given))(params, batch, key)
        whole: Any = traced.jaxpr
        values = dict(
            zip(
                whole.constvars + whole.invars,
                [*traced.consts, *jax.tree.leaves((params, batch, key))],
                strict=True,
            )
        )
        weights = set(whole.invars[: len(jax.tree.leaves(params))])
        pieces = _cut(whole.eqns, segments)
        for i, piece in enumerate(pieces):
            later = {v for rest in pieces[i + 1 :] for eqn in rest for v in _variables(eqn.invars)} | set(
                _variables(whole.outvars)
            )
            reads = list(dict.fromkeys(v for eqn in piece for v in _variables(eqn.invars) if v in values))
            writes = [v for eqn in piece for v in eqn.outvars if v in later]
            names = whole.debug_info.with_unknown_names()
            piece = whole.replace(constvars=[], invars=reads, outvars=writes, eqns=piece, debug_info=names)
            run = core.jaxpr_as_fun(core.ClosedJaxpr(piece, ()))
            if i < len(pieces) - 1:  # what the last one leaves is needed at once
                run = _computed_again(run, [v not in weights for v in reads])
            values |= dict(zip(writes, run(*[values[v] for v in reads]), strict=True))
        (result,) = whole.outvars
        return values[result] if isinstance(result, core.Var) else jnp.asarray(result.val)

    return task._replace(loss=loss)


def accumulate(task: Task, parts: int) -> Task:
    """The task with each batch's losses computed in `parts`, one after another: the memory of activations
    falls by that factor.

    Losses and gradients are the same, whatever the batch size: parts are of equal size, the last filled up
    with padding. Only a model's draws (dropout) differ, as each part has a key of its own. It is for losses
    of single examples: one that reads `batch.mask`, as a loss across examples must (Cox), is refused when
    first traced.
    """
    at_least(1, parts=parts)

    def loss(params: Params, batch: Batch, key: Key) -> Array:
        _refuse_meeting(task, params, batch, key)
        B = batch.mask.shape[0]
        size = -(-B // parts)
        number = -(-B // size)
        rows = jnp.arange(number * size, dtype=jnp.int32).reshape(number, size)
        # The last part is filled up with the last example.
        split = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), batch.columns)

        def one(part: tuple[Array, Columns]) -> Array:
            return task.loss(params, Batch(part[1], jnp.ones(size)), jax.random.fold_in(key, part[0]))

        # Within the loop nothing can be shared with another pass, so no barrier against it is needed.
        losses = lax.map(jax.checkpoint(one, prevent_cse=False), (jnp.arange(number), split))
        return losses.reshape(number * size)[:B]

    return task._replace(loss=loss)


def bfloat16(task: Task, columns: Sequence[str] = ("x",)) -> Task:
    """The task with its training loss computed in bfloat16: parameters and the named floating columns are
    cast as the loss begins.

    Parameters, gradients, losses and all that an algorithm adds up stay float32, as do other columns
    (targets, times) and evaluation, where the task has `metrics`. The models here, and a Flax module without
    a `dtype` of its own, follow their parameters' dtype; losses are taken from outputs in float32. For
    accelerators: on CPU, XLA only rounds to 16 bits (jax 0.10.2), and neither time nor memory is saved.
    """

    def narrow(x: Array) -> Array:
        return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def loss(params: Params, batch: Batch, key: Key) -> Array:
        inputs = {name: jax.tree.map(narrow, batch[name]) for name in columns if name in batch}
        return wide(
            task.loss(jax.tree.map(narrow, params), Batch({**batch.columns, **inputs}, batch.mask), key)
        )

    return task._replace(loss=loss)


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [v for v in atoms if isinstance(v, core.Var)]


def _cut(eqns: Sequence[Any], segments: int) -> list[list[Any]]:
    """The equations in order, in at most `segments` pieces of about equal bytes computed."""
    made = [sum(v.aval.size * getattr(v.aval.dtype, "itemsize", 4) for v in eqn.outvars) for eqn in eqns]
    pieces: list[list[Any]] = [[] for _ in range(segments)]
    before = 0
    for eqn, nbytes in zip(eqns, made, strict=True):
        pieces[before * segments // max(1, sum(made))].append(eqn)
        before += nbytes
    return [piece for piece in pieces if piece]


def _computed_again(run: Callable[..., Any], tied: Sequence[bool]) -> Callable[..., Any]:
    """`run`, with only its arguments kept for the gradient.

    `jax.checkpoint` would do, but XLA on CPU drops the barriers it sets, finds both computations equal and
    keeps everything (jax 0.10.2). So the second depends, for the arguments that are `tied`, on a zero that is
    known only once the gradient gets here."""

    def backward(kept: tuple[Any, ...], gradients: Sequence[Array]) -> Any:
        floating = [g for g in gradients if jnp.issubdtype(g.dtype, jnp.floating) and g.size]
        if floating:
            zero = jnp.nan_to_num(0 * floating[0].ravel()[0])
            numbers = [tie and jnp.issubdtype(x.dtype, jnp.number) for x, tie in zip(kept, tied, strict=True)]
            kept = tuple(
                x + zero.astype(x.dtype) if number else x for x, number in zip(kept, numbers, strict=True)
            )
        return jax.vjp(run, *kept)[1](gradients)

    again = jax.custom_vjp(run)
    again.defvjp(lambda *arguments: (run(*arguments), arguments), backward)
    return again


def _refuse_meeting(task: Task, params: Params, batch: Batch, key: Key) -> None:
    traced: Any = jax.make_jaxpr(lambda mask: task.loss(params, Batch(batch.columns, mask), key))(
        batch.mask
    ).jaxpr
    if _is_read(traced, traced.invars[0]):
        raise ValueError(
            "accumulate() cannot split a batch whose loss reads batch.mask, as one in which examples meet must (a Cox risk set): it would "
            "see a part as the whole. If the loss only leaves out padding with it, drop that: the engine does it."
        )


def _is_read(jaxpr: Any, variable: Any) -> bool:
    """Whether the equations compute anything from the variable; a variable passed to an inner function may go
    unread there."""
    for eqn in jaxpr.eqns:
        places = [i for i, v in enumerate(eqn.invars) if v is variable]
        inner = eqn.params.get("jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        if places and (inner is None or any(_is_read(inner, inner.invars[i]) for i in places)):
            return True
    return any(v is variable for v in jaxpr.outvars)
