"""Centered clipping: steps from the last round's value towards the reports, each no longer than tau.

    v <- v + mean_i clip(u_i - v, tau)      `steps` times; v stays with the server until the next round, and begins as zeros

Attackers together move it by at most f tau / n a step. Every client counts alike. Karimireddy et al.,
"Learning from History for Byzantine Robust Optimization", ICML 2021, algorithm 2.

>>> from fedjax_core.aggregators.base import apply
>>> apply(centered_clipping(tau=2.0), jnp.array([[1.0], [1.0], [1000.0], [1.0]])).tolist()
[1.25]
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from fedjax_core import tree
from fedjax_core.aggregators.base import Aggregator, Ruling, of_reports
from fedjax_core.aggregators.robust import average, shortened
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, Update, known


@with_settings
def centered_clipping(tau: float, steps: int = 1) -> Aggregator:
    """Centered clipping with radius `tau` > 0, in the unit of an update, and `steps` steps a round."""
    if known(tau) and not tau > 0:
        raise ValueError(f"centered_clipping needs a radius tau > 0, got {tau}")
    if not steps >= 1:
        raise ValueError(f"centered_clipping needs steps >= 1, got {steps}")

    def rule(rows: Array, here: Array, weights: Array, key: Key, last: Array) -> Ruling:
        def step(t: int, v: Array) -> Array:
            return v + average(shortened(rows - v[None], jnp.asarray(tau, rows.dtype)), here)

        v = lax.fori_loop(0, steps, step, last.astype(rows.dtype))
        return Ruling(v, memory=v.astype(last.dtype))

    def init(shapes: Update) -> Array:
        one: Array = jax.eval_shape(lambda: ravel_pytree(tree.zeros_like(shapes))[0])
        return jnp.zeros(one.shape, one.dtype)

    return of_reports("centered_clipping", rule, init=init, alike=True)
