"""Client-level differential privacy: one object for sampling, clipping, noise and accounting, so that they
cannot disagree.

    private = client_level(population=1000, cohort=50, rounds=200, clip=1.0, epsilon=8.0, delta=1e-6)
    compose(algorithm, uplink=private.uplink, aggregator=private.aggregator);   fit(..., cohorts=private.cohorts)

The promise is about the model, and all that is computed from it: its distribution is nearly the same with and
without any one client. The server is trusted: it reads each update, and adds the noise. `compose` refuses
outputs without noise (`fedjax_core.promises`), and `fit` refuses another sampler, and more rounds than
planned.

>>> private = client_level(population=1000, cohort=50, rounds=10, clip=1.0, noise=2.0, delta=1e-5)
>>> private.cohorts
capped(population=1000, rate=0.05, cap=117, seed=0)
>>> f"{private.epsilon(rounds=1):.2f} {private.epsilon():.2f}"
'0.18 0.38'
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from scipy.stats import binom

from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.total import total
from fedjax_core.checks import at_least
from fedjax_core.data.cohorts import Sampler, uniform
from fedjax_core.privacy import accounting, clipping
from fedjax_core.privacy.adaptive import adaptive, adaptive_gaussian
from fedjax_core.privacy.correlated import banded_gaussian
from fedjax_core.privacy.gaussian import gaussian
from fedjax_core.privacy.sampling import capped, headroom, turns
from fedjax_core.uplink.base import Stage

log = logging.getLogger("fedjax_core")

# clients; with fewer, noise that hides one of them would drown the others too
_FEW = 10
_SHOWN = 24  # numbers of rounds for which `told` uses the accountant itself


@dataclass(frozen=True)
class ClientLevel:
    """The result of `client_level`: its settings, and the pieces made from them."""

    population: int
    cohort: int
    """The expected number of clients in a round, which sums are divided by."""
    rounds: int
    """The number of rounds that the noise is for; `fit` goes no further."""
    clip: clipping.Bounds | adaptive
    noise: float
    """The standard deviation of the noise in the sum, in multiples of the clip."""
    delta: float
    sampling: Literal["poisson", "fixed"] = "poisson"
    cap: int = 0
    bands: int = 1
    weight_cap: float | None = None
    open_metrics: bool = False
    seed: int = 0

    @property
    def rate(self) -> float:
        """A client's probability of taking part in a round; with bands, in each round that is its turn."""
        return self.bands * self.cohort / self.population

    @cached_property
    def cohorts(self) -> Sampler:
        """The sampler for `fit`, which the account assumes."""
        if self.sampling == "fixed":
            return uniform(self.population, self.cohort, self.seed)
        if self.bands > 1:
            return turns(self.population, self.rate, self.cap, self.bands, self.seed)
        return capped(self.population, self.rate, self.cap, self.seed)

    @cached_property
    def uplink(self) -> Stage:
        """Clips at both ends, adds the noise to the sum, and divides that by the expected cohort."""
        if isinstance(self.clip, adaptive):
            made = adaptive_gaussian(self.clip, self.noise, self.cohort)
        elif self.bands > 1:
            made = banded_gaussian(self.clip, self.noise, self.cohort, self.bands, self.rounds)
        else:
            made = gaussian(self.clip, self.noise, self.cohort, self.weight_cap)
        return made._replace(name="client level", promises=made.promises._replace(account=self))

    @property
    def aggregator(self) -> Aggregator:
        """The aggregator: the sum of the reports, each once."""
        return total()

    @property
    def terms(self) -> dict[str, Any]:
        """The terms that must not change for one epsilon to cover all rounds, in plain values."""
        values = {
            name: getattr(self, name)
            for name in ("population", "cohort", "noise", "delta", "sampling", "cap", "bands", "weight_cap")
        }
        return {**values, "clip": repr(self.clip)}

    def epsilon(self, rounds: int | None = None) -> float:
        """The epsilon of this many rounds (default: all that are planned), at `delta`."""
        return self._at(self.noise, self.rounds if rounds is None else int(rounds))

    def told(self, rounds: int) -> float:
        """The `epsilon`, or a little above it: that of the next of a few numbers of rounds, or by a formula.
        Cheap enough for every round."""
        if rounds <= 0:
            return 0.0
        every = -(-self.rounds // _SHOWN)
        shown = -(-rounds // every) * every
        return min(
            self.epsilon(min(shown, self.rounds) if rounds <= self.rounds else shown),
            self._by_formula(rounds),
        )

    def _by_formula(self, rounds: int) -> float:
        if self._cut_off > 0:
            return math.inf  # there is no formula for cohorts that are cut off
        return accounting.epsilon(
            self.noise, rounds=self._turns(rounds), delta=self.delta, accountant="rdp", **self._drawn
        )

    def _at(self, noise: float, rounds: int) -> float:
        """The epsilon of this many rounds under this noise, with the cost of cutting off cohorts."""
        count = self._turns(rounds)
        if not self._cut_off or not count:
            return accounting.epsilon(noise, rounds=count, delta=self.delta, **self._drawn)
        # Cutting off cohorts with probability p changes probabilities by at most T p, on both sides: delta
        # gets T p (1 + exp(epsilon)).
        first = accounting.epsilon(noise, rounds=count, delta=0.99 * self.delta, **self._drawn)
        price = rounds * self._cut_off * (1 + math.exp(first)) if first < 700 else math.inf
        if price <= 0.01 * self.delta:
            return accounting.epsilon(noise, rounds=count, delta=self.delta - price, **self._drawn)
        if self.bands > 1:
            return math.inf if first == math.inf else self._refuse()
        numbers = {"population": self.population, "cohort": self.cohort, "cap": self.cap}
        return accounting.epsilon(noise, rounds=count, delta=self.delta, sampling="truncated", **numbers)  # type: ignore[arg-type]

    def _refuse(self) -> float:
        raise ValueError(
            f"cap={self.cap} cuts off cohorts too often for an account under bands={self.bands}: leave cap= out"
        )

    def _turns(self, rounds: int) -> int:
        """The number of these rounds in which a client may take part."""
        return -(-rounds // self.bands)

    @property
    def _drawn(self) -> dict[str, Any]:
        if self.sampling == "fixed":
            return {"sampling": "fixed", "population": self.population, "cohort": self.cohort}
        return {"sampling": "poisson", "rate": self.rate}

    @cached_property
    def _cut_off(self) -> float:
        """The probability that a round's cohort is cut off."""
        if self.sampling == "fixed":
            return 0.0
        those = -(-self.population // self.bands)
        return float(binom.sf(self.cap, those, self.rate)) if self.cap < those else 0.0


def client_level(
    *,
    population: int,
    cohort: int,
    rounds: int,
    clip: float | Mapping[str, float] | adaptive,
    epsilon: float | None = None,
    noise: float | None = None,
    delta: float = 1e-6,
    sampling: Literal["poisson", "fixed"] = "poisson",
    cap: int | None = None,
    bands: int = 1,
    weight_cap: float | None = None,
    open_metrics: bool = False,
    seed: int = 0,
) -> ClientLevel:
    """Differential privacy of whole clients: `population` of them, about `cohort` in each of `rounds` rounds.

    Give `epsilon`, at `delta`, for which the noise is computed, or `noise`, in multiples of the clip. An
    update is clipped to norm `clip`, a number; a bound for each group of leaves, {"0": 1.0, "1": 0.5}; or
    `fc.privacy.adaptive(0.1)`.

    `sampling`: "poisson", each client by itself, with cohorts cut off above `cap` (by default so rarely that
    it costs nothing, else the epsilon includes it); "fixed", `cohort` clients each time, where neighbours
    differ in one client. `bands` > 1: noise shared by so many rounds, with clients that take turns
    (`fedjax_core.privacy.correlated`), which leaves less of it in the model after many rounds. `weight_cap`:
    clients count by their examples, up to so many, instead of alike. Training metrics are withheld, as they
    would leave without noise, unless `open_metrics`, for simulations whose clients need no protection: no
    epsilon covers them. `seed` draws the cohorts, and must be unknown to anybody whom the epsilon protects
    from.

    Raises ValueError where no noise gives this epsilon.
    """
    at_least(1, population=population, cohort=cohort, rounds=rounds, bands=bands)
    if population < _FEW:
        raise ValueError(
            f'client level with {population} clients is meaningless: "with or without one of them" drowns all that {population} can learn. '
            "Protect their examples instead (fc.privacy.example_level), or have real sites add noise of their own (leaving.noise)"
        )
    if cohort * bands > population:
        raise ValueError(
            f"cohort={cohort}{f' in each of bands={bands} groups' if bands > 1 else ''} is more than population={population}"
        )
    if (epsilon is None) == (noise is None):
        raise ValueError(
            f"give epsilon=, for which the noise is found, or noise= itself, and not both: got {epsilon} and {noise}"
        )
    if sampling not in ("poisson", "fixed"):
        raise ValueError(f'sampling must be "poisson" or "fixed", got {sampling!r}')
    if bands > 1 and (sampling == "fixed" or isinstance(clip, adaptive) or weight_cap is not None):
        raise ValueError(
            "bands= shares noise between rounds of one clip and of Poisson cohorts: leave out sampling=, adaptive clips, weight_cap="
        )
    if isinstance(clip, adaptive) and weight_cap is not None:
        raise ValueError(
            "weight_cap= goes with a clip that stays as it is: give clip= a number, or leave weight_cap= out"
        )
    if sampling == "fixed" and cap is not None:
        raise ValueError('sampling="fixed" has no cap=: every cohort has the same size')
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta!r}")
    if delta > 1 / population:
        log.warning(
            "delta=%g is more than one over the %d clients: it allows that one of them is told outright",
            delta,
            population,
        )
    rate, those = bands * cohort / population, -(-population // bands)
    cap = headroom(those, rate) if cap is None else cap
    if sampling == "poisson" and not cohort <= cap <= those:
        raise ValueError(
            f"cap={cap} is the most clients of a round: from the cohort, {cohort}, to all that may come, {those}"
        )
    made = ClientLevel(
        population, cohort, rounds, clip if isinstance(clip, adaptive) else clipping.bounds(clip), 0.0 if noise is None else float(noise),
        float(delta), sampling, 0 if sampling == "fixed" else cap, bands, weight_cap, open_metrics, seed,
    )  # fmt: skip
    return made if epsilon is None else calibrated(made, epsilon)


def calibrated(made: ClientLevel, epsilon: float) -> ClientLevel:
    """The account with the least noise for this epsilon."""
    start = accounting.noise_for(epsilon, rounds=made._turns(made.rounds), delta=made.delta, **made._drawn)
    return replace(made, noise=accounting.least(lambda noise: made._at(noise, made.rounds) - epsilon, start))
