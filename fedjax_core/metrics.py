"""Metrics that add up: a metric is a sum, or a sum and a weight, until a person reads it.

Lanes, devices, workers and sites then merge by `+`, and a mean of means cannot happen.

>>> import jax.numpy as jnp
>>> one, two = mean(jnp.array([1.0, 1.0]), jnp.ones(2)), mean(jnp.array([4.0]), jnp.ones(1))
>>> float(one + two)
2.0
>>> summary({"loss": one + two, "clients": Sum(jnp.float32(3))})
{'loss': 2.0, 'clients': 3.0}
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.types import Array


class _Addable:
    """The base of metrics: leaves add, and `sum()` and `float()` work."""

    def __add__(self, other):  # type: ignore[no-untyped-def]
        return jax.tree.map(lambda a, b: a + b, self, other)

    def __radd__(self, other):  # type: ignore[no-untyped-def]
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __float__(self) -> float:
        return float(jax.device_get(self).value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean(_Addable):
    """A weighted mean, kept as its two sums."""

    total: Array  # sum of weight * value
    weight: Array  # sum of weight

    @property
    def value(self) -> Array:
        """total / weight; NaN where there was nothing to average."""
        xp: Any = _home(self)
        total, weight = xp.asarray(self.total), xp.asarray(self.weight)
        with np.errstate(all="ignore"):  # a sum that is not finite is shown as it is
            return xp.where(weight > 0, total / xp.where(weight > 0, weight, 1), xp.nan)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sum(_Addable):
    """A plain total: counts of clients, examples, bytes."""

    total: Array

    @property
    def value(self) -> Array:
        """The total."""
        return _home(self).asarray(self.total)


def _home(metric: Any) -> Any:
    """NumPy for numbers on the host, such as those recorded of a round, where it is ten times as fast; else
    jax.numpy."""
    return np if all(isinstance(x, (np.ndarray, np.generic)) for x in jax.tree.leaves(metric)) else jnp


def stacked(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of R rounds as one, leaves [R]; a metric that a round lacks counts as zero there. Raises
    ValueError for no rounds."""
    if not seen:
        raise ValueError("run_many needs at least one cohort, got none")
    names = {name: next(m[name] for m in seen if name in m) for m in seen for name in m}
    rows = [
        {name: m.get(name, jax.tree.map(np.zeros_like, one)) for name, one in names.items()} for m in seen
    ]
    return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(rows))


def mean(values: Array, weight: Array | float = 1.0) -> Mean:
    """The mean of `values` weighted by `weight`, of the same shape or a scalar.

    A value under a weight of 0 does not count, whatever it is: padding may hold anything.
    """
    values = jnp.asarray(values, jnp.float32)
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), values.shape)
    return Mean(jnp.sum(jnp.where(weight > 0, values * weight, 0)), jnp.sum(weight))


def add(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of both; those of the same name are summed.

    >>> {name: float(total) for name, total in add({"clients": Sum(1.0)}, {"clients": Sum(2.0), "refused": Sum(1.0)}).items()}
    {'clients': 3.0, 'refused': 1.0}
    """
    return {**a, **{name: a[name] + metric if name in a else metric for name, metric in b.items()}}


def summary(metrics: Mapping[str, Mean | Sum]) -> dict[str, float]:
    """The metrics as plain floats, in one transfer from the device. Raises where a metric is not one number,
    as of several rounds."""
    values = {name: np.asarray(metric.value) for name, metric in jax.device_get(dict(metrics)).items()}
    for name, value in values.items():
        if value.size != 1:
            raise ValueError(
                f"metric {name!r} has {list(value.shape)} numbers, as run_many and sweeps give them, and a summary has one: take one of "
                f"them, such as the last, by jax.tree.map(lambda x: x[-1], metrics), or read metrics[{name!r}].value"
            )
    # device_get gives them in alphabetical order
    return {name: float(values[name].item()) for name in metrics}


TAKEN = frozenset(
    # a reply's own fields
    (
        "weight",
        "examples",
        "data",
        "data_was",
        "schema",
        "columns",
        "skipped",
        "held_out",
        "code",
        "reason",
    )
    + ("moments", "range", "categories")  # sums of columns, as a site's policy names them
    + ("steps_done", "examples_seen", "uplink_kept", "uplink_norm")  # metrics of the sites' own
    + ("bits_up", "bits_down", "left_out")  # tallies of an exchange
    + ("clients", "refused", "missing", "staleness", "stale", "ticks")  # a round's own
    + ("round", "kind")  # a record's own
)
"""Names that no metric of a task or an algorithm may have, for it would be taken for something else."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,55}")


def check_names(names: Iterable[Any], where: str, what: str = "a metric") -> None:
    """Raises where one of these names cannot be used for a metric everywhere: in records, in a site's reply,
    and in its policy.

    `where` says whose names they are, and `what` what they name. Simulators and sites call it before the
    first round.

    >>> check_names(["loss", "AUROC"], "the task")
    >>> check_names(["weight"], "the task")
    Traceback (most recent call last):
    ValueError: the task has a metric called 'weight', a name that rounds, records or sites' replies have for something else: rename it
    """
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{where} has {what} called {name!r}: use up to 56 letters (a to z), digits, '_' and '-', as in 'top_5', and begin "
                "with a letter, for the name goes into records, into messages of sites and into their policies"
            )
        if name in TAKEN:
            raise ValueError(
                f"{where} has {what} called {name!r}, a name that rounds, records or sites' replies have for something else: rename it"
            )


def check_client_metrics(given: Any, where: str) -> None:
    """Raises unless these are metrics that a client's `step` or `finish` may give: {name: `Mean` or `Sum` of
    one number}; arrays or shapes."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{where} gives {type(given).__name__} for its metrics: give a dict, {{'loss': fc.metrics.mean(...)}}, or {{}}"
        )
    check_names(given, where)
    for name, metric in given.items():
        if not isinstance(metric, (Mean, Sum)):
            raise TypeError(
                f"metric {name!r} of {where} is a {type(metric).__name__}: give what adds up, fc.metrics.mean(value, weight) or "
                "fc.metrics.Sum(total)"
            )
        for leaf in jax.tree.leaves(metric):
            if np.shape(leaf) != ():
                raise ValueError(
                    f"metric {name!r} of {where} has the shape {list(np.shape(leaf))}, and a metric is one number: give each a name of "
                    "its own, or its mean by fc.metrics.mean"
                )
