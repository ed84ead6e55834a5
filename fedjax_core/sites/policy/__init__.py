"""What a site allows: its policy, how that is enforced, and the accounts that it keeps of time, answers and privacy."""

from fedjax_core.sites.policy.policy import (
    OF_DATA,
    PINNED,
    SAFE,
    Caps,
    Decision,
    Evaluation,
    Leaving,
    Minimum,
    Policy,
    Request,
    Statistics,
    Tasks,
    pin,
    pinned,
)

__all__ = [
    "OF_DATA", "PINNED", "SAFE", "Caps", "Decision", "Evaluation", "Leaving", "Minimum", "Policy", "Request", "Statistics", "Tasks",
    "pin", "pinned",
]  # fmt: skip
