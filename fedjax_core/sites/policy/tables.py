"""The tables of a site's policy, with their settings, checked as they are read. policy.py shows them in their
file.

>>> Minimum(examples=50).lacking(49, None)[0], Minimum(examples=50).lacking(50, None)
('examples', None)
>>> Leaving(noise=1.0, clip=0.5)
Traceback (most recent call last):
ValueError: leaving.noise is noise that the site adds, of which it keeps an account: set leaving.delta, such as 1e-6
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedjax_core.disclosure.policy import OutputPolicy
from fedjax_core.sites.protocol.report import PARTIAL
from fedjax_core.sites.refusal import listed


@dataclass(frozen=True)
class Tasks:
    """The studies that may run, by their hashes."""

    mode: Literal["list", "first-use"] = "list"
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Minimum:
    """The least numbers of examples, of persons behind a sum, and of sites."""

    examples: int = 0
    per_class: int = 0
    cell: int = 0
    department: int = 0
    classes: int = 0
    sites: int = 0

    def lacking(self, examples: int, per_class: Mapping[Any, int] | None) -> tuple[str, str] | None:
        """(code, reason) if so many examples, in total or of a class, are too few; None if they are
        enough."""
        if examples < self.examples:
            return (
                "examples",
                f"fewer than the {self.examples} examples that its policy asks for (minimum.examples)",
            )
        absent = len(per_class or {}) < self.classes
        if self.per_class and (absent or min((per_class or {}).values(), default=0) < self.per_class):
            return (
                "per-class",
                f"fewer than the {self.per_class} examples of each class that its policy asks for (minimum.per_class)",
            )
        return None


SAFE = Minimum(examples=10, per_class=3, cell=10, department=10)
"""The minimums written into new policies, which also hold for a site with a study but no policy in its
file."""


@dataclass(frozen=True)
class Leaving:
    """The table of what may leave with an update, and of the update's treatment before that."""

    fields: tuple[str, ...] = ("weight", "examples", "data")
    secure: bool = False
    max_norm: float | None = None
    clip: float | None = None
    noise: float | None = None
    by: Literal["site", "study"] = "site"
    delta: float | None = None
    epsilon: float | None = None

    @property
    def enforced(self) -> bool:
        """Whether the site itself clips what leaves, and adds its noise."""
        return self.by == "site" and self.clip is not None

    def __post_init__(self) -> None:
        if self.by == "site" and (self.clip == 0 or (self.noise and self.clip is None)):
            clip = "not set" if self.clip is None else f"{self.clip:g}"
            raise ValueError(
                f"leaving.clip is {clip}, and should be the l2 norm to which the site clips, above 0"
            )
        if self.by == "site" and self.noise and self.delta is None:
            raise ValueError(
                "leaving.noise is noise that the site adds, of which it keeps an account: set leaving.delta, such as 1e-6"
            )
        if self.epsilon is not None and self.delta is None:
            raise ValueError(
                f"leaving.epsilon is {self.epsilon:g}, and means nothing without leaving.delta: set one, such as 1e-6"
            )
        if self.delta is None:
            return
        if not 0 < self.delta < 1:
            raise ValueError(
                f"leaving.delta is {self.delta:g}, and should be a probability: well below one over the number of patients"
            )
        if not (self.clip and self.noise):
            raise ValueError(
                "leaving.delta has an epsilon kept, which comes of a clip and a noise: set leaving.clip and leaving.noise"
            )
        # The fields subtracted here are counts.
        if bare := sorted(set(self.fields) - {"weight", "examples", "data", "clients", *PARTIAL}):
            raise ValueError(
                f"leaving.fields names {listed(bare)}, which leaves without noise and is not counted, and leaving.delta has an epsilon "
                "kept: leave one of them out"
            )


@dataclass(frozen=True)
class Evaluation:
    """The models that the site evaluates, and the number of answers a day."""

    models: Literal["sent", "any"] = "sent"
    per_day: int = 150


@dataclass(frozen=True)
class Statistics(OutputPolicy):
    """The table of what statistics may disclose: the output policy, and the columns that it opens."""

    columns: tuple[str, ...] = ()
    """The columns that a statistic may use; "site" is always among them."""


@dataclass(frozen=True)
class Caps:
    """The most that the site's process may use, and the most updates that leave; no request can change
    them."""

    cpus: int | None = None
    gpu_share: float | None = None
    memory_gb: float | None = None
    kept_gb: float | None = 20.0
    seconds_per_round: float | None = None
    seconds_per_day: float | None = None
    updates_per_day: int | None = None
    updates: int | None = None

    def __post_init__(self) -> None:
        if self.cpus == 0:
            raise ValueError("caps.cpus is 0, and work needs at least 1; to stop it, set paused = true")
        if self.gpu_share is not None and not 0 < self.gpu_share <= 1:
            raise ValueError(
                f"caps.gpu_share is {self.gpu_share:g}, and should be a share of the GPU's memory, above 0 and at most 1"
            )
