"""A statistic at a site: the sums that were asked for, of its own columns as they lie there, or a refusal.

    request   a statistic by name, with plain values (fedjax_core/stats/messages.py): never code
    reply     its sums, where `leaving.fields` has "statistics", and each is about enough people

Limits are of the site's policy: no group that a sum tells apart is of fewer rows than `minimum.cell`, unless it is empty. Where there is
such a minimum, a model has at most one parameter for every three rows. Of what the data do not allow the coordinator hears `declined`.
"""

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.policy.enforcement import Withheld
from fedjax_core.sites.protocol.request import BadRequest
from fedjax_core.stats.base import Limits, Statistic, TooFew
from fedjax_core.stats.messages import decode
from fedjax_core.stats.table import Table

SHARE = 1 / 3
"""Of so many parameters for each row at most, where the policy has a minimum of a cell."""


def asked_for(text: np.ndarray) -> Statistic:
    """The statistic of a request; raises a `Refused` where it says none that is known here."""
    try:
        return decode(text.tobytes())
    except ValueError as error:
        raise BadRequest(str(error)) from None


def sums(statistic: Statistic, raw: Clients, site: str, policy: Policy) -> dict[str, np.ndarray]:
    """Its sums of the site's examples; raises a `Refused` of the data where they may not be told."""
    cell = policy.minimum.cell
    try:
        found = statistic.sums(Table(raw.named_columns, raw.categories, site), Limits(cell, SHARE if cell else None))
    except TooFew as few:
        raise Withheld(f"{site} has {few} [cell]") from None
    return {name: np.asarray(x) for name, x in found.items()}
