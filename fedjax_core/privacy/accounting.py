"""Privacy accounting: the epsilon at a delta of rounds of a noisy sum, computed by the dp-accounting library
only.

    a round = sum over the sampled clients of updates clipped to norm C  +  N(0, (noise C)^2)
    P[output | with the client] <= exp(epsilon) P[output | without] + delta, and the other way round

`sampling` says how a round's clients are drawn, and must match the sampler:

| sampling | a round's clients | neighbours | accountants |
|---|---|---|---|
| "poisson" | each by itself with probability `rate` | one client more or less | "pld", "rdp" |
| "truncated" | as poisson, with at most `cap` kept, all sets as likely | one client more or less | "pld" |
| "fixed" | `cohort` of `population`, all sets as likely | one client is another | "rdp" |
| "everyone" | all | one client more or less | "pld", "rdp" |

"pld" (privacy loss distributions) is the tighter, by numbers; "rdp" (Renyi) is a formula. The `dp-accounting`
library is Google's; Abadi et al., "Deep Learning with Differential Privacy", CCS 2016; Mironov, "Renyi
Differential Privacy", CSF 2017; Koskela, Jalko and Honkela, "Computing Tight Differential Privacy Guarantees
Using FFT", AISTATS 2020.

>>> f"{epsilon(noise=1.0, rate=0.01, rounds=1000, delta=1e-5, accountant='rdp'):.3f}"
'2.101'
>>> f"{epsilon(noise=1.0, rounds=100, delta=1e-3, sampling='fixed', population=100, cohort=10):.3f}"
'10.815'
>>> f"{noise_for(epsilon=2.0, rate=0.01, rounds=1000, delta=1e-5, accountant='rdp'):.4f}"
'1.0223'
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from scipy.optimize import brentq

Sampling = Literal["poisson", "truncated", "fixed", "everyone"]
Accountant = Literal["pld", "rdp"]
Neighbours = Literal["add-remove", "replace-one", "replace-special"]

_TOO_MUCH = 1e4  # an epsilon above which its size does not matter


@dataclass(frozen=True)
class Sampled:
    """The sampling of a round's clients; the arguments of `epsilon` with the same names."""

    sampling: Sampling
    rate: float | None = None
    population: int | None = None
    cohort: int | None = None
    cap: int | None = None
    examples: int = 1

    def event(self, noise: float) -> Any:
        """The event of one round, for dp-accounting."""
        import dp_accounting as dp  # half a second, paid only when an epsilon is computed

        gaussian = dp.GaussianDpEvent(noise)
        if self.examples > 1:
            shares = [_binomial(self.examples, k, self.probability) for k in range(self.examples + 1)]
            return dp.dp_event.MixtureOfGaussiansDpEvent(noise, list(range(self.examples + 1)), shares)
        if self.sampling == "everyone" or (self.sampling == "poisson" and self.probability == 1):
            return gaussian
        if self.sampling == "poisson":
            return dp.PoissonSampledDpEvent(self.probability, gaussian)
        if self.sampling == "truncated":
            return dp.dp_event.TruncatedSubsampledGaussianDpEvent(
                self.population, self.probability, self.cap, noise
            )
        return dp.SampledWithoutReplacementDpEvent(self.population, self.cohort, gaussian)

    @property
    def probability(self) -> float:
        """The probability with which a client takes part in a round."""
        if self.rate is not None:
            return self.rate
        if self.sampling == "everyone":
            return 1.0
        assert self.cohort is not None and self.population is not None
        return self.cohort / self.population


def epsilon(
    noise: float,
    rate: float | None = None,
    rounds: int = 1,
    delta: float = 1e-6,
    sampling: Sampling = "poisson",
    accountant: Accountant | None = None,
    *,
    population: int | None = None,
    cohort: int | None = None,
    cap: int | None = None,
    neighbours: Neighbours | None = None,
    examples: int = 1,
) -> float:
    """The epsilon at `delta` of `rounds` noisy sums; infinite without noise.

    `noise` is in multiples of the clip, as in N(0, (noise clip)^2). `rate` is a client's probability of
    taking part in a round; `population` and `cohort` give it too, and "fixed" and "truncated" need them (and
    `cap`). `accountant`: by default "pld" if it knows the sampling, else "rdp". `neighbours`: the relation
    between data sets; by default that of the table above. `examples` > 1: the number of rows of a person,
    each sampled by itself.
    """
    drawn = sampled(sampling, rate, population, cohort, cap, examples)
    _check(noise, rounds, delta, accountant, neighbours)
    return _epsilon(
        float(noise),
        drawn,
        int(rounds),
        float(delta),
        accountant or _usual(drawn),
        neighbours or _relation(drawn),
    )


