"""The privacy that a run has spent, by the account of its uplink: in each round's record, in checkpoints, and
as a reason to end the run.

    uplink.promises.account      an object of fc.privacy: `told(rounds)`, `epsilon(rounds)`, `rounds`, `delta`, `cohorts`, `terms`

The epsilon depends on the number of rounds behind a state only: rounds that are repeated after a crash draw
the same noise for the same reports, and reveal nothing new. So a run goes on only under the terms that it
began with, and the rounds behind a given `state=` count as if they had been under these.
"""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("fedjax_core")

# counts of a round's cohort, which would be given without noise
_COUNTS = (
    "clients",
    "examples",
    "refused",
    "bits_up",
    "bits_down",
    "left_out",
)


class Spending:
    """The privacy account of a run; without effect where the uplink adds no noise."""

    def __init__(self, sim: Any) -> None:
        promises = getattr(getattr(getattr(sim, "round", None), "uplink", None), "promises", None)
        self.account = getattr(promises, "account", None)

    def check(self, sim: Any, cohorts: Any, evaluates_on_clients: bool) -> None:
        """Raises where the run does not do what its account assumes."""
        account = self.account
        if account is None:
            return
        if account.cohorts is not None and cohorts != account.cohorts:
            raise ValueError(
                f"cohorts={cohorts} is not the sampler that the account of {sim.round.uplink.name!r} is of, {account.cohorts}: its epsilon "
                "would be another. Give cohorts=private.cohorts"
            )
        if account.cohorts is not None and getattr(sim, "buffer", None) is not None:
            raise ValueError(
                "clients that report when they are done are no sample of any known rate, which the epsilon goes by: run in rounds, without "
                "buffer="
            )
        if evaluates_on_clients and not getattr(account, "open_metrics", False):
            raise ValueError(
                "evaluate_every= evaluates on the clients that are trained on, of which that would tell without noise: give evaluate= "
                "clients who are not among them (fc.Clients), or leave evaluate_every= out"
            )

    def until(self, rounds: int) -> int:
        """The number of rounds that the account allows, at most `rounds`."""
        return rounds if self.account is None else min(rounds, int(self.account.rounds))

    def ended(self, done: int, rounds: int) -> bool:
        """Whether the run ends before its rounds are done, because they would spend more; logs it."""
        if self.account is None or done < self.account.rounds or done >= rounds:
            return False
        log.warning(
            "the run ends after round %d of %d: its epsilon of %.4g at delta %g is spent, which the noise is for. For more rounds make "
            "the uplink for as many: fc.privacy.client_level(rounds=%d, ...)",
            done, rounds, self.account.epsilon(done), self.account.delta, rounds,
        )  # fmt: skip
        return True

    def recorded(self, round: int, row: Mapping[str, float]) -> dict[str, float]:
        """The metrics of a round that may be recorded, with the epsilon of all rounds so far."""
        if self.account is None:
            return dict(row)
        open_metrics = getattr(self.account, "open_metrics", False)
        return {name: x for name, x in row.items() if open_metrics or name not in _COUNTS} | {
            "epsilon": self.account.told(round)
        }

    def saved(self, done: int) -> dict[str, Any] | None:
        """The account's part of a checkpoint; None where there is no account."""
        if self.account is None:
            return None
        return {
            "epsilon": self.account.told(done),
            "delta": self.account.delta,
            "rounds": done,
            "terms": dict(self.account.terms),
        }

    def resume(self, saved: Mapping[str, Any] | None, done: int) -> None:
        """Raises unless a run with this in its checkpoint may go on, whatever `override` says."""
        terms = None if self.account is None else dict(self.account.terms)
        before = None if saved is None else dict(saved["terms"])
        if terms == before or not done:
            return
        if before is None:
            raise ValueError(
                f"the {done} rounds so far added no noise, so no epsilon can be said of more that do: begin in another run_dir"
            )
        changed = [
            f"{name}: {before[name]} -> {(terms or {}).get(name)}"
            for name in before
            if before[name] != (terms or {}).get(name)
        ]
        raise ValueError(
            f"the {done} rounds so far were counted under other terms of privacy ({', '.join(changed)}), and one epsilon cannot be said of "
            "both: begin in another run_dir, from this model if you like (params=), and compose both by fc.privacy.epsilon_of"
        )
