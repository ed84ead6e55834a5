"""The Gaussian mechanism on a sum of clients' updates: each is clipped, and the server adds noise in
proportion to the clip.

    value = (sum_i clip(u_i, C) + N(0, (noise C)^2)) / cohort        with the cohort's size as it was to be, which is public

An empty round gets noise too, as it must not be known that nobody took part. McMahan et al., "Learning
Differentially Private Recurrent Language Models", ICLR 2018.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import roundtrip
>>> roundtrip(gaussian(1.0, noise=2.0, cohort=10), jnp.array([3.0, 4.0]), jax.random.key(0)).round(3).tolist()
[0.6000000238418579, 0.800000011920929]
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.privacy import clipping
from fedjax_core.settings import with_settings
from fedjax_core.types import Key, Message, Own, Update
from fedjax_core.uplink.base import Info, Promises, Sender, Stage, stage


@with_settings
def gaussian(
    clip: float | Mapping[str, float] | clipping.Bounds,
    noise: float,
    cohort: float,
    weight_cap: float | None = None,
) -> Stage:
    """Clips updates to norm `clip`, adds noise of standard deviation `noise` times that to their sum, and
    divides by `cohort`.

    `clip` may be a bound for each group of leaves, {"0": 1.0, "1": 0.5}: together they are as long as the
    root of their squares' sum. With a `weight_cap` an update is scaled by min(weight, cap) / cap, so that
    clients count by their examples, up to so many. Needs `aggregators.total()`.
    """
    clip = clipping.bounds(clip)
    check(noise, cohort, weight_cap)

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        short = clipping.clipped(update, clip)
        return (
            short
            if weight_cap is None
            else tree.scale(jnp.minimum(sender.weight, weight_cap) / weight_cap, short)
        ), own

    def finish(state: Any, value: Update, info: Info, key: Key) -> tuple[Update, Any]:
        noisy = clipping.add_normal(value, noise * clipping.total(clip), info.secret)
        return tree.scale(1 / cohort, noisy), state

    return stage(
        "gaussian",
        encode=encode,
        expand=lambda state, message, shapes: clipping.clipped(tree.wide(message), clip),
        finish=finish,
        additive=True,
        promises=Promises(clipping.total(clip), noise, "server"),
    )


def check(noise: float, cohort: float, weight_cap: float | None = None) -> None:
    """Raises where these numbers do not make a mechanism."""
    if not noise >= 0:
        raise ValueError(f"noise= must be 0 or more, in multiples of the clip, got {noise!r}")
    if not cohort > 0:
        raise ValueError(f"cohort= is how many clients are expected in a round, above 0, got {cohort!r}")
    if weight_cap is not None and not weight_cap > 0:
        raise ValueError(
            f"weight_cap= is the weight from which clients count alike, above 0, got {weight_cap!r}"
        )
