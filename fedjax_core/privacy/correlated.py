"""Correlated noise (DP-FTRL), which later rounds partly cancel: less noise adds up in the model, with the
same noise in each round.

    the noises x_1, x_2, ... of rounds are C^-1 z, with z fresh noise and C lower triangular:      C x = z
    banded:  c_0 x_t = z_t - c_1 x_{t-1} - ... - c_{b-1} x_{t-b+1}                                 keeps b - 1 copies of the model
    buffers: x_t = z_t - sum_i w_i s_i,   s_i <- h_i s_i + x_t      (c_0 = 1, c_k = sum_i w_i h_i^(k-1))     keeps one a buffer

With bands, and clients that take turns so that two rounds of one are at least b rounds apart
(`sampling.turns`), no row of C has two of a client's rounds: they cost as much privacy as the same number of
rounds of plain noise, each over a b-th of the clients. Choquette-Choo et al., "(Amplified) Banded Matrix
Factorization", NeurIPS 2023; for buffers Dvijotham, McMahan, Pillutla, Steinke and Thakurta, "Efficient and
Near-Optimal Noise Generation for Streaming Differential Privacy", FOCS 2024. The square root of the matrix of
prefix sums, from which the search for bands starts: Fichtenberger, Henzinger and Upadhyay, "Constant
Matters", ICML 2023.

>>> [round(c, 3) for c in band(4, rounds=100)]
[0.683, 0.483, 0.414, 0.359]
"""

import math
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.signal import lfilter

from fedjax_core import tree
from fedjax_core.privacy import clipping
from fedjax_core.privacy.gaussian import check
from fedjax_core.settings import with_settings
from fedjax_core.types import Key, Message, Own, Update
from fedjax_core.uplink.base import Info, Promises, Sender, Stage, stage


def square_root(rounds: int) -> np.ndarray:
    """[rounds] float64: c_k = binomial(2 k, k) / 4^k, the square root of the matrix of prefix sums, the best
    Toeplitz matrix."""
    return np.cumprod(np.concatenate([[1.0], (2 * np.arange(1, rounds) - 1) / (2 * np.arange(1, rounds))]))


@lru_cache(maxsize=64)
def band(bands: int, rounds: int) -> tuple[float, ...]:
    """(c_0, ..., c_(bands-1)), of norm 1, that minimise the mean variance of the sums of 1, 2, ..., `rounds`
    noises.

    It is (sum_t e_t / rounds) with e_t = sum_{s <= t} w_s^2 and w the series of 1 / ((1 - z) c(z)), whose
    derivative by c_j is -z^j w / c."""
    left = (rounds - np.arange(rounds)) / rounds
    ones = np.ones(rounds)

    def loss(c: np.ndarray) -> tuple[float, np.ndarray]:
        sums, norm = lfilter([1.0], c, ones), c @ c
        error = float(sums**2 @ left)
        back, slope = lfilter([1.0], c, sums), np.empty(bands)
        for j in range(bands):
            slope[j] = -2 * (sums[j:] * left[j:]) @ back[: rounds - j]
        return math.log(error * norm), slope / error + 2 * c / norm

    optimum = minimize(
        loss,
        square_root(bands),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9},
    ).x
    return tuple(map(float, optimum / np.linalg.norm(optimum)))


def buffered(weights: Any, decays: Any, rounds: int) -> np.ndarray:
    """[rounds] float64: the coefficients of C with these buffers."""
    weights, decays = np.asarray(weights, np.float64), np.asarray(decays, np.float64)
    powers = decays[None] ** np.arange(rounds - 1)[:, None]
    return np.concatenate([[1.0], powers @ weights])


def sensitivity(c: Any, rounds: int, apart: int | None = None) -> float:
    """The sensitivity: the largest norm, after C, of a change of one client's updates by 1 each; the client
    takes part every `apart` rounds, or once if None.

    For coefficients that are not negative and do not grow, as here, taking part from the first round and as
    often as possible gives the largest."""
    row = np.zeros(rounds)
    row[: len(c)] = np.asarray(c, np.float64)[:rounds]
    column = np.zeros(rounds)
    for start in range(0, rounds, apart or rounds):
        column[start:] += row[: rounds - start]
    return float(np.linalg.norm(column))


def errors(c: Any, rounds: int) -> np.ndarray:
    """[rounds]: the variance, in units of fresh noise, of the sum of all noise up to each round."""
    return np.cumsum(lfilter([1.0], np.asarray(c, np.float64), np.ones(rounds)) ** 2)


