"""A site's policy: what it takes part in and what may leave it, in one file at the site that nothing outside can override.

    site = "charite"
    paused = false                # for now; `withdrawn = true` is for good, and the site's ledger says of which run
    max_bad_share = 0.01          # records that cannot be used are skipped, up to this share of all; not set: none are

    [tasks]                       # which configurations, by hash
    mode = "list"                 # or "first-use": the first one asked for is pinned, and every other refused
    allowed = ["3f9a0b1c2d3e4f5a6b7c8d9e0f1a2b3c"]    # the hashes of studies, as `fedjax-core doctor` prints them

    [minimum]                     # of examples: those that the site has, and those that a report is computed of
    examples = 50
    per_class = 5                 # of each class, those of the task that the site lacks among them
    classes = 2                   # so many there are, where the study's task does not say it
    department = 5                # of each department that is a client by itself; see departments.py
    sites = 5                     # in a sum of secure aggregation; never fewer than 3
    cell = 5                      # of values behind a sum for preprocessing or of a metric, or it is not told

    [leaving]
    fields = ["weight", "examples", "data"]     # and metrics, such as "loss": not where an epsilon is kept, which does not count them
                                                # and "steps_done", "examples_seen": counts, for runs that limit the time to train
                                                # and "stats.loss", which a study's server reads of each site by itself
    secure = true                 # no update leaves but under masks: the study has fc.uplink.secure
    max_norm = 10.0               # of what leaves, but for the sums that `fields` let leave (moments, range, categories)
    clip = 1.0                    # the site clips each update to this l2 norm, whatever the study does; see noise.py
    noise = 0.8                   # and adds noise of this multiple of it
    by = "site"                   # or "study": the site adds nothing, and asks that the study says it does as much by itself
    delta = 1e-6                  # what leaves is counted, as an epsilon at this delta; see privacy_ledger.py
    epsilon = 8.0                 # up to which updates leave, in all runs together

    [evaluation]                  # see answered.py
    models = "sent"               # one model a round, and evaluated are those of training; or "any": whatever the coordinator names
    per_day = 150                 # new answers to evaluate, score, measure, statistics and describe

    [statistics]                  # of what is told of the data themselves, where `fields` name "statistics"; see site/statistics.py
    columns = ["age", "sex", "died"]            # these alone; without the table none, where there is a minimum.cell
    minimum = 10                  # people behind a cell, and behind any difference of what was told; those of fedjax_core/disclosure
    tables = "suppress"           # small cells: "refuse" the table, hide them and others, or "round" the rest to `base`
    parameters = 0.33             # of a fit, for each person; also residual, levels, level_share, top, top_share, p_percent

    [hours]
    zone = "Europe/Berlin"
    windows = ["Mon-Fri 19:00-06:00", "Sat,Sun 00:00-24:00"]

    [caps]                        # kept by the site itself; see budget.py
    cpus = 4
    gpu_share = 0.5               # of the memory of its GPU
    memory_gb = 16.0
    kept_gb = 20.0                # of what the site keeps between rounds; so much where it is not set
    seconds_per_round = 600
    seconds_per_day = 7200
    updates_per_day = 1000        # new updates that leave; one for each exchange of a round
    updates = 5000                # the same, in all

What is not set is not demanded, but for tasks, of which none is allowed that is not named, and [evaluation], which is as shown. A refusal
for a reason that has to do with the site's data is for its staff alone: to the coordinator goes that it declined.

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
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedjax_core.disclosure.policy import OutputPolicy
from fedjax_core.files import read_text
from fedjax_core.sites import strict
from fedjax_core.sites.policy.hours import Hours
from fedjax_core.sites.protocol.report import PARTIAL
from fedjax_core.sites.refusal import check_name, listed, shown

__all__ = ["SAFE", "Caps", "Decision", "Evaluation", "Hours", "Leaving", "Minimum", "Policy", "Request", "Statistics"]
__all__ += ["Tasks", "pin", "pinned"]


PINNED = "pinned"
"""The file, in a site's folder, that names the task pinned there."""

_HASH = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Tasks:
    """Which configurations may run, by the hash that requests name them with."""

    mode: Literal["list", "first-use"] = "list"
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Minimum:
    """Fewer examples than this are not trained or counted on."""

    examples: int = 0
    per_class: int = 0
    cell: int = 0
    department: int = 0
    classes: int = 0
    sites: int = 0

    def lacking(self, examples: int, per_class: Mapping[Any, int] | None) -> tuple[str, str] | None:
        """(code, reason) where so many examples, and of each class, are too few; None where they are enough."""
        if examples < self.examples:
            return "examples", f"fewer than the {self.examples} examples that its policy asks for (minimum.examples)"
        absent = len(per_class or {}) < self.classes
        if self.per_class and (absent or min((per_class or {}).values(), default=0) < self.per_class):
            return "per-class", f"fewer than the {self.per_class} examples of each class that its policy asks for (minimum.per_class)"
        return None