def noise_for(
    epsilon: float,
    rate: float | None = None,
    rounds: int = 1,
    delta: float = 1e-6,
    sampling: Sampling = "poisson",
    accountant: Accountant | None = None,
    *,
    population: int | None = None,
    cohort: int | None = None,
    cap: int | None = None,
    neighbours: Neighbours | None = None,
    examples: int = 1,
) -> float:
    """The least noise, in multiples of the clip, with which `rounds` rounds have at most this epsilon at
    `delta`.

    The arguments are those of `epsilon`, which then gives this epsilon or up to 0.001 less. Takes some
    seconds with "pld". Raises ValueError where no noise is enough, for example because a cap cuts off cohorts
    too often."""
    drawn = sampled(sampling, rate, population, cohort, cap, examples)
    _check(1.0, rounds, delta, accountant, neighbours)
    if not (0 < epsilon < math.inf):
        raise ValueError(
            f"epsilon must be a number above 0, got {epsilon!r}: 1 is strong, 8 is usual, above 20 little is promised"
        )
    relation = neighbours or _relation(drawn)
    return _noise_for(float(epsilon), drawn, int(rounds), float(delta), accountant or _usual(drawn), relation)


def epsilon_of(
    event: Any, delta: float, accountant: Accountant = "pld", neighbours: Neighbours = "add-remove"
) -> float:
    """The epsilon at `delta` of any event of dp-accounting, such as `dp_accounting.ComposedDpEvent([...])` of
    several studies.

    >>> import dp_accounting
    >>> f"{epsilon_of(dp_accounting.ZCDpEvent(0.1), delta=1e-6, accountant='rdp'):.4f}"
    '2.1430'
    """
    _check(1.0, 1, delta, accountant, neighbours)
    return _accounted(event, 1, delta, accountant, neighbours)


def sampled(
    sampling: Sampling,
    rate: float | None = None,
    population: int | None = None,
    cohort: int | None = None,
    cap: int | None = None,
    examples: int = 1,
) -> Sampled:
    """The arguments of `epsilon` that say how clients are drawn, checked."""
    if sampling not in ("poisson", "truncated", "fixed", "everyone"):
        raise ValueError(f'sampling must be "poisson", "truncated", "fixed" or "everyone", got {sampling!r}')
    given = population is not None and cohort is not None
    if sampling in ("fixed", "truncated") and not given:
        raise ValueError(
            f'sampling="{sampling}" needs population= and cohort=: the rate alone does not say how many clients there are'
        )
    if sampling == "truncated" and cap is None:
        raise ValueError('sampling="truncated" needs cap=, the most clients that a round can have')
    if sampling == "poisson" and rate is None and not given:
        raise ValueError(
            'sampling="poisson" needs rate=, the probability with which a client takes part, or population= and cohort='
        )
    if rate is not None and given and not math.isclose(rate, cohort / population, rel_tol=1e-9):  # type: ignore[operator]
        raise ValueError(f"rate={rate} is not cohort / population = {cohort}/{population}: give one of them")
    if rate is not None and not 0 < rate <= 1:
        raise ValueError(
            f"rate is the probability with which a client takes part in a round, above 0 and at most 1, got {rate}"
        )
    if given and not 1 <= cohort <= population:  # type: ignore[operator]
        raise ValueError(f"cohort must be from 1 to the population, {population}, got {cohort}")
    if cap is not None and cap < 1:
        raise ValueError(f"cap must be at least 1, got {cap}")
    if examples < 1 or (examples > 1 and sampling != "poisson"):
        raise ValueError(
            f'examples must be at least 1, and 1 unless sampling="poisson", got {examples} with {sampling!r}'
        )
    if sampling == "everyone":
        return Sampled(sampling)
    checked = Sampled(sampling, rate, population, cohort, cap, examples)
    return (
        checked
        if sampling != "poisson"
        else replace(checked, rate=checked.probability, population=None, cohort=None, cap=None)
    )


def _usual(drawn: Sampled) -> Accountant:
    return "rdp" if drawn.sampling == "fixed" else "pld"


def _relation(drawn: Sampled) -> Neighbours:
    return "replace-one" if drawn.sampling == "fixed" else "add-remove"


