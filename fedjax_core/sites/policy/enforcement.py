"""`Enforcement`: applies a site's policy to requests and to everything that would leave, and counts it.

    check: allowed? ─► work ─► metric, protect, release: may this leave, and how? ─► count: too much by now?
      └ pins the first task (tasks.mode = "first-use")         declined after work ─► count, like an update

The policy's file is read anew for every request, so staff may pause the site, or withdraw it, between any
two. A refusal names a setting by its code. If its reason depends on the site's data (`Withheld`), the message
only says that the site declined. If it came after work on the data, it is counted like an update, because it
discloses as much.

>>> from fedjax_core.sites.policy.tables import Leaving, Tasks
>>> from fedjax_core.sites.wire.envelope import COORDINATOR
>>> from fedjax_core.sites.wire.envelope import SITES
>>> policy = Policy("charite", tasks=Tasks(allowed=("3f9a",)), leaving=Leaving(("weight", "loss")))
>>> terms = Enforcement("charite", policy, base_request=Request("3f9a", examples=20))
>>> request = Header(
...     kind="train", run="run", round=0, exchange=0, sender=COORDINATOR, recipient=SITES, sequence=1, created_unix_ms=0, config="3f9a"
... )
>>> terms.check(request, ("weight",))
>>> terms.metric("loss", {"total": 3.0}), terms.metric("accuracy", {"total": 2.0})
({'loss': 3.0}, {})
>>> terms.check(request, ("weight", "examples"))
Traceback (most recent call last):
fedjax_core.sites.policy.enforcement.Declined: charite does not let 'examples' leave (leaving.fields) [field]
"""

import os
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core.sites.policy.answered import ALL, Answered, Question
from fedjax_core.sites.policy.noise import protected
from fedjax_core.sites.policy.pinning import PINNED, pin, pinned
from fedjax_core.sites.policy.policy import OF_DATA, Policy, Request
from fedjax_core.sites.policy.privacy_ledger import Ledger, epsilon
from fedjax_core.sites.protocol.kinds import CONFIRM, MASK, REVEAL, SHARE
from fedjax_core.sites.protocol.report import written
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import Scalar
from fedjax_core.sites.wire.envelope import Header
from fedjax_core.sites.wire.tensors import measure_update

# Kinds without an update in the clear: sums of columns, secrets, and masked reports.
_WITHOUT_NORM = (
    "measure",
    "statistics",
    SHARE,
    MASK,
    CONFIRM,
    REVEAL,
)
_REFUSED = "declined"  # digest prefix of a refusal, before the question's: refusals of two models disclose something of both


class Declined(Refused):
    """The site's policy does not allow the request."""

    code = "declined"


class Withheld(Declined):
    """The site's policy does not allow the request, for a reason that depends on the site's data."""

    of_data = True


class Withdrawn(Refused):
    """The site has left the federation, and contributes nothing any more."""

    code = "withdrawn"


