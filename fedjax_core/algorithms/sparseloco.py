"""SparseLoCo: DiLoCo that sends only the largest numbers of each change, and keeps the rest for the next
round.

    e_i <- decay e_i + (y_i - x)                    after H local steps by an optimiser that the worker keeps
    s_i <- the largest of e_i by size;              sent, the others as zeros
    e_i <- e_i - s_i                                stays with the worker
    x   <- x + outer(mean s_i)

Sarfi et al., "Communication Efficient LLM Pre-training with SparseLoCo", 2025. The kept errors replace the
outer momentum. There the numbers sent have 2 bits: `fc.compose(..., uplink=fc.uplink.quantize(bits=2))`.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = sparseloco(models.linear(features=3), inner=optax.adamw(1e-3), density=0.1)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.diloco import diloco
from fedjax_core.algorithms.local_training import Local
from fedjax_core.task import Task
from fedjax_core.types import Array, Key, Params


class Own(NamedTuple):
    """A worker's state: its optimiser's, and what it has not sent yet."""

    opt: optax.OptState
    error: Params


@scheduled("task", "outer", "decay")
def sparseloco(
    task: Task,
    inner: optax.GradientTransformation,
    density: float,
    decay: float = 0.95,
    outer: optax.GradientTransformation | None = None,
    **rest: Any,
) -> Algorithm:
    """`diloco` that sends a share `density` of the numbers of each leaf, at least one; `outer` is
    `optax.sgd(1.0)` where not given."""
    if not 0 < density <= 1:
        raise ValueError(
            f"density is the share of numbers that is sent, above 0 and at most 1, got {density}"
        )
    dense = diloco(task, inner, optax.sgd(1.0) if outer is None else outer, **rest)
    (exchange,) = dense.exchanges
    client = exchange.client

    def begin(params: Params, own: Own, key: Key) -> Local:
        return Local(params, own.opt, own=own.error)

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        report = client.finish(params, carry, seen)
        wanted = tree.add(tree.scale(decay, carry.own), report.update)
        sent = jax.tree.map(lambda x: largest(x, density), wanted)
        return report._replace(update=sent, own=Own(report.own, tree.sub(wanted, sent)))

    def init_client(params: Params) -> Own:
        return Own(dense.init_client(params), tree.zeros_like(params))

    return dense._replace(
        init_client=init_client, exchanges=(exchange._replace(client=Client(begin, client.step, finish)),)
    )


def largest(x: Array, share: float) -> Array:
    """`x` with all numbers set to zero but this share of them, the largest by size; of equal ones the
    first."""
    count = max(1, round(share * x.size))
    _, places = jax.lax.top_k(jnp.abs(x.ravel()), count)
    return jnp.zeros(x.size, x.dtype).at[places].set(x.ravel()[places]).reshape(x.shape)
