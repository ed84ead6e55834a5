"""Stochastic uniform quantisation: each leaf as small whole numbers and one scale, without bias.

    scale = max|u| / m,  m = 2^(bits-1) - 1        q = floor(u / scale + r),  r ~ U[0, 1)        E[scale q] = u

The variance a coordinate gains is at most scale^2 / 4. After Alistarh et al., "QSGD", NeurIPS 2017 (with the
maximum norm, levels on both sides of zero). One report takes `bits` rounded up to 8 or 16 a coordinate in
memory and on the wire, and 4 bytes a leaf.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import message_shapes, roundtrip
>>> stage, update = quantize(bits=8), {"w": jnp.array([1.0, -1.0, 0.0])}
>>> message_shapes(stage, update).levels["w"].dtype.name, roundtrip(stage, update, jax.random.key(0))["w"].tolist()
('int8', [1.0, -1.0, 0.0])
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Message, Own, Update
from fedjax_core.uplink.base import Sender, Stage, stage


class Quantized(NamedTuple):
    """The message: the levels, and a scale a leaf."""

    levels: Any  # each leaf int8 or int16, as the update
    scale: Any  # each leaf a float scalar of the update's dtype, of 32 bits at least


@with_settings
def quantize(bits: int) -> Stage:
    """Sends every coordinate as one of 2^bits - 1 levels between -max|u| and max|u| of its leaf, 2 <= bits <=
    16. Unbiased."""
    if not 2 <= bits <= 16:
        raise ValueError(
            f"quantize needs 2 <= bits <= 16, got {bits}: for fewer bits use a sign or ternary stage"
        )
    most = 2 ** (bits - 1) - 1
    small = jnp.int8 if bits <= 8 else jnp.int16

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        structure: Any
        # 8 bits of levels and a draw do not fit a bfloat16
        leaves, structure = jax.tree.flatten(tree.wide(update))
        scales = [jnp.max(jnp.abs(x), initial=0) / most for x in leaves]

        def levels(i: int, x: Array, scale: Array) -> Array:
            draw = jax.random.uniform(jax.random.fold_in(sender.key, i), x.shape, x.dtype)
            # An infinite or NaN coordinate makes the scale so too: the server sees it and refuses the report.
            steps = jnp.floor(x / jnp.where(scale > 0, scale, 1) + draw)
            return jnp.clip(jnp.nan_to_num(steps), -most, most).astype(small)

        sent = [levels(i, x, scale) for i, (x, scale) in enumerate(zip(leaves, scales, strict=True))]
        return Quantized(structure.unflatten(sent), structure.unflatten(scales)), own

    def expand(state: Any, message: Quantized, shapes: Update) -> Update:
        return jax.tree.map(lambda q, scale: q.astype(scale.dtype) * scale, message.levels, message.scale)

    return stage("quantize", encode=encode, expand=expand, measurable=True)
