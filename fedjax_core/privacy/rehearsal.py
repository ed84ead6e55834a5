"""A small run with the signal to noise of a large one, to try settings by: NOT A GUARANTEE of anything.

    in earnest     a sum of N clients of M, noise sigma C:    value = (sum + N(0, (sigma C)^2)) / N
    rehearsed      a sum of n clients, noise sigma n / N C:   value = (sum + N(0, (sigma n / N C)^2)) / n,  with as much noise in it

The noise is computed for cohorts of N, and n are simulated. The rehearsed model has less noise than its own
clients would need, so there is no account, and `fit` reports no epsilon. It is done as in pfl-research
(Granqvist et al., "pfl-research: simulation framework for accelerating research in Private Federated
Learning", NeurIPS 2024), whose benchmarks call it noise cohort size.

>>> from fedjax_core.privacy.client_level import client_level
>>> earnest = client_level(population=100_000, cohort=1000, rounds=20, clip=1.0, noise=2.0, delta=1e-6)
>>> small = rehearsal(earnest, cohort=50)
>>> small.noise, small.cohorts.population, small.uplink.name, small.uplink.promises.account
(0.1, 100000, 'client level, rehearsed (not a guarantee)', None)
"""

import logging
from dataclasses import dataclass, replace

from fedjax_core.aggregators.base import Aggregator
from fedjax_core.checks import at_least
from fedjax_core.data.cohort import Sampler
from fedjax_core.privacy.client_level import ClientLevel, client_level
from fedjax_core.uplink.base import Stage

log = logging.getLogger("fedjax_core")


@dataclass(frozen=True)
class Rehearsal:
    """The result of `rehearsal`: used with `compose` and `fit` like the account that it rehearses, but
    without an epsilon."""

    earnest: ClientLevel
    cohort: int

    @property
    def noise(self) -> float:
        """The standard deviation of the noise in the sum of the small cohort, in multiples of the clip."""
        return self.earnest.noise * self.cohort / self.earnest.cohort

    @property
    def _small(self) -> ClientLevel:
        of = self.earnest
        made = client_level(
            population=of.population, cohort=self.cohort, rounds=of.rounds, clip=1.0, noise=self.noise, delta=of.delta,
            sampling=of.sampling, open_metrics=of.open_metrics, seed=of.seed,
        )  # fmt: skip
        return replace(made, clip=of.clip, weight_cap=of.weight_cap)

    @property
    def cohorts(self) -> Sampler:
        """The sampler for `fit`."""
        return self._small.cohorts

    @property
    def uplink(self) -> Stage:
        """Clips, and adds the smaller noise."""
        made = self._small.uplink
        return made._replace(
            name="client level, rehearsed (not a guarantee)", promises=made.promises._replace(account=None)
        )

    @property
    def aggregator(self) -> Aggregator:
        """The aggregator: the sum of the reports, each once."""
        return self._small.aggregator


def rehearsal(earnest: ClientLevel, *, cohort: int) -> Rehearsal:
    """`earnest` with cohorts of this many clients, and proportionally less noise in their sum: not a
    guarantee, which the log says too.

    `earnest.epsilon()` holds for a run with cohorts of `earnest.cohort` clients, and not for this one.
    """
    at_least(1, cohort=cohort)
    if cohort > earnest.cohort:
        raise ValueError(
            f"cohort={cohort} is what is rehearsed with, at most the cohort in earnest, {earnest.cohort}"
        )
    if earnest.bands > 1:
        raise ValueError(
            "bands= shares noise between rounds, whose cohorts are groups of the population: rehearse without"
        )
    log.warning(
        "not a guarantee: %d clients a round with the noise of %d by share tell more than the epsilon of these, and nobody counts it",
        cohort, earnest.cohort,
    )  # fmt: skip
    return Rehearsal(earnest, cohort)
