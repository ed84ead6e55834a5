"""Attacks by lying clients, to test aggregation rules against: on updates (`attacked`, `mark`) and on
data."""

from fedjax_core.attacks.alie import alie
from fedjax_core.attacks.base import Attack, attacked, mark
from fedjax_core.attacks.ipm import ipm
from fedjax_core.attacks.mimic import mimic
from fedjax_core.attacks.min_max import min_max, min_sum
from fedjax_core.attacks.poison import backdoor, label_flip, with_trigger
from fedjax_core.attacks.simple import gaussian, scaling, sign_flip

__all__ = [
    "Attack",
    "alie",
    "attacked",
    "backdoor",
    "gaussian",
    "ipm",
    "label_flip",
    "mark",
    "mimic",
    "min_max",
    "min_sum",
    "scaling",
    "sign_flip",
    "with_trigger",
]