def _check(noise: float, rounds: int, delta: float, accountant: Any, neighbours: Any) -> None:
    if accountant not in (None, "pld", "rdp"):
        raise ValueError(f'accountant must be "pld" or "rdp", got {accountant!r}')
    if neighbours not in (None, "add-remove", "replace-one", "replace-special"):
        raise ValueError(
            f'neighbours must be "add-remove", "replace-one" or "replace-special", got {neighbours!r}'
        )
    if not noise >= 0:
        raise ValueError(f"noise must be 0 or more, in multiples of the clip, got {noise!r}")
    if isinstance(rounds, bool) or int(rounds) != rounds or rounds < 0:
        raise ValueError(f"rounds must be a whole number, 0 or more, got {rounds!r}")
    if not 0 < delta < 1:
        raise ValueError(
            f"delta must be between 0 and 1, and well below one over the number of clients, got {delta!r}"
        )


@lru_cache(maxsize=4096)
def _epsilon(
    noise: float, drawn: Sampled, rounds: int, delta: float, accountant: Accountant, neighbours: Neighbours
) -> float:
    if rounds == 0:
        return 0.0
    if noise == 0:
        return math.inf
    if accountant == "pld" and drawn.examples == 1 and drawn.sampling in ("poisson", "everyone"):
        return float(_composed(noise, drawn.probability, rounds, neighbours).get_epsilon_for_delta(delta))
    return _accounted(drawn.event(noise), rounds, delta, accountant, neighbours)


@lru_cache(maxsize=8)
def _composed(noise: float, rate: float, rounds: int, neighbours: Neighbours) -> Any:
    """The privacy loss distribution of `rounds` rounds, as in `PLDAccountant`, cached for other deltas."""
    if rate == 1:  # repeated noise equals one draw of less noise
        return _one_round(noise / math.sqrt(rounds), 1.0, neighbours)
    return _one_round(noise, rate, neighbours).self_compose(rounds)


@lru_cache(maxsize=4)
def _one_round(noise: float, rate: float, neighbours: Neighbours) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, neighboring_relation=_relations()[neighbours]
    )


def _relations() -> dict[Neighbours, Any]:
    import dp_accounting as dp

    one = dp.NeighboringRelation
    return {
        "add-remove": one.ADD_OR_REMOVE_ONE,
        "replace-one": one.REPLACE_ONE,
        "replace-special": one.REPLACE_SPECIAL,
    }


def _accounted(event: Any, count: int, delta: float, accountant: Accountant, neighbours: Neighbours) -> float:
    """The epsilon of an event that happens `count` times."""
    import dp_accounting as dp

    relation = _relations()[neighbours]
    with _quiet():
        counts = (
            dp.pld.PLDAccountant(relation)
            if accountant == "pld"
            else dp.rdp.RdpAccountant(neighboring_relation=relation)
        )
        try:
            return float(counts.compose(event, count).get_epsilon(delta))
        except dp.UnsupportedEventError as error:
            raise ValueError(
                f"the {accountant!r} accountant does not know this sampling between neighbours {neighbours!r}: {error}"
            ) from None


@lru_cache(maxsize=1024)
def _noise_for(
    wanted: float, drawn: Sampled, rounds: int, delta: float, accountant: Accountant, neighbours: Neighbours
) -> float:
    def over(noise: float) -> float:
        return _epsilon(noise, drawn, rounds, delta, accountant, neighbours) - wanted

    start = 1.0
    if (
        accountant == "pld"
        and neighbours == "add-remove"
        and drawn.sampling != "truncated"
        and drawn.examples == 1
    ):
        # a formula, and a little too much
        start = _noise_for(wanted, drawn, rounds, delta, "rdp", neighbours)
    return least(over, start)


def least(over: Callable[[float], float], start: float) -> float:
    """The least number, or about a millionth above it, at which the falling function `over` is not above 0;
    raises where there is none."""
    low = high = start
    step = 1.001
    while over(high) > 0:
        low, high, step = high, high * step, min(step**4, 1.5)
        if high > _TOO_MUCH:
            raise ValueError(
                f"no noise up to {_TOO_MUCH:g} is enough for this epsilon: take a larger epsilon or delta, fewer rounds, or, where cohorts "
                "are cut off, a larger cap"
            )
    while low == high or over(low) <= 0:
        low, high = low / 1.2, low
        if low < 1e-4:
            return high
    root = math.exp(brentq(lambda t: min(over(math.exp(t)), 1e3), math.log(low), math.log(high), xtol=2e-7))
    while over(root) > 0:  # on the other side of the root, by less than a millionth
        root *= 1 + 2e-7
    return root


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context without dp-accounting's warnings of Renyi orders that do not converge: they are left out, and
    the bound is a little looser."""
    speaks = logging.getLogger("absl")
    before = speaks.level
    speaks.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaks.setLevel(before)


def _binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)
