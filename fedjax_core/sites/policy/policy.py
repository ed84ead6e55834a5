"""`Policy`: what a site takes part in and what may leave it, in one file at the site that nothing outside can
override.

    site = "charite"
    paused = false                # for now; `withdrawn = true` is for good, and recorded for each run
    max_bad_share = 0.01          # bad records are skipped, up to this share; if not set, none are

    [tasks]                       # which studies may run, by their hashes
    mode = "list"                 # or "first-use": pins the first one asked for, and refuses every other
    allowed = ["3f9a0b1c2d3e4f5a6b7c8d9e0f1a2b3c"]    # hashes, as `fedjax-core doctor` prints them

    [minimum]                     # of examples that the site has, and of those behind a report
    examples = 50
    per_class = 5                 # of each class, including classes of the task that the site lacks
    classes = 2                   # the number of classes, if the study's task does not say it
    department = 5                # of each department, if departments are clients; see departments.py
    sites = 5                     # in a sum of secure aggregation; never fewer than 3
    cell = 5                      # of values behind a sum of preprocessing or a metric

    [leaving]
    fields = ["weight", "examples", "data"]     # and metrics, such as "loss", but not with a privacy ledger
                                                # and "steps_done", "examples_seen", for limited time
                                                # and "stats.loss", read site by site
    secure = true                 # updates leave only under masks: the study has fc.uplink.secure
    max_norm = 10.0               # of what leaves, except sums allowed by `fields` (moments, range, categories)
    clip = 1.0                    # the site clips each update to this l2 norm; see noise.py
    noise = 0.8                   # and adds noise of this multiple of the clip
    by = "site"                   # or "study": the study must clip and add as much, and the site adds nothing
    delta = 1e-6                  # a ledger counts updates as an epsilon at this delta; see privacy_ledger.py
    epsilon = 8.0                 # the most, over all runs together

    [evaluation]                  # see answered.py
    models = "sent"               # one model a round, evaluated if sent in training; or "any"
    per_day = 150                 # new answers to evaluate, score, measure, statistics and describe

    [statistics]                  # if `fields` name "statistics"; see site/statistics.py
    columns = ["age", "sex", "died"]            # only these; none without the table but with minimum.cell
    minimum = 10                  # people behind a cell and any difference of answers; fedjax_core/disclosure
    tables = "suppress"           # small cells: "refuse" the table, hide some, or "round" to multiples of `base`
    parameters = 0.33             # of a fit per person; also residual, levels, level_share, top, top_share,
                                  # p_percent

    [hours]
    zone = "Europe/Berlin"
    windows = ["Mon-Fri 19:00-06:00", "Sat,Sun 00:00-24:00"]

    [caps]                        # kept by the site itself; see budget.py
    cpus = 4
    gpu_share = 0.5               # of the memory of its GPU
    memory_gb = 16.0
    kept_gb = 20.0                # of client state between rounds; the default
    seconds_per_round = 600
    seconds_per_day = 7200
    updates_per_day = 1000        # new updates that leave, one for each exchange of a round
    updates = 5000                # in all

A setting that is missing demands nothing, except for tasks, which must be named to be allowed, and
[evaluation], whose defaults are shown. If the reason of a refusal depends on the site's data, only its staff
sees it: the coordinator only learns that the site declined.

>>> from datetime import UTC
>>> policy = Policy(site="charite", tasks=Tasks(allowed=("3f9a",)), minimum=Minimum(examples=50))
>>> monday = datetime(2026, 1, 5, 12, tzinfo=UTC)
>>> policy.allows(Request(task="3f9a", examples=303), monday).allowed
True
>>> print(policy.allows(Request(task="3f9a", examples=49), monday).reason)
charite has fewer than the 50 examples that its policy asks for (minimum.examples)
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from fedjax_core.files import read_text
from fedjax_core.sites import strict
from fedjax_core.sites.policy.hours import Hours
from fedjax_core.sites.policy.tables import Caps, Evaluation, Leaving, Minimum, Statistics, Tasks
from fedjax_core.sites.refusal import check_name, listed, shown

_HASH = re.compile("[0-9a-f]{32}")


class Request(NamedTuple):
    """A request to a site, as far as its policy decides on it; examples and seconds are counted at the
    site."""

    task: str  # hash of the configuration
    examples: int
    per_class: Mapping[Any, int] | None = None
    fields: tuple[str, ...] = ()  # the fields that would leave
    clip: float | None = None
    noise: float | None = None
    whole: bool = False  # whether updates have whole numbers in them, to which no noise can be added
    bad: float = 0.0  # share of the records that were skipped
    seconds_today: float = 0.0  # the site's computing time today
    epsilon: float = 0.0  # of all updates, the requested one included
    department: int | None = None  # examples of the smallest one, if departments are clients
    secure: bool = False  # whether updates leave under masks alone


OF_DATA = ("bad-records", "examples", "per-class", "department", "norm")
"""Codes of decisions that depend on the site's data, whose reasons are for its staff and do not travel."""


