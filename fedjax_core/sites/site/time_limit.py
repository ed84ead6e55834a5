"""Time-limited training: a site stops after `Rules.train_seconds`, and reports how far it came.

    steps 1, 2, ... s      until the time is used up         ─►  finish: the report of s of n steps
    Seen                   examples: all of the site's;      steps: s
    in the report          steps_done = s of n,  examples_seen = examples in those steps, of all

So an algorithm gets what its definition asks for. SCAFFOLD's control variate and FedNova's tau_i use the
steps really done. The weight counts all examples, not those seen: FedNova (Wang et al., "Tackling the
Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020) has p_i = n_i / n
beside tau_i, and FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020) averages
inexact solutions as it does exact ones. FedAvg leans towards the objective sum_i p_i tau_i F_i already (Wang
et al., theorem 1): a site that always stops early counts for less in it, and with the examples seen as weight
it would do so twice.

The clock decides how many steps fit, so their number is written down before the report leaves. If the request
is repeated, after whatever crash, the site does as many, to the same bits; if a round has one model
(answered.py), even with another time limit. A site that died before that may do another number, as nobody has
received the first; the audit logs have the number that counts.

>>> now = iter([0.0, 0.0, 0.1, 0.3, 1.0])
>>> pace = StepClock(first=1, seconds=1.0, clock=lambda: next(now))
>>> [pace(done) for done in (0, 1, 3, 7)]  # at 0, 0.1, 0.3 and 1 s: twice as many, up to half a second's worth or what is left; none
[1, 2, 4, 0]
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedjax_core.files import write_whole
from fedjax_core.sites.protocol.request import may_come_again
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.envelope import Header

_SECONDS = 0.5  # how long the steps between two looks at the clock should take


class NoStepDone(Refused):
    """The time was over before the first step."""

    code = "no-step"
    of_data = True


class StepClock:
    """Gives the number of steps until the next look at the clock, from those before; 0: the time is over."""

    def __init__(
        self, first: int, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`first`: the steps before the first look; `seconds`: the time from now."""
        self._clock, self._more, self._done, self._looked = clock, first, 0, 0.0
        self._until = clock() + seconds

    def __call__(self, done: int) -> int:
        """`done`: the steps done so far."""
        now = self._clock()
        left = self._until - now
        if left <= 0:
            return 0
        if done > self._done:
            a_step = max((now - self._looked) / (done - self._done), 1e-9)
            self._more = max(1, min(2 * self._more, int(min(_SECONDS, left) / a_step)))
        self._done, self._looked = done, now
        return self._more


class StepLog:
    """The numbers of steps in a site's last time-limited exchanges, in its `steps.json`, or in memory."""

    def __init__(self, folder: Path | None) -> None:
        """Raises ValueError if the file is damaged."""
        self._path = None if folder is None else folder / "steps.json"
        self._last: dict[str, int] = (
            {} if self._path is None or not self._path.exists() else _read(self._path)
        )

    def steps(self, which: str) -> int | None:
        """The steps behind an earlier answer; None if there was none, or without a time limit."""
        return self._last.get(which)

    def limit(self, which: str, seconds: float, clock: Callable[[], float]) -> Callable[[int], int]:
        """The function that says how many steps may follow so many: up to those of an earlier answer, or else
        for `seconds` from now."""
        steps = self.steps(which)
        return StepClock(1, seconds, clock) if steps is None else lambda done: steps - done

    def add(self, which: str, steps: int, request: Header) -> None:
        """Stores the steps behind an answer, on the disk if there is a folder."""
        self._last.pop(which, None)
        self._last[which] = steps
        self._last = may_come_again(self._last, request)
        if self._path is not None:
            write_whole(self._path, json.dumps(self._last))


def _read(path: Path) -> dict[str, int]:
    try:
        document: Any = json.loads(path.read_text())
        return {str(which): int(steps) for which, steps in document.items()}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(
            f"{path}, which has how many steps this site did in exchanges of limited time, is damaged: restore it from its backup, or "
            "remove it; a round that is run again may then do other steps than before"
        ) from None
