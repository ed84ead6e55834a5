"""Half precision: each number in 16 bits on the wire, and in 32 again at the server.

    q = round to nearest of u        |q - u| <= 2^-9 |u|  (bfloat16),    2^-11 |u|  (float16, up to 65504, from 6e-5)

Rounding is deterministic, so small updates lose the same digits each round; inside `feedback` they come back
later.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import message_shapes, roundtrip
>>> update = {"w": jnp.array([1.0, 1.001])}
>>> message_shapes(half(), update)["w"].dtype.name, roundtrip(half(), update, jax.random.key(0))["w"].tolist()
('bfloat16', [1.0, 1.0])
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_core.settings import with_settings
from fedjax_core.types import Message, Own, Update
from fedjax_core.uplink.base import Sender, Stage, stage


@with_settings
def half(dtype: str = "bfloat16") -> Stage:
    """Sends every float32 as a bfloat16 (all of float32's range) or a float16 (more digits; the server
    refuses what overflows)."""
    if dtype not in ("bfloat16", "float16"):
        raise ValueError(
            f"half needs dtype 'bfloat16' or 'float16', got {dtype!r}: for fewer bits use quantize"
        )
    small = jnp.dtype(dtype)

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        return jax.tree.map(lambda x: x.astype(small) if x.dtype == jnp.float32 else x, update), own

    def expand(state: Any, message: Message, shapes: Update) -> Update:
        return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == small else x, message)

    return stage("half", encode=encode, expand=expand, measurable=True)
