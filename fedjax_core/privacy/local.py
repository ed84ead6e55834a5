"""Local differential privacy: each client clips its own report and adds noise to it, and trusts nobody.

    sent = clip(u, C) + N(0, (noise C)^2)        by a key that the client alone has

A reader of a report learns little about any record behind it: a client's reports on two data sets are at most
2 C apart, so each is a Gaussian mechanism with a multiplier of noise / 2. Sampling does not help, as it is
seen who reports. So this needs far more noise than `client_level`, and a mean of n reports still has noise C
/ sqrt(n).

>>> private = local(clip=1.0, noise=20.0, rounds=10, delta=1e-5)
>>> f"{private.epsilon(rounds=1):.3f} {private.epsilon():.3f}"
'0.341 1.199'
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedjax_core import tree
from fedjax_core.checks import at_least
from fedjax_core.privacy import accounting, clipping
from fedjax_core.privacy.gaussian import check
from fedjax_core.settings import with_settings
from fedjax_core.types import Message, Own, Update
from fedjax_core.uplink.base import Promises, Sender, Stage, stage


@with_settings
def local_gaussian(clip: float | Mapping[str, float] | clipping.Bounds, noise: float) -> Stage:
    """Clips updates to norm `clip`, and adds noise of `noise` times that to each at the client."""
    clip = clipping.bounds(clip)
    check(noise, cohort=1)

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        noisy = clipping.add_normal(
            clipping.clipped(tree.wide(update), clip), noise * clipping.total(clip), sender.secret
        )
        return noisy, own

    return stage("local gaussian", encode=encode, promises=Promises(clipping.total(clip), noise, "client"))


@dataclass(frozen=True)
class Local:
    """The result of `local`: its settings, and the pieces made from them."""

    clip: clipping.Bounds
    noise: float
    rounds: int
    """The most rounds in which a client takes part."""
    delta: float
    open_counts: bool = False
    open_metrics: bool = False
    cohorts: None = None
    """Any sampler: it is seen who takes part."""

    @cached_property
    def uplink(self) -> Stage:
        """Clips and adds noise at the client."""
        made = local_gaussian(self.clip, self.noise)
        return made._replace(name="local level", promises=made.promises._replace(account=self))

    @property
    def terms(self) -> dict[str, Any]:
        """The terms that must not change for one epsilon to cover all rounds, in plain values."""
        return {"noise": self.noise, "delta": self.delta, "clip": repr(self.clip), "at": "client"}

    def epsilon(self, rounds: int | None = None) -> float:
        """The epsilon of this many reports of one client (default: those of all rounds), at `delta`."""
        return accounting.epsilon(
            self.noise / 2,
            rounds=self.rounds if rounds is None else rounds,
            delta=self.delta,
            sampling="everyone",
        )

    def told(self, rounds: int) -> float:
        """The `epsilon`."""
        return self.epsilon(rounds)


def local(
    *,
    clip: float | Mapping[str, float],
    rounds: int,
    epsilon: float | None = None,
    noise: float | None = None,
    delta: float = 1e-6,
    open_counts: bool = False,
    open_metrics: bool = False,
) -> Local:
    """Differential privacy of each client's reports, at most `rounds` of them, towards all who read them.

    Give `epsilon`, at `delta`, for which the noise is computed, or `noise`, in multiples of the clip.
    `compose` refuses an algorithm that weights reports by examples, unless `open_counts`: numbers of examples
    are then public, as sites do. `open_metrics` is that of `client_level`.
    """
    at_least(1, rounds=rounds)
    if (epsilon is None) == (noise is None):
        raise ValueError(
            f"give epsilon=, for which the noise is found, or noise= itself, and not both: got {epsilon} and {noise}"
        )
    if epsilon is not None:
        noise = 2 * accounting.noise_for(epsilon, rounds=rounds, delta=delta, sampling="everyone")
    assert noise is not None
    accounting.epsilon(noise, rounds=0, delta=delta, sampling="everyone")  # checks
    return Local(clipping.bounds(clip), float(noise), rounds, float(delta), open_counts, open_metrics)
