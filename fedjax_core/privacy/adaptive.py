"""Adaptive clipping: the clip moves towards the norm that a given share of updates does not exceed, estimated
with noise.

    client: sends (clip(u, C), b - 1/2), with b = 1 where |u| <= C
    server: value = (sum u + N(0, (z_u C)^2)) / m;   share = (sum (b - 1/2) + N(0, s^2)) / m + 1/2;   C <- C exp(-rate (share - quantile))

Update and indicator are one vector under one clip, and so one Gaussian mechanism with noise z: z_u = (z^-2 -
(2 s)^-2)^(-1/2), a little more than z. Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private
Learning with Adaptive Clipping", NeurIPS 2021.

>>> round(adaptive(0.1).noise_of_updates(1.0, cohort=100), 6)
1.005038
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.privacy import clipping, normal
from fedjax_core.privacy.gaussian import check
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, Message, Own, Update
from fedjax_core.uplink.base import Info, Promises, Sender, Stage, stage


@dataclass(frozen=True)
class adaptive:
    """An adaptive clip, for `clip=` of `client_level`: begins at `start`, and moves by `rate` towards the
    `quantile` of norms.

    `counting`: the standard deviation of the noise on the number of clients within it; by default a twentieth
    of the cohort."""

    start: float
    quantile: float = 0.5
    rate: float = 0.2
    counting: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.start < math.inf:
            raise ValueError(f"adaptive(start=) is the clip of the first round, above 0, got {self.start!r}")
        if not 0 <= self.quantile <= 1 or not self.rate > 0:
            raise ValueError(
                f"adaptive needs a quantile from 0 to 1 and a rate above 0, got {self.quantile!r} and {self.rate!r}"
            )

    def counts_by(self, cohort: float) -> float:
        """The standard deviation of the noise on the number of clients within the clip."""
        return cohort / 20 if self.counting is None else self.counting

    def noise_of_updates(self, noise: float, cohort: float) -> float:
        """The noise of updates, in multiples of the clip, with which they and the counting together have
        `noise`."""
        by = self.counts_by(cohort)
        if not noise < 2 * by:
            raise ValueError(
                f"noise={noise:g} is too much for counting with a deviation of {by:g}, which alone tells as much: take a cohort of more "
                f"than {10 * noise:g} clients, or a larger adaptive(counting=)"
            )
        return noise if noise == 0 else (noise**-2 - (2 * by) ** -2) ** -0.5


class Counted(NamedTuple):
    """A clipped update, and 1/2 or -1/2 for whether it was within the clip."""

    update: Update
    within: Array


@with_settings
def adaptive_gaussian(clip: adaptive, noise: float, cohort: float) -> Stage:
    """The Gaussian mechanism under a clip that moves; the server's state is the clip. First in a chain. Needs
    `aggregators.total()`."""
    check(noise, cohort)
    of_updates, by = clip.noise_of_updates(noise, cohort), clip.counts_by(cohort)

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        short, within = clipping.shortened(update, state)
        return Counted(short, within.astype(jnp.float32) - 0.5), own

    def expand(state: Any, message: Counted, shapes: Update) -> Counted:
        return Counted(
            clipping.shortened(tree.wide(message.update), state)[0], jnp.clip(message.within, -0.5, 0.5)
        )

    def finish(state: Any, value: Counted, info: Info, key: Key) -> tuple[Update, Any]:
        noisy = clipping.add_normal(value.update, of_updates * state, info.secret)
        counted = value.within + by * normal.normals(jax.random.fold_in(info.secret, 2**31), [()])[0]
        share = counted / cohort + 0.5
        return tree.scale(1 / cohort, noisy), state * jnp.exp(-clip.rate * (share - clip.quantile))

    return stage(
        "adaptive gaussian",
        init=lambda shapes: jnp.float32(clip.start),
        encode=encode,
        expand=expand,
        finish=finish,
        promises=Promises(None, noise, "server"),
    )
