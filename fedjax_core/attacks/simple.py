"""Attacks by a liar alone: negate its update, scale it, or report noise.

    sign_flip   -scale u        scaling   factor u        gaussian   mean + std N(0, 1), whatever u is

Scaling by n / f is model replacement: the mean of n reports is then what the liars want. Bagdasaryan et al.,
"How to Backdoor Federated Learning", AISTATS 2020, section 4.2.

>>> import jax, jax.numpy as jnp
>>> scaling(-10.0).alone(jnp.array([1.0, 2.0]), jax.random.key(0)).tolist()
[-10.0, -20.0]
"""

from typing import Any

import jax

from fedjax_core import tree
from fedjax_core.attacks.base import Attack
from fedjax_core.settings import with_settings
from fedjax_core.types import Key, Update


@with_settings
def sign_flip(scale: float = 1.0) -> Attack:
    """Reports the update times `-scale`."""
    return Attack("sign_flip", alone=lambda update, key: tree.scale(-scale, update))


@with_settings
def scaling(factor: float) -> Attack:
    """Reports the update times `factor`."""
    return Attack("scaling", alone=lambda update, key: tree.scale(factor, update))


@with_settings
def gaussian(std: float = 1.0, mean: float = 0.0) -> Attack:
    """Reports normal noise instead of the update."""

    def alone(update: Update, key: Key) -> Update:
        structure: Any
        leaves, structure = jax.tree.flatten(update)
        drawn = [
            mean + std * jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
            for i, x in enumerate(leaves)
        ]
        return structure.unflatten(drawn)

    return Attack("gaussian", alone=alone)
