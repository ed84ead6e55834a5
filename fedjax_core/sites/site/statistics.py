"""Statistics at a site: the requested sums of its raw columns, within the limits of its policy, or a refusal.

    request   a statistic by name, with plain values (fedjax_core/stats/messages.py): never code
    reply     its sums, where `leaving.fields` has "statistics", and each is about enough people

The limits come from the site's policy, `[statistics]` or `minimum.cell` (limits.py). With any limit,
statistics use only the columns in `statistics.columns`, by a closed list of expressions (stats/closed.py).
Each release is recorded with the rules' measurements: at the site's desk (disclosure/releases.py), which
remembers the people behind each release, and in its audit log. If the data forbid an answer, the coordinator
only gets `declined`; a column or an expression that is not listed is named.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.disclosure import Desk
from fedjax_core.disclosure.releases import Declined as NotReleased
from fedjax_core.disclosure.rules import Finding
from fedjax_core.sites.policy.enforcement import Declined, Withheld
from fedjax_core.sites.policy.tables import Statistics
from fedjax_core.sites.protocol.request import BadRequest
from fedjax_core.sites.site.data import SiteData
from fedjax_core.sites.site.limits import SiteLimits
from fedjax_core.sites.wire.canonical import Scalar
from fedjax_core.stats import closed
from fedjax_core.stats.base import Limits, Statistic, Sums, TooFew
from fedjax_core.stats.formula import Design
from fedjax_core.stats.messages import decode, name_of
from fedjax_core.stats.table import SITE, Table


def asked_for(text: np.ndarray) -> Statistic:
    """The statistic in a request; raises a `Refused` if it is not known here."""
    try:
        return decode(text.tobytes())
    except ValueError as error:
        raise BadRequest(str(error)) from None


def sums(
    statistic: Statistic, data: SiteData, site: str, policy: Statistics | None, desk: Callable[[], Desk]
) -> tuple[dict[str, np.ndarray], dict[str, Scalar]]:
    """(the statistic's sums at the site, details for the audit log); raises a `Refused` if too few people."""
    columns, categories = _columns(data.raw), data.raw.categories
    if policy is None:
        return _arrays(statistic.sums(Table(columns, categories, site, data.persons), Limits())), {}
    _check_listed(statistic, policy, site)
    table = Table(
        {name: x for name, x in columns.items() if name in policy.columns}, categories, site, data.persons
    )
    limits, what = SiteLimits(policy), f"{name_of(statistic)}: {' '.join(statistic.columns)}"
    few, arrays = None, {}
    try:
        arrays = _arrays(statistic.sums(table, limits))
    except TooFew as error:
        few = str(error)
    findings = list(limits.findings.values())
    if few is not None and all(each.holds for each in findings):
        findings.append(Finding("few", 1, 0, False))
    try:
        line = desk().under(policy).sums(what, findings, limits.sets, arrays, limits.tables, few)
    except NotReleased as error:
        raise Withheld(f"{site} would tell of too few people: {few or error} [statistics]") from None
    details: dict[str, Scalar] = {
        f"rule.{each['rule']}": f"{each['measured']:g} ({each['limit']:g})" for each in line["findings"]
    }
    return arrays, details | {"released": line["digest"][:16], "hidden": limits.hidden}


def _check_listed(statistic: Statistic, policy: Statistics, site: str) -> None:
    """Raises for a column that the policy does not list, or an expression that is not on the closed list, and
    names it."""
    allowed = {*policy.columns, *SITE}
    if odd := [name for name in statistic.columns if name not in allowed]:
        listed = ", ".join(policy.columns) or "none"
        raise Declined(
            f"{site} lets nothing be told of the column {odd[0]!r}; listed are {listed} (statistics.columns) [statistics]"
        )
    for expression in _expressions(statistic):
        if (why := closed.refused(expression, allowed)) is not None:
            raise Declined(
                f"{site} computes expressions of a closed list alone, and {why} (docs/statistics.md) [statistics]"
            )


def _expressions(value: Any) -> Iterator[list[Any]]:
    """All expressions in a statistic, which are the lists among its fields."""
    if isinstance(value, Design):
        yield from value.expressions
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _expressions(getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            yield from _expressions(one)
    elif isinstance(value, list):
        yield value


def _columns(raw: Clients) -> dict[str, np.ndarray]:
    """The columns by name; a matrix with named features gives each feature too, with categories as integer
    codes."""
    columns = dict(raw.named_columns)
    for matrix, names in raw.features.items():
        for i, name in enumerate(names):
            x = columns[matrix][:, i]
            columns.setdefault(
                name, np.where(np.isnan(x), -1, x).astype(np.int32) if name in raw.categories else x
            )
    return columns


def _arrays(values: Sums) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in values.items()}
