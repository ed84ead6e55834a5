"""A site's policy at work: it is asked before any work and of all that would leave, and what leaves is counted by it.

    check: may the site work on this?  ─►  work  ─►  metric, let_out: may this leave?  ─►  count: what it tells, and is that too much?
      └ under tasks.mode = "first-use" pins the first task

Its file is read anew for every request, so staff may pause the site, or withdraw it, between any two. A refusal names a setting, by
its code, and never how much of something the site has.

>>> from fedjax_core.sites.policy import Leaving, Tasks
>>> from fedjax_core.sites.wire import COORDINATOR, SITES
>>> policy = Policy("charite", tasks=Tasks(allowed=("3f9a",)), leaving=Leaving(("weight", "loss")))
>>> terms = Terms("charite", policy, asked=Request("3f9a", examples=20))
>>> asked = Header(
...     kind="train", run="run", round=0, exchange=0, sender=COORDINATOR, recipient=SITES, sequence=1, created_unix_ms=0, config="3f9a"
... )
>>> terms.check(asked, ("weight",))
>>> terms.metric("loss", {"total": 3.0}), terms.metric("accuracy", {"total": 2.0})
({'loss': 3.0}, {})
>>> terms.check(asked, ("weight", "examples"))
Traceback (most recent call last):
fedjax_core.sites.terms.Declined: charite does not let 'examples' leave (leaving.fields) [field]
"""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fedjax_core.sites.base import Refused, Scalar
from fedjax_core.sites.epsilon import Ledger, epsilon
from fedjax_core.sites.gate import measure
from fedjax_core.sites.policy import Policy, Request, pin, pinned
from fedjax_core.sites.wire import Header


class Declined(Refused):
    """The site's policy does not allow it."""

    code = "declined"


class Withdrawn(Refused):
    """The site left the federation: from then on it contributes nothing."""

    code = "withdrawn"


class Terms:
    """The policy of one site, with the task that it pinned and the account of what its updates have told."""

    def __init__(self, site: str, usual: Policy, *, asked: Request, file: Path | None = None, folder: Path | None = None) -> None:
        """The policy is in the `file`, or the `usual` one where there is none; `folder` keeps the pin and the account.

        `asked` is what holds of every request: what the study does to updates, and the site's numbers of examples.
        """
        self.policy = usual
        self._site, self._file, self._asked = site, file, asked
        self._told = Ledger(folder)
        self._pins = None if folder is None else os.fspath(folder / "pinned")
        self._pinned: str | None = None  # where there is no folder
        self._read()

    def check(self, request: Header, fields: tuple[str, ...], seconds_today: float = 0.0) -> None:
        """Returns where the policy, as it is in its file now, lets the site work on this; the task is then pinned where it is the first.

        `fields`: those that the reply will have whatever comes of the work; `seconds_today`: for which the site has computed.
        """
        self._read()
        asked = replace(self._asked, task=request.config, fields=fields, seconds_today=seconds_today, epsilon=self._epsilon(request))
        decision = self.policy.allows(asked, datetime.now(UTC), self._pinned if self._pins is None else pinned(self._pins))
        if decision.code == "withdrawn":
            raise Withdrawn(decision.reason)
        if not decision.allowed:
            raise Declined(f"{decision.reason} [{decision.code}]")
        if decision.pin is not None and self._pins is not None:
            pin(self._pins, decision.pin)
        elif decision.pin is not None:
            self._pinned = decision.pin

    def metric(self, name: str, sums: Mapping[str, float]) -> dict[str, Scalar]:
        """A metric's sums as fields, where the policy lets it leave; what is not finite goes as nothing."""
        if not self.policy.may_leave([name], 0.0).allowed:
            return {}
        return {name if part == "total" else f"{name}.{part}": x if math.isfinite(x) else None for part, x in sums.items()}

    def let_out(self, request: Header, tensors: Mapping[str, np.ndarray]) -> None:
        """Returns where the policy lets these leave in answer to the request."""
        norms = request.kind != "measure" and self.policy.leaving.max_norm is not None  # sums of columns have no such norm
        if norms and not (leave := self.policy.may_leave([], measure(tensors))).allowed:
            raise Declined(f"{leave.reason} [{leave.code}]")

    def count(self, request: Header, digest: str) -> dict[str, Scalar]:
        """Counts what an update of this digest tells, before it leaves; raises where that is more than the policy lets it.

        For the site's audit log: the epsilon of all updates so far; nothing where none is kept.
        """
        delta, noise = self.policy.leaving.delta, self._asked.noise
        if request.kind != "train" or delta is None or not noise:
            return {}
        now = self._epsilon(request, digest)
        if not (leave := self.policy.may_leave([], 0.0, now)).allowed:
            raise Declined(f"{leave.reason} [{leave.code}]")
        return {"epsilon": now, "delta": delta, "told": self._told.add(_where(request), noise, digest)}

    def _epsilon(self, request: Header, digest: str | None = None) -> float:
        """Of all updates, once one has left in answer to this request; 0 where the policy has none kept."""
        delta, noise = self.policy.leaving.delta, self._asked.noise
        if request.kind != "train" or delta is None or not noise:
            return 0.0
        return epsilon(self._told.after(_where(request), noise, digest), delta)

    def _read(self) -> None:
        if self._file is not None:
            self.policy = Policy.read(self._file)
        if self.policy.site != self._site:
            raise ValueError(f"{self._file} is the policy of {self.policy.site!r}, not of {self._site!r}")


def _where(request: Header) -> str:
    """Of a run, the place to which a report belongs."""
    return f"{request.run}/{request.round}/{request.exchange}"
