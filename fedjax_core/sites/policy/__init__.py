"""A site's policy: its settings, their enforcement, and the accounts of time, answers and privacy."""

from fedjax_core.sites.policy.pinning import PINNED, pin, pinned
from fedjax_core.sites.policy.policy import OF_DATA, Decision, Policy, Request
from fedjax_core.sites.policy.tables import SAFE, Caps, Evaluation, Leaving, Minimum, Statistics, Tasks

__all__ = [
    "OF_DATA", "PINNED", "SAFE", "Caps", "Decision", "Evaluation", "Leaving", "Minimum", "Policy", "Request", "Statistics", "Tasks",
    "pin", "pinned",
]  # fmt: skip
