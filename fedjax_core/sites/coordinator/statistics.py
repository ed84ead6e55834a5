"""Collects the sums of a statistic from all sites, checked, in the order of the sites.

    statistic  ─request─►  every site  ─►  sums of the shapes that the statistic has, finite  ─►  [sums, ...]

All sites must answer: a fit without some is another fit, and nobody would notice.
"""

from typing import Any

import numpy as np

from fedjax_core.sites.coordinator.absent import with_reasons
from fedjax_core.sites.coordinator.collect import Collector, Paused
from fedjax_core.sites.protocol.request import Record, Requests
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.trees import from_tensors_open
from fedjax_core.stats.base import Limits, Statistic, Sums
from fedjax_core.stats.messages import encode, name_of
from fedjax_core.stats.table import Table

STATISTIC = "statistic"
"""The name of a request's tensor with the statistic as JSON, and of the field with the statistic's name."""


class BadSums(Refused):
    """The sums that a site reports of its columns are impossible."""

    code = "bad-sums"


def collect_sums(
    statistic: Statistic, collector: Collector, requests: Requests, record: Record
) -> list[Sums]:
    """The sums of every site, in the sites' order. Raises `Paused` if a site sends none, with its reason."""
    names = collector.names
    collector.begin(0, parts=1)
    here = [position for position in range(len(names)) if position not in collector.unknown]
    text = np.frombuffer(encode(statistic), np.uint8)
    request = requests.write(
        "statistics",
        0,
        to=[names[position] for position in here],
        body={STATISTIC: text},
        fields={STATISTIC: name_of(statistic)},
    )
    replies = collector.collect(request, 0, here)
    reasons = {
        names[position]: collector.replies.reasons.get(position, "no reply")
        for position in range(len(names))
        if position not in replies
    }
    like = {
        name: np.asarray(x) for name, x in statistic.sums(Table.empty(statistic.columns), Limits()).items()
    }
    site_sums: list[Sums] = []
    for position, reply in sorted(replies.items()):
        try:
            site_sums.append(
                _checked(
                    from_tensors_open(reply.tensors, {"sums": like})["sums"], int(collector.sizes[position])
                )
            )
        except Refused as refusal:
            reasons[names[position]] = str(refusal)
            record(names[position], "refused", 0, {"code": refusal.code, "reason": str(refusal)[:1000]})
    if reasons:
        raise Paused(
            f"a statistic is of all sites, and these told no sums that count. {with_reasons(reasons)}"
        )
    return site_sums


def _checked(sums: dict[str, Any], examples: int) -> Sums:
    """The sums themselves; raises `BadSums` if they are impossible for so many examples."""
    for name, x in sums.items():
        if not np.isfinite(x).all():
            raise BadSums(f"its sums {name!r} hold NaN or an infinity")
        # Such a scalar is what `stats.base.count` makes.
        if np.ndim(x) == 0 and np.asarray(x).dtype == np.int64 and not 0 <= int(x) <= examples:
            raise BadSums(
                f"its sums say {int(x)} {name}, and it has {examples} examples: a count is none below 0 and no more than these"
            )
    if "rows" in sums and int(np.sum(sums["rows"])) > examples:
        raise BadSums("its sums are of more rows than it has examples")
    return sums
