"""Clips a report's l2 norm, over all its leaves together: u <- u min(1, bound / |u|).

It bounds the contribution of any one client, and is the first half of every differentially private sum. It
clips at both ends, to keep the promise even if a lossy stage nearer the wire has grown the norm again.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import roundtrip
>>> roundtrip(clip(1.0), jnp.array([3.0, 4.0]), jax.random.key(0)).round(3).tolist()
[0.6000000238418579, 0.800000011920929]
"""

from typing import Any

import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.settings import with_settings
from fedjax_core.types import Message, Own, Update, known
from fedjax_core.uplink.base import Promises, Sender, Stage, stage


@with_settings
def clip(bound: float) -> Stage:
    """Reports of norm at most `bound` > 0; shorter ones are left as they are."""
    if known(bound) and not bound > 0:
        raise ValueError(f"clip needs a bound > 0 on the norm, got {bound}")

    def shorten(update: Update) -> Update:
        norm = tree.norm(update)
        return tree.scale(jnp.where(norm > bound, bound / jnp.where(norm > bound, norm, 1), 1), update)

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        return shorten(update), own

    promises = Promises(float(bound)) if known(bound) else Promises()
    return stage(
        "clip",
        encode=encode,
        expand=lambda state, message, shapes: shorten(message),
        measurable=True,
        additive=True,
        promises=promises,
    )
