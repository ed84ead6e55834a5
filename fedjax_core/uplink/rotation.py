"""A fast random rotation, by random signs and a Hadamard transform, twice: it spreads large numbers over all
others.

    R u = H D' H D u / B        H the Hadamard matrix, D and D' random signs; H H = B, so that u = D H D' H (R u) / B

The update's numbers, one leaf after another, are rows of B = 2^m <= 8192, the last of them filled up with
zeros. A row of R u is much like independent normal numbers of the same norm, whatever u is. After only one
transform it is not, if u has few large numbers (EDEN's error is 10 % off on log-normal ones of spread 2).
Both ends draw the signs from a seed that is sent, 4 bytes. Ailon and Chazelle, "The Fast
Johnson-Lindenstrauss Transform", SIAM J. Comput. 2009; for updates Suresh et al., ICML 2017.

>>> hadamard(jnp.array([[1.0, 0.0], [1.0, 1.0]])).round(3).tolist()
[[0.7070000171661377, 0.7070000171661377], [1.4140000343322754, 0.0]]
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_core import tree
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Message, Own, Update
from fedjax_core.uplink.base import Sender, Stage, check_expands, stage
from fedjax_core.uplink.packed import guarded, seed_of

_WIDEST = 8192  # numbers a row: few zeros at the end of an update, and enough for rows to be near normal


class Seeded(NamedTuple):
    """The message of the inner stage, and the rotation's seed."""

    message: Any
    seed: Array


def hadamard(rows: Array) -> Array:
    """Each row [n, 2^m] times the Hadamard matrix over 2^(m/2): its own inverse, and keeps norms."""
    n, width = rows.shape
    half = 1
    while half < width:
        pairs = rows.reshape(n, width // (2 * half), 2, half)
        rows = jnp.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        half *= 2
    return rows.reshape(n, width) / math.sqrt(width)


def turn(rows: Array, seed: Array) -> Array:
    """The rows, rotated."""
    first, second = _signs(rows, seed)
    return hadamard(hadamard(rows * first) * second)


def back(rows: Array, seed: Array) -> Array:
    """The rows that were turned by this seed."""
    first, second = _signs(rows, seed)
    return hadamard(hadamard(rows) * second) * first


def _signs(rows: Array, seed: Array) -> tuple[Array, Array]:
    one, other = (
        jax.random.rademacher(key, rows.shape, rows.dtype) for key in jax.random.split(jax.random.key(seed))
    )
    return one, other


def to_rows(update: Update, whole: bool = False) -> Array:
    """[n, B]: the update's numbers, in 32 bits at least; as `whole`, in one row with nothing added."""
    flat = ravel_pytree(tree.wide(update))[0]
    if whole:
        return flat[None]
    width = min(_WIDEST, 2 ** max(0, flat.size - 1).bit_length())
    return jnp.pad(flat, (0, -flat.size % width)).reshape(-1, width)


def from_rows(rows: Array, shapes: Update) -> Update:
    """The update of these shapes whose rows they are."""
    wide = tree.wide(tree.shapes(shapes))
    _, unravel = ravel_pytree(tree.zeros_like(wide))
    return unravel(rows.reshape(-1)[: tree.size(wide)])


def rowwise(
    name: str, encode: Callable[[Array], Any], decode: Callable[[Any, tuple[int, int]], Array], rotate: bool
) -> Stage:
    """A stage from (rows [n, B]) -> message and (message, [n, B]) -> rows, on an update rotated by a draw of
    each client's own.

    Clients with similar updates then have different errors, which their mean reduces.
    """

    def send(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        if not rotate:
            return guarded(encode, to_rows(update, whole=True)), own
        seed = seed_of(sender.key)
        return Seeded(guarded(lambda rows: encode(turn(rows, seed)), to_rows(update)), seed), own

    def expand(state: Any, message: Any, shapes: Update) -> Update:
        form: Any = jax.eval_shape(lambda: to_rows(tree.zeros_like(shapes), whole=not rotate)).shape
        if not rotate:
            return from_rows(decode(message, form), shapes)
        return from_rows(back(decode(message.message, form), message.seed), shapes)

    return stage(name, encode=send, expand=expand, measurable=True)


@with_settings
def rotated(inner: Stage) -> Stage:
    """`inner`, such as `k_level(2)`, on the update as one leaf, rotated in the same way for all clients of a
    round."""
    if not isinstance(inner, Stage):
        raise TypeError(f"rotated() wraps a stage, got {type(inner).__name__}: write rotated(k_level(2))")
    if inner.hides:
        raise ValueError(f"rotated() reads what {inner.name} sends, which hides it: leave it out")

    def rows_of(shapes: Update) -> Any:
        return jax.eval_shape(lambda: to_rows(tree.zeros_like(shapes)))

    def init_client(shapes: Update) -> Own:
        check_expands(inner, rows_of(shapes), f"rotated({inner.name})")
        return inner.init_client(rows_of(shapes))

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        seed, rows = seed_of(sender.shared), to_rows(update)
        sent, own = inner.encode(state, own, turn(rows, seed), sender)
        return Seeded(sent, seed), own

    def expand(state: Any, message: Seeded, shapes: Update) -> Update:
        return from_rows(back(inner.expand(state, message.message, rows_of(shapes)), message.seed), shapes)

    return stage(
        f"rotated({inner.name})",
        init=lambda shapes: inner.init(rows_of(shapes)),
        init_client=init_client,
        encode=encode,
        expand=expand,
        measurable=inner.measurable,
        linear=inner.linear,
    )
