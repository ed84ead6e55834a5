"""Differential privacy: accounting of an epsilon, mechanisms that keep to it, and audits that detect where it
is not kept.

>>> f"{epsilon(noise=1.0, rate=0.01, rounds=1000, delta=1e-5, accountant='rdp'):.3f}"
'2.101'
"""

from fedjax_core.privacy import audit, canaries
from fedjax_core.privacy.accounting import epsilon, epsilon_of, noise_for
from fedjax_core.privacy.adaptive import adaptive
from fedjax_core.privacy.client_level import ClientLevel, client_level
from fedjax_core.privacy.clipping import clip_by_norm
from fedjax_core.privacy.examples import ExampleLevel, example_level, noisy_gradient
from fedjax_core.privacy.gaussian import gaussian
from fedjax_core.privacy.local import Local, local, local_gaussian
from fedjax_core.privacy.rehearsal import Rehearsal, rehearsal
from fedjax_core.privacy.skellam import Distributed, distributed, skellam

__all__ = [
    "ClientLevel",
    "Distributed",
    "ExampleLevel",
    "Local",
    "Rehearsal",
    "adaptive",
    "audit",
    "canaries",
    "client_level",
    "clip_by_norm",
    "distributed",
    "epsilon",
    "epsilon_of",
    "example_level",
    "gaussian",
    "local",
    "local_gaussian",
    "noise_for",
    "noisy_gradient",
    "rehearsal",
    "skellam",
]