SAFE = Minimum(examples=10, per_class=3, cell=10, department=10)
"""What is written into policies that are made, and holds for a site with a study in its file and no policy."""


@dataclass(frozen=True)
class Leaving:
    """What may go out with an update, and how it has to be treated before."""

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
        """Whether the site itself clips what leaves, and adds noise where it has some."""
        return self.by == "site" and self.clip is not None

    def __post_init__(self) -> None:
        if self.by == "site" and (self.clip == 0 or (self.noise and self.clip is None)):
            clip = "not set" if self.clip is None else f"{self.clip:g}"
            raise ValueError(f"leaving.clip is {clip}, and should be the l2 norm to which the site clips, above 0")
        if self.by == "site" and self.noise and self.delta is None:
            raise ValueError("leaving.noise is noise that the site adds, of which it keeps an account: set leaving.delta, such as 1e-6")
        if self.epsilon is not None and self.delta is None:
            raise ValueError(f"leaving.epsilon is {self.epsilon:g}, and means nothing without leaving.delta: set one, such as 1e-6")
        if self.delta is None:
            return
        if not 0 < self.delta < 1:
            raise ValueError(f"leaving.delta is {self.delta:g}, and should be a probability: well below one over the number of patients")
        if not (self.clip and self.noise):
            raise ValueError("leaving.delta has an epsilon kept, which comes of a clip and a noise: set leaving.clip and leaving.noise")
        if bare := sorted(set(self.fields) - {"weight", "examples", "data", "clients", *PARTIAL}):  # which are counts
            raise ValueError(
                f"leaving.fields names {listed(bare)}, which leaves without noise and is not counted, and leaving.delta has an epsilon "
                "kept: leave one of them out"
            )


@dataclass(frozen=True)
class Evaluation:
    """On which models the site works, and how often it tells of one."""

    models: Literal["sent", "any"] = "sent"
    per_day: int = 150


@dataclass(frozen=True)
class Statistics(OutputPolicy):
    """What may be told of the site's data themselves: the output policy, and the columns of which it holds."""

    columns: tuple[str, ...] = ()
    """That a statistic may use; "site" is always there."""


@dataclass(frozen=True)
class Caps:
    """What the site's process may use at most, and how many updates it gives; nothing that a request says changes it."""

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
            raise ValueError(f"caps.gpu_share is {self.gpu_share:g}, and should be a share of the GPU's memory, above 0 and at most 1")


class Request(NamedTuple):
    """What the coordinator asks of a site, as far as the site's policy has a say in it; examples and seconds are counted at the site."""

    task: str  # hash of the configuration
    examples: int
    per_class: Mapping[Any, int] | None = None
    fields: tuple[str, ...] = ()  # that would leave
    clip: float | None = None
    noise: float | None = None
    whole: bool = False  # whether updates have whole numbers in them, to which no noise can be added
    bad: float = 0.0  # share of the records that were skipped
    seconds_today: float = 0.0  # that the site has computed today
    epsilon: float = 0.0  # of all that has left, with what is asked for now
    department: int | None = None  # examples of the smallest, where departments are clients
    secure: bool = False  # whether updates leave under masks alone


OF_DATA = ("bad-records", "examples", "per-class", "department", "norm")
"""Codes of decisions that depend on the site's data: their reasons are for its staff, and do not travel."""


class Decision(NamedTuple):
    """What the policy says; the reason may travel, but for the codes `OF_DATA`."""

    allowed: bool
    code: str
    reason: str = ""
    pin: str | None = None  # a task that is to be pinned, by `pin`, before work begins


