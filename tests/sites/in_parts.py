"""What tests of messages in parts share: SCAFFOLD under lossy stages, and the site to which things happen."""

import jax

from fedjax_core.sites.audit import show
from tests.sites.federations import NAMES
from tests.zoo import round_of

ALL = [0, 1, 2, 3]
AT = 1
WHO = NAMES[AT]  # to whom things happen, in the second round
COMPOSED = round_of("scaffold, clip, feedback", 4)


def run(fed, rounds=2):
    """(state, metrics) after so many rounds of all sites."""
    state = fed.init(jax.random.key(1))
    for _ in range(rounds):
        state, seen = fed.run(state, ALL)
    return state, seen


def entries(folder, what, who=WHO):
    """What the coordinator's audit log says of this kind about a site."""
    return [
        entry.about
        for entry in show(folder / "coordinator" / "audit")
        if entry.who == who and entry.what == what
    ]