class Enforcement:
    """The policy of one site, with the task that it pinned and the privacy ledger of its updates."""

    def __init__(
        self,
        site: str,
        usual: Policy,
        *,
        base_request: Request,
        file: Path | None = None,
        folder: Path | None = None,
        account: Path | None = None,
        secret: bytes = b"",
    ) -> None:
        """The policy is in the `file`, or else the `usual` one; `folder` keeps pin, privacy ledger and
        answers.

        `base_request`: what holds for every request, the study's treatment of updates and the site's numbers
        of examples. `account`: the folder of a ledger that several sites share. `secret`: the seed of the
        site's noise.
        """
        self.policy = usual
        self._site, self._file, self._base_request, self._secret = site, file, base_request, secret
        self._ledger = Ledger(folder, account)
        self.answered = Answered(folder)
        self._pins = None if folder is None else os.fspath(folder / PINNED)
        self._pinned: str | None = None  # used without a folder
        self._read()

    def check(
        self,
        request: Header,
        fields: tuple[str, ...],
        seconds_today: float = 0.0,
        question: Question | None = None,
    ) -> None:
        """Raises unless the policy, as now in its file, allows work on the request; pins the first task.

        `fields`: those that the reply will have in any case; `seconds_today`: the site's computing time so
        far; `question`: what is asked, if its answers are counted.
        """
        self._read()
        if self._accounted(request):
            self._ledger.check()
        spent = self._epsilon(request)
        policy_request = self._base_request._replace(
            task=request.config, fields=fields, seconds_today=seconds_today, epsilon=spent
        )
        decision = self.policy.allows(
            policy_request, datetime.now(UTC), self._pinned if self._pins is None else pinned(self._pins)
        )
        if decision.code == "withdrawn":
            raise Withdrawn(decision.reason)
        if not decision.allowed:
            raise (Withheld if decision.code in OF_DATA else Declined)(f"{decision.reason} [{decision.code}]")
        if request.kind in ("evaluate", "score", "statistics") and self.policy.leaving.delta is not None:
            raise Declined(
                f"{self._site} keeps an account of an epsilon (leaving.delta), which metrics are not in: it evaluates nothing"
            )
        if question is not None and (objection := self.answered.objection(question, self.policy)) is not None:
            raise Declined(f"{self._site} {objection[1]} [{objection[0]}]")
        if decision.pin is not None and self._pins is not None:
            pin(self._pins, decision.pin)
        elif decision.pin is not None:
            self._pinned = decision.pin

    def check_examples(self, examples: int, per_class: Mapping[Any, int] | None) -> None:
        """Raises if a report may not be of so few examples, or of so few of a class."""
        if (lacking := self.policy.minimum.lacking(examples, per_class)) is not None:
            raise Withheld(f"{self._site} would report on {lacking[1]} [{lacking[0]}]")

    def check_weight(self, request: Header, weight: float, counts: Collection[float] = ()) -> None:
        """Raises if a report may not have this weight, which must be a count under a privacy ledger.

        If the site adds the noise itself, and so trusts nothing that the study computes, the weight must be 1
        or one of `counts`."""
        own = self.policy.leaving.enforced
        if self._accounted(request) and not (weight in (1.0, *counts) if own else weight.is_integer()):
            raise Withheld(
                f"{self._site} keeps an account of an epsilon (leaving.delta), and the report's weight is not a count [weight]"
            )

    def check_cell(self, examples: int) -> None:
        """Raises if sums of metrics may not be of so few examples."""
        if examples < self.policy.minimum.cell:
            required = f"the {self.policy.minimum.cell} examples that its policy asks for behind a sum (minimum.cell)"
            raise Withheld(f"{self._site} has fewer than {required} [cell]")

    def metric(self, name: str, sums: Mapping[str, float], of: float | None = None) -> dict[str, Scalar]:
        """A metric's sums as fields, if the policy lets it leave; a non-finite sum becomes None.

        `of`: the number of examples behind the sums, if known.
        """
        few = of is not None and 0 < of < self.policy.minimum.cell
        if few or not self.policy.may_leave([name], 0.0).allowed:
            return {}
        return written(name, sums)

    def protect(
        self, request: Header, tensors: Mapping[str, np.ndarray], beside: Collection[str] = ()
    ) -> Mapping[str, np.ndarray]:
        """The tensors as they may leave: clipped and with noise, except `beside`, if the policy says so.

        The noise is drawn from the request and the update: a repeated request gets the same bits, and no two
        updates share one noise."""
        leaving = self.policy.leaving
        if request.kind != "train" or not leaving.enforced:
            return tensors
        assert leaving.clip is not None
        update = {name: x for name, x in tensors.items() if name not in beside}
        place = f"{_where(request)}/{request.digest}"
        return {**tensors, **protected(update, leaving.clip, leaving.noise or 0.0, self._secret, place)}

    def release(
        self, request: Header, tensors: Mapping[str, np.ndarray], beside: Collection[str] = ()
    ) -> float | None:
        """The norm of these tensors, except `beside`, checked by the policy; None if no norm is needed.

        Raises for an update that is not finite.
        """
        if request.kind in _WITHOUT_NORM or (
            request.kind != "train" and self.policy.leaving.max_norm is None
        ):
            return None
        norm = measure_update(tensors, beside)
        if not (leave := self.policy.may_leave([], norm)).allowed:
            raise Withheld(f"{leave.reason} [{leave.code}]")
        return norm

    def count(
        self, request: Header, digest: str, question: Question | None = None, steps: int = ALL
    ) -> dict[str, Scalar]:
        """Counts an update before it leaves, with its privacy loss; raises if that exceeds the policy.

        Returns, for the audit log, the epsilon of all updates so far; nothing without a ledger.
        """
        with self._ledger.alone():
            if (
                self._accounted(request)
                and not (leave := self.policy.may_leave([], 0.0, self._epsilon(request, digest))).allowed
            ):
                raise Withheld(f"{leave.reason} [{leave.code}]")
            return self._count(request, digest, question, steps)

    def declined(self, request: Header, question: Question | None) -> dict[str, Scalar]:
        """Counts a refusal after work on the site's data, as `count` does an update."""
        with self._ledger.alone():
            return self._count(
                request,
                f"{_REFUSED} {question.digest if question is not None else request.digest}",
                question,
                0,
            )

    def _count(
        self, request: Header, digest: str, question: Question | None, steps: int
    ) -> dict[str, Scalar]:
        if question is not None:
            self.answered.add(question, steps)
        if not self._accounted(request):
            return {}
        noise, delta = self._noise, self.policy.leaving.delta
        assert noise is not None and delta is not None
        privacy_loss = self._ledger.add(_where(request), noise, digest, request)
        own: dict[str, Scalar] = (
            {"clip": self.policy.leaving.clip, "noise": noise} if self.policy.leaving.enforced else {}
        )
        return own | {"epsilon": epsilon(privacy_loss, delta), "delta": delta, "told": privacy_loss}

    @property
    def _noise(self) -> float | None:
        """The noise in what leaves, in multiples of the clip: the site's own, or what the study says that it
        adds."""
        return self.policy.leaving.noise if self.policy.leaving.enforced else self._base_request.noise

    def _accounted(self, request: Header) -> bool:
        """Whether the privacy ledger counts the answer."""
        return request.kind == "train" and self.policy.leaving.delta is not None and bool(self._noise)

    def _epsilon(self, request: Header, digest: str | None = None) -> float:
        """The epsilon of all updates once this request is answered; 0 without a ledger."""
        delta, noise = self.policy.leaving.delta, self._noise
        if not self._accounted(request) or delta is None or noise is None:
            return 0.0
        return epsilon(self._ledger.after(_where(request), noise, digest), delta)

    def _read(self) -> None:
        if self._file is not None:
            self.policy = Policy.read(self._file)
        if self.policy.site != self._site:
            raise ValueError(f"{self._file} is the policy of {self.policy.site!r}, not of {self._site!r}")


def _where(request: Header) -> str:
    """The place of a report: run, round and exchange."""
    return f"{request.run}/{request.round}/{request.exchange}"
