"""How long a round of real sites waits, for whom, and what it lets through: `Rules`, which may be set between
rounds.

Time has one rule: a round waits for its cohort until nothing has come, and no site has gone on, for
`idle_seconds`, or until its one deadline. A site that did not answer, as where its machine is down, is waited
for so long once. From then on it is asked as before, and waited for a `grace` only, until something comes
from it again. In a round of several exchanges each has its part of the time, as soon as the quorum is there,
so that the next one has some too. So a straggler is

    waited for       a long `deadline_seconds`, as it is
    dropped          a short one, or `enough` reports
    taken partway    `train_seconds`: every site sends what it has done by then (`fedjax_core.sites.site.time_limit`)

and a round counts with a `quorum` of its sites, which have at least the `share` of its examples.

A run goes on under other rules than it began with: none is among the settings that a resume compares. They
may change between any two rounds, and what they decide, who counts and how far each site came, is up to
clocks as well. The audit log has what came of them: who was missing, what was set aside and why, and of each
request to train its `train_seconds`.

>>> import numpy as np
>>> rules = Rules(share=0.5)
>>> rules.needed(4)
3
>>> asked = np.array([23, 5, 1, 4])  # examples; more than half of the sites are here, and then also half of the examples
>>> rules.quorate(asked, asked[1:]), rules.quorate(asked, asked[:3])
(False, True)
>>> Rules(train_seconds=60, deadline_seconds=60)
Traceback (most recent call last):
ValueError: train_seconds is 60; it should be above 0 and well below the deadline_seconds of 60, ...
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedjax_core.sites.wire.replay import SKEW_SECONDS


@dataclass(frozen=True)
class Rules:
    """How long a round waits, and for how many."""

    quorum: int | None = None
    """So many sites must report, or all of a smaller cohort; None: more than half of the cohort."""
    share: float = 0.0
    """And they must have this share of the cohort's examples."""
    deadline_seconds: float = 3600.0
    """So long a round waits for its cohort, in all of its exchanges together."""
    grace: float | None = 1.5
    """A site that was silent when it was last waited for is waited for so many times as long as the others
    took, and a second at least, once the quorum is there; None: as long as any other."""
    idle_seconds: float | None = None
    """So long it waits from one reply, or part of one, to the next, or from one look to the next at which a
    site has done more steps. Over Ray a federation has to begin with it: its sites are then made so that they
    can be asked."""
    enough: int | None = None
    """With so many reports it ends (over-selection): faster, but who is in it is then up to the clock."""
    train_seconds: float | None = None
    """So long a site trains in an exchange; it then stops after the step at hand, and what it did counts.
    None: as long as it needs."""
    attempts: int = 2
    """How often a site is asked, where its reply was damaged or lost, and how often those missing are waited
    for."""
    max_weight: float | None = None
    """Of one report; None: what the algorithm gives to as many examples and steps as the site has. Where that
    depends on more than these: the site's number of examples, or 1 where that is less."""
    max_norm: float | Literal["relative"] = "relative"
    """Of the update of one site. "relative": 100 times the median of those in the same exchange
    (outlying.py). A number: that many, whatever the others send; `math.inf`: any."""
    skew_seconds: float = SKEW_SECONDS
    """By how much a site's clock may differ from the coordinator's."""
    allow_zero: bool = False
    """Whether a round may go on from reports that add up to exactly nothing, which otherwise raises
    `NothingLearned`."""
    warn_below: float = 0.1
    """Where the uplink leaves less than this share of the updates' numbers or norm, on average over sites, it
    is warned of."""
    part_bytes: int | None = 8 << 20
    """A report or a request that is longer moves in parts of so many bytes, each well within `idle_seconds`
    on the slowest link; None, or where all sites are on this machine: whole."""

    def __post_init__(self) -> None:
        if self.train_seconds is not None and not 0 < self.train_seconds < self.deadline_seconds:
            raise ValueError(
                f"train_seconds is {self.train_seconds:g}; it should be above 0 and well below the deadline_seconds of "
                f"{self.deadline_seconds:g}, by which the report must be here; or None, for sites that train as long as they need"
            )
        if self.max_norm != "relative" and not (type(self.max_norm) in (int, float) and self.max_norm > 0):
            raise ValueError(
                f'max_norm is {self.max_norm!r}; it should be "relative", or the largest norm that an update may have'
            )
        if self.grace is not None and not 1 <= self.grace < math.inf:
            raise ValueError(
                f"grace is {self.grace:g}; it should be at least 1, which is as long as the others took; or None, to wait for a site that "
                "is silent as long as for any other"
            )
        if self.part_bytes is not None and self.part_bytes < 1:
            raise ValueError(
                f"part_bytes is {self.part_bytes}; it should be the bytes of a part, or None for messages that move whole"
            )

    def needed(self, sites: int) -> int:
        """How many of so many sites must report."""
        return sites // 2 + 1 if self.quorum is None else min(self.quorum, sites)

    def quorate(self, cohort: np.ndarray, here: np.ndarray) -> bool:
        """Whether those here are enough of those asked, each given by its number of examples."""
        return len(here) >= self.needed(len(cohort)) and bool(here.sum() >= self.share * cohort.sum())