@dataclass(frozen=True)
class Policy:
    """One site's policy. Read it from its file with `read`."""

    site: str
    paused: bool = False
    withdrawn: bool = False
    max_bad_share: float | None = None
    tasks: Tasks = Tasks()
    minimum: Minimum = Minimum()
    leaving: Leaving = Leaving()
    evaluation: Evaluation = Evaluation()
    statistics: Statistics | None = None
    hours: Hours = field(default_factory=Hours)
    caps: Caps = Caps()

    def __post_init__(self) -> None:
        check_name(self.site, "site")
        if self.max_bad_share is not None and not self.max_bad_share < 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share:g}, and should be a share below 1, such as 0.01")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Policy":
        """The policy in a TOML file; raises, naming the key, where there is one that a policy does not have or of another type."""
        try:
            return _parsed(read_text(path))
        except ValueError as error:  # what tomllib raises is one, too
            raise ValueError(f"{path}: {error}") from None

    @property
    def outputs(self) -> Statistics | None:
        """The limits of statistics: as `statistics` says them, or those of `minimum.cell` alone; None where neither is set."""
        if self.statistics is not None or self.minimum.cell < 1:
            return self.statistics
        return Statistics(minimum=max(2, self.minimum.cell))

    def allows(self, request: Request, now: datetime, pinned: str | None = None) -> Decision:
        """Whether the site takes part; `pinned` is the task pinned before, under tasks.mode = "first-use"."""
        for code, reason in self._objections(request, now, pinned):
            return Decision(False, code, f"{self.site} {reason}")
        return Decision(True, "allowed", pin=request.task if self.tasks.mode == "first-use" and pinned is None else None)

    def may_leave(self, fields: Iterable[str], norm: float, epsilon: float = 0.0) -> Decision:
        """Whether a message with these fields and this l2 norm may go out, with which all together have this epsilon.

        Asked of every message, when it is ready.
        """
        if extra := sorted({name for name in fields if name not in self.leaving.fields}):
            return Decision(False, "field", f"{self.site} does not let {listed(extra)} leave (leaving.fields)")
        if self.leaving.max_norm is not None and not norm <= self.leaving.max_norm:
            return Decision(False, "norm", f"{self.site} lets nothing leave with a norm above {self.leaving.max_norm:g} (leaving.max_norm)")
        if self.leaving.epsilon is not None and not epsilon <= self.leaving.epsilon:
            limit = f"an epsilon of {self.leaving.epsilon:g} at delta {self.leaving.delta:g}"
            return Decision(False, "epsilon", f"{self.site} lets its updates tell no more than {limit}, which is spent (leaving.epsilon)")
        return Decision(True, "allowed")

    def _objections(self, request: Request, now: datetime, pinned: str | None) -> Iterator[tuple[str, str]]:
        if self.withdrawn:
            yield "withdrawn", "has withdrawn from the federation (withdrawn)"
        if self.paused:
            yield "paused", "is paused by its staff (paused)"
        if not self.hours.open(now):
            yield "hours", f"takes part only at {', '.join(self.hours.windows)} {self.hours.zone} (hours.windows)"
        if self.max_bad_share is not None and request.bad > self.max_bad_share:
            yield "bad-records", f"has more bad records than the share of {self.max_bad_share:g} that it skips (max_bad_share)"
        if self.tasks.mode == "list" and request.task not in self.tasks.allowed:
            yield "task", f"has not allowed the task {shown(request.task)}: its staff adds the hash after review (tasks.allowed)"
        if self.tasks.mode == "first-use" and pinned not in (None, request.task) and request.task not in self.tasks.allowed:
            yield "task", f"has pinned another task than {shown(request.task)}: its staff adds the hash after review (tasks.allowed)"
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
            yield "secure", "lets updates leave under masks alone: the study needs fc.uplink.secure (leaving.secure)"
        if self.leaving.enforced and request.whole:
            yield (
                "whole",
                "clips what leaves by itself, and the study sends whole numbers, as of quantising: leave that stage out (leaving.clip)",
            )
        asks = self.leaving.by == "study"
        if asks and self.leaving.clip is not None and not (request.clip is not None and 0 < request.clip <= self.leaving.clip):
            yield (
                "clip",
                f"asks for updates clipped to {self.leaving.clip:g} or less: add fc.uplink.clip({self.leaving.clip:g}) (leaving.clip)",
            )
        if asks and self.leaving.noise is not None and not (request.noise is not None and request.noise >= self.leaving.noise):
            yield "noise", f"asks for noise of at least {self.leaving.noise:g} times the clip (leaving.noise)"
        if self.caps.seconds_per_day is not None and request.seconds_today >= self.caps.seconds_per_day:
            yield (
                "caps",
                f"has computed the {self.caps.seconds_per_day:g} s that it gives a day, and goes on tomorrow (caps.seconds_per_day)",
            )


@lru_cache(maxsize=16)
def _parsed(text: str) -> Policy:
    """The policy that the text is: of the same text the same, as it is read for every request."""
    found: Policy = strict.read(Policy, tomllib.loads(text), "policy")
    if wrong := [name for name in found.tasks.allowed if not _HASH.fullmatch(name)]:
        raise ValueError(
            f"tasks.allowed names {listed(wrong)}, and the hash of a study is 32 digits from 0 to f: write the one "
            "that `fedjax-core doctor` prints of the study that is installed here, once it was reviewed"
        )
    return found


def pinned(path: str | os.PathLike[str]) -> str | None:
    """The task that `pin` wrote to this file, None where there is none yet."""
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return None
    return _pinned(os.fspath(path), now.st_ino, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=16)
def _pinned(path: str, *file: int) -> str:
    """What is in this very file, which is asked for at every request and never written again."""
    return Path(path).read_text().strip()


def pin(path: str | os.PathLike[str], task: str) -> None:
    """Pins a task for good; raises where another is pinned, and where two try at once for one of them."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FileExistsError(
            f"{path} pins a task already; remove the file to let the next one in, or add its hash to tasks.allowed"
        ) from None
    with open(descriptor, "w") as file:
        file.write(task + "\n")
        file.flush()
        os.fsync(file.fileno())
