"""`Budget`: limits on CPU, GPU, memory and time, so that clinical work on the site's machine is not
disturbed.

    cpus, gpu_share                        by the operating system and XLA, from the start of the process (`confine`)
    memory_gb, seconds_per_round, _day     by `Budget.watch`, about every half second of training, with a refusal
    memory_gb                              for a request in parts, before its first part (requests.py)

Seconds of a day are kept in the site's folder, over restarts: they are written after each round if the day
has a cap, else once another second has accumulated, as a write waits for the disk. Days are in UTC. In one's
own process (`transport="in-process"`) cpus and gpu_share are not confined, as they would hold for the whole
process.

>>> now = iter([0.0, 8.0, 11.0, 11.0])
>>> budget = Budget(None, clock=lambda: next(now))
>>> with budget.round(Caps(seconds_per_round=10)) as watch:
...     watch(64)
...     watch(128)
Traceback (most recent call last):
fedjax_core.sites.policy.budget.OverCap: training took longer than the 10 s that this site gives a round, so nothing is sent...
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from fedjax_core.files import write_whole
from fedjax_core.sites.policy.tables import Caps
from fedjax_core.sites.refusal import Refused

_MEMORY = Path("/proc/self/statm")
_UNWRITTEN_SECONDS = 1.0  # how much a crash may lose, if the day has no cap


class OverCap(Refused):
    """The work took more than the site's caps allow."""

    code = "over-cap"


def confine(caps: Caps) -> None:
    """Confines this process to its CPUs and its share of a GPU. Call it before JAX begins to compute."""
    if caps.cpus is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: caps.cpus])
    if caps.gpu_share is not None:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{caps.gpu_share:g}"


def check_size(caps: Caps, length: int) -> None:
    """Raises `OverCap` if a request of so many bytes exceeds the site's cap on memory."""
    if caps.memory_gb is not None and length > caps.memory_gb * 1e9:
        gives = f"{caps.memory_gb:g} GB of memory"
        raise OverCap(
            f"the request has {length:,} bytes, and the site gives {gives} to all of its work (caps.memory_gb)"
        )


class Budget:
    """The time that a site has computed today, and the watch over what it computes now."""

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`folder`: where the day's seconds are kept; None: in memory."""
        self._path, self.clock = None if folder is None else folder / "spent.json", clock
        self._spent = self._written = ("", 0.0) if self._path is None else _read(self._path)
        self.steps = 0
        """Local steps done since the process began, as a sign of progress."""

    @property
    def seconds_today(self) -> float:
        """Seconds of work since midnight, UTC."""
        return self._spent[1] if self._spent[0] == _today() else 0.0

    def round(self, caps: Caps) -> "BudgetedRound":
        """A context manager whose work is counted and watched."""
        return BudgetedRound(self, caps)

    def _add(self, seconds: float, unwritten: float) -> None:
        self._spent = _today(), seconds
        if self._path is not None and (
            self._spent[0] != self._written[0] or seconds - self._written[1] >= unwritten
        ):
            write_whole(self._path, json.dumps({"day": self._spent[0], "seconds": seconds}))
            self._written = self._spent


class BudgetedRound:
    """The work of one round within the caps. A `with` gives its `watch`."""

    def __init__(self, budget: Budget, caps: Caps) -> None:
        self._budget, self._caps = budget, caps
        self._began, self._before, self._start = budget.clock(), budget.seconds_today, budget.steps

    def __enter__(self) -> Callable[[int], None]:
        return self.watch

    def __exit__(self, *error: object) -> None:
        unwritten = 0.0 if self._caps.seconds_per_day is not None else _UNWRITTEN_SECONDS
        self._budget._add(self._before + self._budget.clock() - self._began, unwritten)

    def watch(self, steps: int) -> None:
        """Takes the number of steps done; raises `OverCap` if the site gives no more."""
        self._budget.steps, took = self._start + steps, self._budget.clock() - self._began
        memory = _memory_gb() if self._caps.memory_gb is not None else 0.0
        for name, used, what in (
            ("seconds_per_round", took, "training took longer than the {:g} s that this site gives a round"),
            ("seconds_per_day", self._before + took, "the {:g} s that this site gives a day are used up"),
            ("memory_gb", memory, "the work needs more than this site's {:g} GB of memory"),
        ):
            most: float | None = getattr(self._caps, name)
            if most is not None and used > most:
                raise OverCap(f"{what.format(most)}, so nothing is sent (caps.{name})")


def _read(path: Path) -> tuple[str, float]:
    """(day, seconds of work), or ("", 0) without a valid file."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        document = json.loads(path.read_text())
        return str(document["day"]), float(document["seconds"])
    return "", 0.0


def _today() -> str:
    return _date(int(time.time() // 86400))


@lru_cache(maxsize=1)
def _date(days: int) -> str:
    """The ISO date of a day, counted from 1970-01-01."""
    return datetime.fromtimestamp(days * 86400, UTC).date().isoformat()


def _memory_gb() -> float:
    """The resident memory of this process; 0 if the system does not tell."""
    return int(_MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9 if _MEMORY.exists() else 0.0
