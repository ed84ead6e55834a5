"""What sites tell of a model, and which of it is believed: every metric is pooled over those who tell it, and
the others are named.

    a reply's fields ─read─► examples, sums ─doubts─► Evaluation or CrossEvaluation, each metric without those it is not believed of

A site counts by the examples in its reply, which are at most those that it said before the first round. A
value counts that is finite, within the range that the task says of it (`Task.ranges`), and not absurd: where
three sites or more tell a metric, a mean of more than 100 in size, and of more than 100 times the median of
their sizes, is left out. Where three sites or more answer, a metric that one of them alone tells, and that
the study does not name, is nobody's.

>>> told = {0: Told(10, {"loss": 5.0}), 1: Told(20, {"loss": 9.0}), 2: Told(10, {"loss": -1e30, "auroc": 10.0})}
>>> for (at, name), why in doubts(told, ()).items():
...     print(at, name, why)
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


class Told(NamedTuple):
    """What one site tells."""

    examples: int
    totals: Mapping[str, float]  # {metric: sum over them}; NaN where it is not finite there


def read(fields: Mapping[str, Any], most: int) -> Told | str:
    """What is in a reply of a site that said to have at most so many examples, or why it is not read."""
    examples = fields.get("examples")
    if type(examples) is not int or examples < 1:
        return "its reply lacks the number of examples"
    if examples > most:
        return f"its reply is of {examples} examples, and it said before the first round that it has {most}"
    return Told(
        examples,
        {
            name: number_of(value)
            for name, value in fields.items()
            if name not in NO_METRICS and "." not in name
        },
    )


def doubts(
    told: Mapping[int, Told], ranges: Iterable[Range], named: Collection[str] = ()
) -> dict[tuple[int, str], str]:
    """{(site's position, metric): why it is not believed}; `named`: further metrics that the study is known
    to have."""
    values = {
        name: {at: one.totals[name] / one.examples for at, one in told.items() if name in one.totals}
        for name in names_of(told)
    }
    return doubtful_means(values, ranges, {"loss", *named}, len(told))


class Believed(NamedTuple):
    """What sites tell of one model, as far as it is believed."""

    told: dict[int, Told]  # by the sites' positions, without metrics that are nobody's
    doubts: dict[tuple[int, str], str]  # (position, metric) -> why it does not count
    reasons: dict[int, str]  # why a reply was not read at all


def believe(
    replies: Mapping[int, Envelope],
    sizes: np.ndarray,
    ranges: Iterable[Range],
    withheld: Mapping[int, Collection[str]],
) -> Believed:
    """What is in these replies, of sites that said to have so many examples at most (`sizes` [N]), and to
    keep the metrics `withheld`."""
    found = {at: read(reply.header.fields, int(sizes[at])) for at, reply in replies.items()}
    told = {at: one for at, one in found.items() if not isinstance(one, str)}
    named = {
        name
        for at, names in withheld.items()
        for name in names
        if at not in told or name not in told[at].totals
    }
    why = doubts(told, ranges, named)
    alone = {one for one, reason in why.items() if reason == ALONE}
    kept = {
        at: one._replace(
            totals={name: total for name, total in one.totals.items() if (at, name) not in alone}
        )
        for at, one in told.items()
    }
    return Believed(kept, why, {at: one for at, one in found.items() if isinstance(one, str)})


def say(
    believed: Believed, names: Sequence[str], record: Callable[[str, Mapping[str, Scalar]], None]
) -> None:
    """Says on screen and by `record` which sites' replies and metrics do not count, and why."""
    for at, why in believed.reasons.items():
        log.warning("what %s tells of a model does not count: %s", names[at], why)
        record(names[at], {"reason": why})
    for (at, name), why in believed.doubts.items():
        log.warning("the metric %r of %s does not count: %s", name, names[at], why)
        record(names[at], {"metric": name, "reason": why})


def evaluation(names: Sequence[str], believed: Believed, reasons: Mapping[int, str], on: str) -> Evaluation:
    """The metrics as a person reads them; `reasons`: why a site did not answer."""
    told, everyone = believed.told, range(len(names))
    sizes = np.array([told[at].examples if at in told else 0 for at in everyone], np.int64)
    pooled, clients, without = dict[str, float](), dict[str, np.ndarray](), dict[str, dict[str, str]]()
    for name in names_of(told):
        total = np.array([told[at].totals.get(name, math.nan) if at in told else math.nan for at in everyone])
        not_told = {at: NOT_TOLD for at, one in told.items() if name not in one.totals}
        pooled[name], lacking = pool(
            names,
            sizes,
            total,
            not_told | {at: why for (at, of), why in believed.doubts.items() if of == name},
        )
        clients[name] = np.divide(total, sizes, out=np.full(len(names), math.nan), where=sizes > 0)
        lacking |= {names[at]: reasons.get(at, "no reply") for at in everyone if at not in told}
        without |= {name: lacking} if lacking else {}
    return Evaluation(pooled, clients, sizes, on, without)


def names_of(told: Mapping[int, Told]) -> list[str]:
    """The metrics that anybody tells."""
    return list(dict.fromkeys(name for one in told.values() for name in one.totals))


def doubtful_means(
    values: Mapping[str, Mapping[int, float]], ranges: Iterable[Range], named: Collection[str], answered: int
) -> dict[tuple[int, str], str]:
    """{(who, metric): why it is not believed} of {metric: {who: mean}}, where so many have answered."""
    known = {one[0]: (one[1], one[2]) for one in ranges}
    found = {}
    for name, means in values.items():
        if len(means) == 1 and answered >= LEAST and name not in named and name not in known:
            found[next(iter(means)), name] = ALONE
            continue
        low, high = known.get(name, (-math.inf, math.inf))
        finite = {who: mean for who, mean in means.items() if math.isfinite(mean)}
        within = {
            who: mean for who, mean in finite.items() if low - _margin(low) <= mean <= high + _margin(high)
        }
        found |= {
            (who, name): f"its value is not within {low:g} and {high:g}"
            for who in finite
            if who not in within
        }
        if len(within) >= LEAST:
            most = MOST * max(1.0, median([abs(mean) for mean in within.values()]))
            found |= {(who, name): _FAR for who, mean in within.items() if abs(mean) > most}
    return found


def _margin(end: float) -> float:
    """By how much rounding may bring a mean beyond an end of its range."""
    return 1e-5 * max(1.0, abs(end)) if math.isfinite(end) else 0.0
