"""Samplers that look at the model before they choose who takes part: power of choice.

`fc.fit` asks such a sampler to `choose`, with a function that scores the model on the clients' own examples,
on any backend.

>>> from fedjax_core.data.cohorts import everyone
>>> losses = np.array([0.1, 0.5, 0.3])
>>> power_of_choice(everyone(3), size=2).choose(0, None, lambda clients: {"loss": losses[clients]}).tolist()
[1, 2]
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedjax_core.checks import at_least
from fedjax_core.data.cohort import Cohort, Sampler, as_cohort

Score = Callable[[Any], Mapping[str, np.ndarray]]
"""(positions [n] of clients) -> {metric: [n]} of the model on each client's examples; NaN without examples,
or where it is not told."""


class Chooser(Protocol):
    """A sampler that looks at the model before it chooses: `fc.fit` calls its `choose`, not the sampler
    itself.

    It depends on nothing but its arguments, so that an interrupted run chooses as it would have. A cohort is
    not known before the round before it is done, and how often a client takes part depends on the data: a
    privacy accountant has no rate to go by.
    """

    @property
    def population(self) -> int:
        """The number of clients to choose from."""

    @property
    def max_size(self) -> int:
        """The most distinct clients that a round can have."""

    def choose(self, round: int, state: Any, score: Score, /) -> np.ndarray | Cohort:
        """The round's clients; `state` is that after the round before, and must not be kept."""


# A class in lower case, as those of cohorts.py, so that it prints as it is written.
@dataclass(frozen=True)
class power_of_choice:
    """The `size` clients, of those that `candidates` draws, whose `metric` is largest under the current
    model; sorted.

    Cho, Wang and Joshi, "Towards understanding biased client selection in federated learning", AISTATS 2022.
    There they are drawn by their numbers of examples: `power_of_choice(weighted(clients.sizes, 20), size=5)`.
    A client whose metric is not known, as it has no examples, comes last; of equals the first is taken. The
    model is sent to all candidates, and evaluated on all their examples, for each round.
    """

    candidates: Sampler
    size: int
    metric: str = "loss"

    def __post_init__(self) -> None:
        at_least(1, size=self.size)
        if self.size > self.candidates.max_size:
            raise ValueError(
                f"cannot choose {self.size} clients of at most {self.candidates.max_size} candidates: have more drawn"
            )

    @property
    def population(self) -> int:
        return self.candidates.population

    @property
    def max_size(self) -> int:
        return self.size

    def choose(self, round: int, state: Any, score: Score) -> np.ndarray:
        drawn = as_cohort(self.candidates(round), self.population).clients
        if not len(drawn):
            return drawn
        scores = score(drawn)
        if self.metric not in scores:
            raise ValueError(
                f"power_of_choice goes by metric {self.metric!r}, and clients tell {', '.join(scores) or 'none'}"
            )
        known = np.where(np.isnan(scores[self.metric]), -np.inf, scores[self.metric])
        return np.sort(drawn[np.lexsort((drawn, -known))[: self.size]])
