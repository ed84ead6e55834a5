"""Building blocks of lossy stages: small whole numbers packed into bytes, and stages that work leaf by leaf.

    2, 4 or 16 values           8, 4 or 2 a byte
    2^b values                  8 numbers in b bytes
    another number m of values  as many digits to the base m as fit 32 bits: 20 of 3 values, 10 of 9

>>> pack(jnp.array([1, 0, 1, 1, 0, 0, 0, 0, 1], jnp.uint32), 2).tolist()
[13, 1]
>>> unpack(pack(jnp.array([2, 0, 1], jnp.uint32), 3), 3, 3).tolist()
[2, 0, 1]
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.types import Array, Key, Message, Own, Update
from fedjax_core.uplink.base import Sender, Stage, stage


def pack(levels: Array, values: int) -> Array:
    """Flat uint32 numbers below `values` >= 2 as they travel: uint8 where `values` is a power of two, else
    uint32."""
    bits, per, small = _form(values)
    digits = jnp.pad(levels, (0, -len(levels) % per)).reshape(-1, per)
    if bits is None or 8 % bits == 0:
        base = jnp.uint32(values) ** jnp.arange(per, dtype=jnp.uint32)
        return jnp.sum(digits * base[None], axis=1, dtype=jnp.uint32).astype(small)
    one_by_one = (digits[:, :, None] >> jnp.arange(bits, dtype=jnp.uint32)[None, None]) & 1
    return pack(one_by_one.reshape(-1), 2)


def unpack(words: Array, values: int, size: int) -> Array:
    """The first `size` of the numbers that were packed."""
    bits, per, _ = _form(values)
    if bits is None or 8 % bits == 0:
        base = jnp.uint32(values) ** jnp.arange(per, dtype=jnp.uint32)
        return (words.astype(jnp.uint32)[:, None] // base[None] % values).reshape(-1)[:size]
    one_by_one = unpack(words, 2, 8 * len(words)).reshape(-1, bits)
    return jnp.sum(one_by_one << jnp.arange(bits, dtype=jnp.uint32)[None], axis=1, dtype=jnp.uint32)[:size]


def _form(values: int) -> tuple[int | None, int, Any]:
    """(bits of a number, None if not whole; how many numbers are packed together; the dtype)."""
    bits = (values - 1).bit_length()
    if values == 2**bits:
        return bits, 8 // bits if 8 % bits == 0 else 8, jnp.uint8
    per = 1
    while values ** (per + 1) <= 2**32:
        per += 1
    return None, per, jnp.uint32


def seed_of(key: Key) -> Array:
    """A seed to send instead of a key: both ends make the same draws by `jax.random.key(seed)`."""
    return jax.random.bits(key, (), jnp.uint32)


def leafwise(
    name: str,
    encode: Callable[[Array, Key], Any],
    decode: Callable[[Any, jax.ShapeDtypeStruct], Array],
    shared: bool = False,
) -> Stage:
    """A stage from (a leaf's numbers [d], key) -> what is sent, and (that, the leaf's shape) -> numbers [d]
    again.

    The key is the client's own, or with `shared` the same for all, for a linear stage.

    Leaves of fewer than 32 bits are widened before. For a leaf with a number that is not finite, all floats
    sent are NaN."""

    def send(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        leaves = jax.tree.leaves(tree.wide(update))
        keys = [jax.random.fold_in(sender.shared if shared else sender.key, i) for i in range(len(leaves))]
        return tuple(
            guarded(partial(_with, encode, key), x.reshape(-1)) for key, x in zip(keys, leaves, strict=True)
        ), own

    def expand(state: Any, message: Message, shapes: Update) -> Update:
        structure: Any
        leaves, structure = jax.tree.flatten(tree.wide(tree.shapes(shapes)))
        return structure.unflatten(
            [
                decode(sent, x).astype(x.dtype).reshape(x.shape)
                for sent, x in zip(message, leaves, strict=True)
            ]
        )

    return stage(name, encode=send, expand=expand, measurable=True, linear=shared)


def _with(encode: Callable[[Array, Key], Any], key: Key, x: Array) -> Any:
    return encode(x, key)


def guarded(encode: Callable[[Array], Any], x: Array) -> Any:
    """The result of `encode`, with NaN for its floats if one of the numbers is not finite."""
    fine = tree.finite(x)
    sent = encode(jnp.where(fine, x, 0))
    return jax.tree.map(
        lambda s: jnp.where(fine, s, jnp.nan) if jnp.issubdtype(s.dtype, jnp.floating) else s, sent
    )


def share_of(name: str, fraction: float, size: int) -> int:
    """The number of entries that a fraction in (0, 1] of `size` is, at least one; raises for any other
    fraction."""
    if not 0 < fraction <= 1:
        raise ValueError(f"{name} needs a fraction of the numbers, 0 < fraction <= 1, got {fraction}")
    return min(size, max(1, math.ceil(fraction * size - 1e-9)))
