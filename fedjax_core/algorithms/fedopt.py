"""The server optimisers of "Adaptive Federated Optimization", as in that paper and the published benchmarks.

With d the mean change of the clients (the negative of the optimiser's input):

    m <- b1 m + (1 - b1) d
    v <- v + d^2                              adagrad
         v - (1 - b2) d^2 sign(v - d^2)       yogi
         b2 v + (1 - b2) d^2                  adam
    x <- x + lr m / (sqrt(v) + tau)

Unlike `optax.adam` and `optax.yogi` they have no bias correction; those can be given as `server=` too. Reddi
et al., ICLR 2021, algorithm 2. m begins at 0, and v at `v0` (0 in the published benchmarks, tau^2 in the
paper).

>>> import jax.numpy as jnp
>>> rule = adam(lr=0.1, b1=0.0, b2=0.0, tau=0.0)
>>> change, _ = rule.update(jnp.array([4.0, -2.0]), rule.init(jnp.zeros(2)))
>>> change.round(6).tolist()
[-0.10000000149011612, 0.10000000149011612]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_core.types import Array


class Moments(NamedTuple):
    """The running mean of the change, and the accumulated square of it."""

    m: Any
    v: Any


def adam(
    lr: float, b1: float = 0.9, b2: float = 0.999, tau: float = 1e-8, v0: float = 0.0
) -> optax.GradientTransformation:
    """FedAdam's server rule."""
    return _adaptive(lr, b1, tau, v0, lambda v, square: b2 * v + (1 - b2) * square)


def yogi(
    lr: float, b1: float = 0.9, b2: float = 0.999, tau: float = 1e-8, v0: float = 0.0
) -> optax.GradientTransformation:
    """FedYogi's server rule: v moves by an amount that does not depend on its distance from the square."""
    return _adaptive(lr, b1, tau, v0, lambda v, square: v - (1 - b2) * square * jnp.sign(v - square))


def adagrad(lr: float, b1: float = 0.9, tau: float = 1e-8, v0: float = 0.0) -> optax.GradientTransformation:
    """FedAdagrad's server rule."""
    return _adaptive(lr, b1, tau, v0, lambda v, square: v + square)


def _adaptive(
    lr: float, b1: float, tau: float, v0: float, second: Callable[[Array, Array], Array]
) -> optax.GradientTransformation:
    def init(params: Any) -> Moments:
        return Moments(
            jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda p: jnp.full_like(p, v0), params)
        )

    def update(grads: Any, state: Moments, params: Any = None) -> tuple[Any, Moments]:
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.m, grads)
        v = jax.tree.map(lambda v, g: second(v, jnp.square(g)), state.v, grads)
        # A coordinate that has never moved has m = v = 0; with tau = 0 it must stay put, not become 0 / 0.
        change = jax.tree.map(lambda m, v: jnp.where(m == 0, 0, -lr * m / (jnp.sqrt(v) + tau)), m, v)
        return change, Moments(m, v)

    return optax.GradientTransformation(init, update)
