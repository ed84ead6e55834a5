"""Pools the metrics that sites report of a model, after checking which values are believable.

    a reply's fields ─read─► examples, sums ─doubts─► Evaluation or CrossEvaluation of the believed metrics

A site counts by the number of examples in its reply, which is at most the number that it claimed before the
first round. A value counts if it is finite, within the range that the task gives (`Task.ranges`), and not
absurd: if three sites or more report a metric, a mean above 100 in size and above 100 times the median of
their sizes is left out. If three sites or more answer, a metric that only one of them reports, and that the
study does not name, is dropped.

>>> by_site = {0: SiteTotals(10, {"loss": 5.0}), 1: SiteTotals(20, {"loss": 9.0}), 2: SiteTotals(10, {"loss": -1e30, "auroc": 10.0})}
>>> for (position, name), why in doubts(by_site, ()).items():
...     print(position, name, why)
2 loss its value is more than 100 times the others'
2 auroc no other site has such a metric
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_core.evaluation import NOT_TOLD, Evaluation, pool
from fedjax_core.sites.coordinator.outlying import LEAST, MOST, median
from fedjax_core.sites.protocol.report import NO_METRICS, number_of
from fedjax_core.sites.wire.canonical import Scalar
from fedjax_core.sites.wire.envelope import Envelope
from fedjax_core.task import Range

log = logging.getLogger("fedjax_core")

ALONE = "no other site has such a metric"
_FAR = f"its value is more than {MOST:g} times the others'"


class SiteTotals(NamedTuple):
    """The metrics that one site reports."""

    examples: int
    totals: Mapping[str, float]  # {metric: sum over the examples}; NaN if not finite


def read(fields: Mapping[str, Any], most: int) -> SiteTotals | str:
    """The metrics in a site's reply, or the reason of its rejection; `most`: the examples that it claimed."""
    examples = fields.get("examples")
    if type(examples) is not int or examples < 1:
        return "its reply lacks the number of examples"
    if examples > most:
        return f"its reply is of {examples} examples, and it said before the first round that it has {most}"
    return SiteTotals(
        examples,
        {
            name: number_of(value)
            for name, value in fields.items()
            if name not in NO_METRICS and "." not in name
        },
    )


def doubts(
    by_site: Mapping[int, SiteTotals], ranges: Iterable[Range], named: Collection[str] = ()
) -> dict[tuple[int, str], str]:
    """{(site's position, metric): why it is not believed}; `named`: further metrics that the study has."""
    values = {
        name: {
            position: one.totals[name] / one.examples
            for position, one in by_site.items()
            if name in one.totals
        }
        for name in names_of(by_site)
    }
    return doubtful_means(values, ranges, {"loss", *named}, len(by_site))


class Believed(NamedTuple):
    """The metrics that sites report of one model, as far as they are believed."""

    by_site: dict[int, SiteTotals]  # by the sites' positions, without the metrics that were dropped
    doubts: dict[tuple[int, str], str]  # (position, metric) -> why it does not count
    reasons: dict[int, str]  # position -> why a reply was rejected


def believe(
    replies: Mapping[int, Envelope],
    sizes: np.ndarray,
    ranges: Iterable[Range],
    withheld: Mapping[int, Collection[str]],
) -> Believed:
    """Checks the metrics in these replies; `sizes` [N]: the examples that sites claimed, `withheld`: the
    metrics that they keep."""
    results = {
        position: read(reply.header.fields, int(sizes[position])) for position, reply in replies.items()
    }
    by_site = {position: one for position, one in results.items() if not isinstance(one, str)}
    named = {
        name
        for position, names in withheld.items()
        for name in names
        if position not in by_site or name not in by_site[position].totals
    }
    why = doubts(by_site, ranges, named)
    alone = {one for one, reason in why.items() if reason == ALONE}
    kept = {
        position: one._replace(
            totals={name: total for name, total in one.totals.items() if (position, name) not in alone}
        )
        for position, one in by_site.items()
    }
    return Believed(kept, why, {position: one for position, one in results.items() if isinstance(one, str)})


def say(
    believed: Believed, names: Sequence[str], record: Callable[[str, Mapping[str, Scalar]], None]
) -> None:
    """Logs, and passes to `record`, which sites' replies and metrics do not count, and why."""
    for position, why in believed.reasons.items():
        log.warning("what %s tells of a model does not count: %s", names[position], why)
        record(names[position], {"reason": why})
    for (position, name), why in believed.doubts.items():
        log.warning("the metric %r of %s does not count: %s", name, names[position], why)
        record(names[position], {"metric": name, "reason": why})


def evaluation(names: Sequence[str], believed: Believed, reasons: Mapping[int, str], on: str) -> Evaluation:
    """The pooled `Evaluation` of the believed metrics; `reasons`: why sites did not answer."""
    by_site, everyone = believed.by_site, range(len(names))
    sizes = np.array(
        [by_site[position].examples if position in by_site else 0 for position in everyone], np.int64
    )
    pooled, clients, without = dict[str, float](), dict[str, np.ndarray](), dict[str, dict[str, str]]()
    for name in names_of(by_site):
        total = np.array(
            [
                by_site[position].totals.get(name, math.nan) if position in by_site else math.nan
                for position in everyone
            ]
        )
        not_told = {position: NOT_TOLD for position, one in by_site.items() if name not in one.totals}
        pooled[name], lacking = pool(
            names,
            sizes,
            total,
            not_told | {position: why for (position, of), why in believed.doubts.items() if of == name},
        )
        clients[name] = np.divide(total, sizes, out=np.full(len(names), math.nan), where=sizes > 0)
        lacking |= {
            names[position]: reasons.get(position, "no reply")
            for position in everyone
            if position not in by_site
        }
        without |= {name: lacking} if lacking else {}
    return Evaluation(pooled, clients, sizes, on, without)


def names_of(by_site: Mapping[int, SiteTotals]) -> list[str]:
    """The metrics that at least one site reports."""
    return list(dict.fromkeys(name for one in by_site.values() for name in one.totals))


def doubtful_means(
    values: Mapping[str, Mapping[int, float]], ranges: Iterable[Range], named: Collection[str], answered: int
) -> dict[tuple[int, str], str]:
    """{(source, metric): why it is not believed} for {metric: {source: mean}} from `answered` sites."""
    known = {one[0]: (one[1], one[2]) for one in ranges}
    reasons = {}
    for name, means in values.items():
        if len(means) == 1 and answered >= LEAST and name not in named and name not in known:
            reasons[next(iter(means)), name] = ALONE
            continue
        low, high = known.get(name, (-math.inf, math.inf))
        finite = {source: mean for source, mean in means.items() if math.isfinite(mean)}
        within = {
            source: mean
            for source, mean in finite.items()
            if low - _margin(low) <= mean <= high + _margin(high)
        }
        reasons |= {
            (source, name): f"its value is not within {low:g} and {high:g}"
            for source in finite
            if source not in within
        }
        if len(within) >= LEAST:
            most = MOST * max(1.0, median([abs(mean) for mean in within.values()]))
            reasons |= {(source, name): _FAR for source, mean in within.items() if abs(mean) > most}
    return reasons


def _margin(end: float) -> float:
    """The tolerance for a mean's rounding beyond an end of its range."""
    return 1e-5 * max(1.0, abs(end)) if math.isfinite(end) else 0.0
