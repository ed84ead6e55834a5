"""`Rules`: deadlines, quorum and bounds of a federation's rounds, which may be changed between rounds.

A round waits for its cohort until its one deadline, or until nothing has come and no site has gone on for
`idle_seconds`. A site that did not answer, as when its machine is down, gets that long once. From then on it
is asked as before, but gets only a `grace`, until something comes from it again. In a round of several
exchanges each has its part of the time once the quorum is there, so that the next one has some too. So a
straggler is

    waited for       a long `deadline_seconds`, as it is
    dropped          a short one, or `enough` reports
    taken partway    `train_seconds`: every site sends what it has done by then (`fedjax_core.sites.site.time_limit`)

and a round counts with a `quorum` of its sites, which have at least the `share` of its examples.

A run may go on under other rules than it began with: none is among the settings that a resume compares. Rules
may change between any two rounds. What they decide, who counts and how far each site came, depends on clocks
as well. The audit log has the outcome: who was missing, what was rejected and why, and the `train_seconds` of
each request to train.

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
    """Deadlines, quorum and bounds of a federation's rounds."""

    quorum: int | None = None
    """How many sites must report, or all of a smaller cohort; None: more than half of the cohort."""
    share: float = 0.0
    """The share of the cohort's examples that the reporting sites must have."""
    deadline_seconds: float = 3600.0
    """How long a round waits for its cohort, over all of its exchanges."""
    grace: float | None = 1.5
    """How long a site that was silent last time is waited for once the quorum is there: this many times as
    long as the others took, at least a second. None: as long as any other site."""
    idle_seconds: float | None = None
    """The longest wait without a reply, a part of one, or a site that has done more steps. Over Ray a
    federation must begin with it, so that its sites are made to report their progress."""
    enough: int | None = None
    """The number of reports that end the round early (over-selection): faster, but then the clock decides who
    is in it."""
    train_seconds: float | None = None
    """How long a site trains in an exchange: it then stops after the current step, and what it did counts.
    None: as long as it needs."""
    attempts: int = 2
    """How often a site is asked if its reply is damaged or lost, and how often missing sites are waited
    for."""
    max_weight: float | None = None
    """The largest weight of one report; None: the weight that the algorithm gives to the site's examples and
    steps, or, if it depends on more, the site's number of examples, at least 1."""
    max_norm: float | Literal["relative"] = "relative"
    """The largest norm of one site's update. "relative": 100 times the median of the same exchange
    (outlying.py). A number: an absolute bound; `math.inf`: none."""
    skew_seconds: float = SKEW_SECONDS
    """How far a site's clock may differ from the coordinator's."""
    allow_zero: bool = False
    """Whether a round may go on from reports that add up to exactly zero, instead of raising
    `NothingLearned`."""
    warn_below: float = 0.1
    """The share of the updates' numbers or norm that the uplink must leave, on average over sites, without a
    warning."""
    part_bytes: int | None = 8 << 20
    """The size of the parts in which longer messages move, each well within `idle_seconds` on the slowest
    link. None, or with all sites on this machine: messages move whole."""

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
        """The number of reports needed from so many sites."""
        return sites // 2 + 1 if self.quorum is None else min(self.quorum, sites)

    def quorate(self, cohort: np.ndarray, here: np.ndarray) -> bool:
        """Whether the sites here are enough of the cohort; each site is given by its number of examples."""
        return len(here) >= self.needed(len(cohort)) and bool(here.sum() >= self.share * cohort.sum())
