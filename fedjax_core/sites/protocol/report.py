"""The fields of a report: how a site writes metrics and the coordinator reads them, and the reserved names.

    metric "loss", a mean    loss = total,  loss.weight = weight
    metric "hits", a sum     hits = total
    limited time             steps_done = s of n,  examples_seen = how many examples those steps had, of all

>>> fields = {"weight": 3.0, "examples": 3, **written("loss", {"total": 1.5, "weight": 3.0}), **written("hits", {"total": 2.0})}
>>> fields
{'weight': 3.0, 'examples': 3, 'loss': 1.5, 'loss.weight': 3.0, 'hits': 2.0}
>>> {name: type(metric).__name__ for name, metric in metrics_of(fields).items()}
{'loss': 'Mean', 'hits': 'Sum'}
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_core.metrics import Mean, Sum
from fedjax_core.round import Round, wire_of
from fedjax_core.sites.wire.canonical import Scalar
from fedjax_core.sites.wire.trees import leaf_specs

NO_METRICS = frozenset(("weight", "examples", "data", "data_was", "clients"))
"""The fields of a reply that are no metrics."""

LEFT = ("uplink_kept", "uplink_norm")
"""Metrics of what the uplink keeps of an update: the share of non-zero numbers, and of the l2 norm. Not with
noise or masks, which are to hide the update's size (`Stage.measurable`)."""

PARTIAL = ("steps_done", "examples_seen")
"""Metrics of a report under a time limit, each a part of a whole; a site's policy must let them leave."""

_LARGEST = float(np.finfo(np.float32).max)


def beside(sent: Any) -> frozenset[str]:
    """The names of the tensors in a report that are not part of its update."""
    wire = wire_of(sent)
    return frozenset(leaf_specs(wire._replace(update=()))) if wire.stats else frozenset()


def stats_of(sent: Any) -> dict[str, str]:
    """{name: name of its tensor} of the stats in a report, which the server reads site by site."""
    wire = wire_of(sent)
    return {
        name: next(iter(leaf_specs(wire._replace(update=(), stats={name: shape}, slot=()))))
        for name, shape in wire.stats.items()
    }


def written(name: str, sums: Mapping[str, float]) -> dict[str, Scalar]:
    """The fields of a metric with these sums; a non-finite sum becomes None."""
    return {
        name if part == "total" else f"{name}.{part}": x if math.isfinite(x) else None
        for part, x in sums.items()
    }


def number_of(value: Any) -> float:
    """The value of a field that should be a number; NaN if it is not one."""
    return float(value) if type(value) in (int, float) else math.nan


def metrics_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics in the fields of a report: `loss` and `loss.weight` are a mean's two sums, `hits` alone is
    a sum."""
    numbers = {name: number_of(value) for name, value in fields.items() if name not in NO_METRICS}
    metrics: dict[str, Any] = {}
    for name, value in numbers.items():
        if "." not in name:
            weight = numbers.get(f"{name}.weight")
            metrics[name] = Sum(_narrow(value)) if weight is None else Mean(_narrow(value), _narrow(weight))
    return metrics


def _narrow(value: float) -> Any:
    """The value as a float32; infinite if it is too large for one, and then not pooled. NumPy gives no
    warning this way."""
    return np.float32(math.copysign(math.inf, value) if abs(value) > _LARGEST else value)


def part_of(rows: np.ndarray, done: int, examples: int) -> dict[str, Mean]:
    """The metrics `PARTIAL` after `done` steps of these batches (rows [T, B] of the client's examples;
    negative: padding)."""
    seen = rows[:done]
    parts = ((done, len(rows)), (len(np.unique(seen[seen >= 0])), examples))
    number: Any = np.float32
    return {
        name: Mean(number(part), number(whole)) for name, (part, whole) in zip(PARTIAL, parts, strict=True)
    }


def epsilon_entry(composed: Round, rounds: int) -> dict[str, Scalar]:
    """For an audit entry: the epsilon and delta of so many rounds, if the uplink has an accountant."""
    account = composed.uplink.promises.account
    return (
        {}
        if account is None
        else {**written("epsilon", {"total": account.told(rounds)}), "delta": float(account.delta)}
    )


def partial_entry(metrics: Mapping[str, Any]) -> dict[str, Scalar]:
    """For an audit entry: how much of the work was done, if not all."""
    if PARTIAL[0] not in metrics:
        return {}
    done, steps = float(metrics[PARTIAL[0]].total), float(metrics[PARTIAL[0]].weight)
    return {"partial": f"{done:g} of {steps:g} steps"} if done < steps else {}