class Decision(NamedTuple):
    """The policy's decision; the reason may travel, except for the codes `OF_DATA`."""

    allowed: bool
    code: str
    reason: str = ""
    pin: str | None = None  # a task to pin, by `pin`, before work begins


@dataclass(frozen=True)
class Policy:
    """One site's policy. Read it from its file with `read`."""

    site: str
    paused: bool = False
    withdrawn: bool = False
    max_bad_share: float | None = None
    tasks: Tasks = field(default_factory=Tasks)
    minimum: Minimum = field(default_factory=Minimum)
    leaving: Leaving = field(default_factory=Leaving)
    evaluation: Evaluation = field(default_factory=Evaluation)
    statistics: Statistics | None = None
    hours: Hours = field(default_factory=Hours)
    caps: Caps = field(default_factory=Caps)

    def __post_init__(self) -> None:
        check_name(self.site, "site")
        if self.max_bad_share is not None and not self.max_bad_share < 1:
            raise ValueError(
                f"max_bad_share is {self.max_bad_share:g}, and should be a share below 1, such as 0.01"
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Policy":
        """Reads a policy from a TOML file; raises with the key for an unknown setting, or one of another
        type."""
        try:
            return _parsed(read_text(path))
        except ValueError as error:  # tomllib's errors are ValueErrors too
            raise ValueError(f"{path}: {error}") from None

    @property
    def outputs(self) -> Statistics | None:
        """The limits of statistics: those of `statistics`, or else of `minimum.cell` alone; None if neither
        is set."""
        if self.statistics is not None or self.minimum.cell < 1:
            return self.statistics
        return Statistics(minimum=max(2, self.minimum.cell))

    def allows(self, request: Request, now: datetime, pinned: str | None = None) -> Decision:
        """Decides whether the site takes part; `pinned` is the task pinned before, under tasks.mode =
        "first-use"."""
        for code, reason in self._objections(request, now, pinned):
            return Decision(False, code, f"{self.site} {reason}")
        return Decision(
            True, "allowed", pin=request.task if self.tasks.mode == "first-use" and pinned is None else None
        )

    def may_leave(self, fields: Iterable[str], norm: float, epsilon: float = 0.0) -> Decision:
        """Decides whether a message with these fields and this l2 norm may leave; `epsilon`: of all messages,
        this one included.

        It is asked for every message, once the message is ready.
        """
        if extra := sorted({name for name in fields if name not in self.leaving.fields}):
            return Decision(
                False, "field", f"{self.site} does not let {listed(extra)} leave (leaving.fields)"
            )
        if self.leaving.max_norm is not None and not norm <= self.leaving.max_norm:
            return Decision(
                False,
                "norm",
                f"{self.site} lets nothing leave with a norm above {self.leaving.max_norm:g} (leaving.max_norm)",
            )
        if self.leaving.epsilon is not None and not epsilon <= self.leaving.epsilon:
            limit = f"an epsilon of {self.leaving.epsilon:g} at delta {self.leaving.delta:g}"
            return Decision(
                False,
                "epsilon",
                f"{self.site} lets its updates tell no more than {limit}, which is spent (leaving.epsilon)",
            )
        return Decision(True, "allowed")

    def _objections(self, request: Request, now: datetime, pinned: str | None) -> Iterator[tuple[str, str]]:
        if self.withdrawn:
            yield "withdrawn", "has withdrawn from the federation (withdrawn)"
        if self.paused:
            yield "paused", "is paused by its staff (paused)"
        if not self.hours.open(now):
            yield (
                "hours",
                f"takes part only at {', '.join(self.hours.windows)} {self.hours.zone} (hours.windows)",
            )
        if self.max_bad_share is not None and request.bad > self.max_bad_share:
            yield (
                "bad-records",
                f"has more bad records than the share of {self.max_bad_share:g} that it skips (max_bad_share)",
            )
        if self.tasks.mode == "list" and request.task not in self.tasks.allowed:
            yield (
                "task",
                f"has not allowed the task {shown(request.task)}: its staff adds the hash after review (tasks.allowed)",
            )
        if (
            self.tasks.mode == "first-use"
            and pinned not in (None, request.task)
            and request.task not in self.tasks.allowed
        ):
            yield (
                "task",
                f"has pinned another task than {shown(request.task)}: its staff adds the hash after review (tasks.allowed)",
            )
        if (lacking := self.minimum.lacking(request.examples, request.per_class)) is not None:
            yield lacking[0], f"has {lacking[1]}"
        if request.department is not None and request.department < self.minimum.department:
            yield (
                "department",
                f"has a department with fewer than the {self.minimum.department} examples that its policy asks for: its staff puts it and "
                "another together (minimum.department)",
            )
        if not (leave := self.may_leave(request.fields, 0.0, request.epsilon)).allowed:
            yield leave.code, leave.reason.removeprefix(f"{self.site} ")
        if self.leaving.secure and not request.secure:
            yield (
                "secure",
                "lets updates leave under masks alone: the study needs fc.uplink.secure (leaving.secure)",
            )
        if self.leaving.enforced and request.whole:
            yield (
                "whole",
                "clips what leaves by itself, and the study sends whole numbers, as of quantising: leave that stage out (leaving.clip)",
            )
        asks = self.leaving.by == "study"
        if (
            asks
            and self.leaving.clip is not None
            and not (request.clip is not None and 0 < request.clip <= self.leaving.clip)
        ):
            yield (
                "clip",
                f"asks for updates clipped to {self.leaving.clip:g} or less: add fc.uplink.clip({self.leaving.clip:g}) (leaving.clip)",
            )
        if (
            asks
            and self.leaving.noise is not None
            and not (request.noise is not None and request.noise >= self.leaving.noise)
        ):
            yield "noise", f"asks for noise of at least {self.leaving.noise:g} times the clip (leaving.noise)"
        if self.caps.seconds_per_day is not None and request.seconds_today >= self.caps.seconds_per_day:
            yield (
                "caps",
                f"has computed the {self.caps.seconds_per_day:g} s that it gives a day, and goes on tomorrow (caps.seconds_per_day)",
            )


@lru_cache(maxsize=16)
def _parsed(text: str) -> Policy:
    """The policy of a text; cached, as it is read for every request."""
    policy: Policy = strict.read(Policy, tomllib.loads(text), "policy")
    if wrong := [name for name in policy.tasks.allowed if not _HASH.fullmatch(name)]:
        raise ValueError(
            f"tasks.allowed names {listed(wrong)}, and the hash of a study is 32 digits from 0 to f: write the one "
            "that `fedjax-core doctor` prints of the study that is installed here, once it was reviewed"
        )
    return policy