def _one_more(c: np.ndarray, last: Any, fresh: Update) -> tuple[Update, Any]:
    """(the next noise, what to keep) of a banded C: `last` has leaves [bands - 1, ...], the newest first."""
    back = jnp.asarray(c[1:], jnp.float32)

    def next_of(z: Any, before: Any) -> Any:
        return (
            (z - jnp.tensordot(back.astype(z.dtype), before, axes=1)) / jnp.asarray(c[0], z.dtype)
            if len(c) > 1
            else z / c[0]
        )

    noise = jax.tree.map(next_of, fresh, last)
    return noise, jax.tree.map(
        lambda x, before: jnp.concatenate([x[None], before])[: len(c) - 1], noise, last
    )


@with_settings
def banded_gaussian(clip: Any, noise: float, cohort: float, bands: int, rounds: int) -> Stage:
    """The mechanism `gaussian` with noise shared by `bands` rounds, the best for this many `rounds`; the
    server keeps `bands` - 1 copies of it."""
    clip, c = clipping.bounds(clip), np.asarray(band(bands, rounds))
    check(noise, cohort)
    deviation = noise * clipping.total(clip)

    def draw(last: Any, zeros: Update, secret: Key) -> tuple[Update, Any]:
        return _one_more(c, last, clipping.add_normal(zeros, deviation, secret))

    def memory(shapes: Update) -> Any:
        return jax.tree.map(lambda x: jnp.zeros((bands - 1, *x.shape), x.dtype), tree.wide(shapes))

    return _correlated("banded gaussian", clip, noise, cohort, memory, draw)


@with_settings
def buffered_gaussian(
    clip: Any, noise: float, cohort: float, weights: tuple[float, ...], decays: tuple[float, ...]
) -> Stage:
    """The mechanism `gaussian` with noise by buffers of these weights and decays; the server keeps one copy
    of the update a buffer.

    `noise` is that of fresh noise, so the epsilon of the rounds is `epsilon(noise / sensitivity(...),
    sampling="everyone")`."""
    clip = clipping.bounds(clip)
    check(noise, cohort)
    if (
        len(weights) != len(decays)
        or not weights
        or any(not 0 <= x < 1 for x in (*decays,))
        or any(not w >= 0 for w in weights)
    ):
        raise ValueError(
            f"buffers have a weight of 0 or more and a decay from 0 to below 1 each, got {weights} and {decays}"
        )
    w, h, deviation = (
        np.asarray(weights, np.float32),
        np.asarray(decays, np.float32),
        noise * clipping.total(clip),
    )

    def draw(last: Any, zeros: Update, secret: Key) -> tuple[Update, Any]:
        fresh = clipping.add_normal(zeros, deviation, secret)
        x = jax.tree.map(lambda z, s: z - jnp.tensordot(jnp.asarray(w, z.dtype), s, axes=1), fresh, last)
        return x, jax.tree.map(
            lambda s, x: s * jnp.asarray(h, s.dtype).reshape(-1, *[1] * x.ndim) + x[None], last, x
        )

    def memory(shapes: Update) -> Any:
        return jax.tree.map(lambda x: jnp.zeros((len(w), *x.shape), x.dtype), tree.wide(shapes))

    return _correlated("buffered gaussian", clip, noise, cohort, memory, draw)


def _correlated(
    name: str, clip: clipping.Bounds, noise: float, cohort: float, memory: Any, draw: Any
) -> Stage:
    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        return clipping.clipped(update, clip), own

    def finish(state: Any, value: Update, info: Info, key: Key) -> tuple[Update, Any]:
        wide = tree.wide(value)
        added, state = draw(state, tree.zeros_like(wide), info.secret)
        return tree.scale(1 / cohort, tree.add(wide, added)), state

    return stage(
        name,
        init=memory,
        encode=encode,
        expand=lambda state, message, shapes: clipping.clipped(tree.wide(message), clip),
        finish=finish,
        additive=True,
        promises=Promises(clipping.total(clip), noise, "server", secret_state=True),
    )


def buffers_for(rounds: int, buffers: int) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """(weights, decays, sensitivity) of the buffers that minimise the noise of the worst sum of `rounds`, by
    the jax-privacy library.

    A client takes part once. Raises ModuleNotFoundError where the library is not installed: pip install
    'fedjax-core[correlated]'."""
    from jax_privacy.matrix_factorization import buffered_toeplitz

    optimum = buffered_toeplitz.optimize(
        n=rounds, max_participations=1, min_buffers=buffers, max_buffers=buffers
    )
    weights, decays = (tuple(map(float, np.asarray(x))) for x in (optimum.output_scale, optimum.buf_decay))
    return weights, decays, sensitivity(buffered(weights, decays, rounds), rounds)
