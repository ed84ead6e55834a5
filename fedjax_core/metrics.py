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
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.types import Array


class _Addable:
    """Leaves add; `sum()` and `float()` work."""

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
        with np.errstate(all="ignore"):  # a sum that is not finite is told as it is
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
    """NumPy where the numbers are on the host, as those that a round is recorded by: there it is ten times as fast."""
    return np if all(isinstance(x, (np.ndarray, np.generic)) for x in jax.tree.leaves(metric)) else jnp


def stacked(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of R rounds as one, leaves [R]; a metric that a round lacks is nothing there. Raises ValueError where there is none."""
    if not seen:
        raise ValueError("run_many needs at least one cohort, got none")
    names = {name: next(m[name] for m in seen if name in m) for m in seen for name in m}
    rows = [{name: m.get(name, jax.tree.map(np.zeros_like, one)) for name, one in names.items()} for m in seen]
    return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(rows))


class Evaluation(NamedTuple):
    """Every metric as a person reads it, {name: value}."""

    pooled: dict[str, float]  # over all examples of those who tell it; NaN where nobody does
    clients: dict[str, np.ndarray]  # [N] float64, over each client's examples; NaN for a client with none
    sizes: np.ndarray  # [N] examples behind each
    on: str = ""  # "held-out" or "trained on", where a federation's sites evaluated: on which of their examples
    without: Mapping[str, Mapping[str, str]] = MappingProxyType({})  # {metric: {client that is not in its pooled value: why}}


@dataclass(frozen=True)
class CrossEvaluation:
    """Every model at every site; prints as a table of the first metric. A site that did not answer is a hole, with its reason."""

    models: tuple[str, ...]  # M
    sites: tuple[str, ...]  # S
    totals: Mapping[str, np.ndarray]
    """{metric: [M, S] float64}: the sum over a site's examples; NaN where the site does not tell it, or says that it is not finite."""
    counts: np.ndarray  # [M, S] examples behind each; 0 in holes
    reasons: Mapping[tuple[str, str], str]  # (model, site) -> why there is a hole
    without: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    """(metric, model, site) -> why the site, which answered, is not in the metric's pooled value."""

    def values(self, metric: str) -> np.ndarray:
        """[M, S]: the metric's mean over each site's examples; NaN in holes."""
        return np.divide(self._total(metric), self.counts, out=np.full(self.counts.shape, np.nan), where=self.counts > 0)

    def pooled(self, metric: str) -> np.ndarray:
        """[M]: the metric's mean over the examples of all sites that tell it of the model, as in `Evaluation`; NaN where none does."""
        total = self._total(metric)
        doubted = [[(metric, model, site) in self.without for site in self.sites] for model in self.models]
        here = np.isfinite(total) & ~np.array(doubted, bool).reshape(total.shape)
        count = np.where(here, self.counts, 0).sum(axis=1)
        return np.divide(np.where(here, total, 0).sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)

    def table(self, metric: str) -> str:
        """Models down, sites across, the pooled value last; `-` for a hole, of which the reasons follow."""
        values = np.column_stack([self.values(metric), self.pooled(metric)])
        rows = [[f"{metric} of", *self.sites, "pooled"]]
        rows += [[name, *("-" if np.isnan(x) else f"{x:.4g}" for x in row)] for name, row in zip(self.models, values, strict=True)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))]) for row in rows]
        lines += [f"{model} at {site}: {reason}" for (model, site), reason in self.reasons.items()]
        lines += [f"{of} of {model} at {site}: {reason}" for (of, model, site), reason in self.without.items() if of == metric]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table(next(iter(self.totals))) if self.totals else "no site answered"

    def _total(self, metric: str) -> np.ndarray:
        if metric not in self.totals:
            raise KeyError(f"there is no metric {metric!r}; there are {', '.join(self.totals)}")
        return self.totals[metric]


def mean(values: Array, weight: Array | float = 1.0) -> Mean:
    """The mean of `values` weighted by `weight`, of the same shape or a scalar.

    A value under a weight of 0 does not count, whatever it is: padding may hold anything.
    """
    values = jnp.asarray(values, jnp.float32)
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), values.shape)
    return Mean(jnp.sum(jnp.where(weight > 0, values * weight, 0)), jnp.sum(weight))


def summary(metrics: Mapping[str, Mean | Sum]) -> dict[str, float]:
    """Plain floats to read and log, in one transfer from the device. Raises where a metric is not one number, as of several rounds."""
    found = {name: np.asarray(metric.value) for name, metric in jax.device_get(dict(metrics)).items()}
    for name, value in found.items():
        if value.size != 1:
            raise ValueError(
                f"metric {name!r} has {list(value.shape)} numbers, as run_many and sweeps give them, and a summary has one: take one of "
                f"them, such as the last, by jax.tree.map(lambda x: x[-1], metrics), or read metrics[{name!r}].value"
            )
    return {name: float(found[name].item()) for name in metrics}  # device_get gives them in alphabetical order


TAKEN = frozenset(
    ("weight", "examples", "data", "data_was", "schema", "columns", "skipped", "held_out", "code", "reason")  # a reply's own fields
    + ("moments", "range", "categories")  # sums of columns, as a site's policy names them
    + ("steps_done", "examples_seen", "uplink_kept", "uplink_norm")  # metrics of the sites' own
    + ("clients", "refused", "missing", "staleness", "stale", "ticks")  # a round's own
    + ("round", "kind")  # a record's own
)
"""What no metric of a task or an algorithm may be called, for it would be taken for something else."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,55}")


def check_names(names: Iterable[Any], where: str) -> None:
    """Raises where one of these could not be the name of a metric everywhere: in records, in a site's reply, and in its policy.

    `where` says whose they are. Simulators and sites ask it before the first round.

    >>> check_names(["loss", "AUROC"], "the task")
    >>> check_names(["weight"], "the task")
    Traceback (most recent call last):
    ValueError: the task has a metric called 'weight', a name that rounds, records or sites' replies have for something else: rename it
    """
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{where} has a metric called {name!r}: use up to 56 letters (a to z), digits, '_' and '-', as in 'top_5', and begin "
                "with a letter, for the name goes into records, into messages of sites and into their policies"
            )
        if name in TAKEN:
            raise ValueError(
                f"{where} has a metric called {name!r}, a name that rounds, records or sites' replies have for something else: rename it"
            )


def check_step_metrics(found: Any, where: str) -> None:
    """Raises unless these are what a client's `step` may give beside its carry: {name: `Mean` or `Sum` of one number}; arrays or shapes."""
    if not isinstance(found, Mapping):
        raise TypeError(f"{where} gives {type(found).__name__} for its metrics: give a dict, {{'loss': fc.metrics.mean(...)}}, or {{}}")
    check_names(found, where)
    for name, metric in found.items():
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


NOT_TOLD, NOT_FINITE = "it does not tell it", "it is not finite there"
"""Why a client or a site is not in a pooled value."""


def pool(ids: Any, sizes: np.ndarray, total: np.ndarray, doubts: Mapping[int, str] | None = None) -> tuple[float, dict[str, str]]:
    """(the mean of a metric over the examples of those whose sum counts, {who has examples and is not among these: why}).

    `ids` [N] are their names, and `total` [N] the sums over `sizes` [N] examples; `doubts`: why not, by position, of those who are not
    to count whatever they tell.

    >>> pool(["a", "b", "c"], np.array([1, 3, 2]), np.array([2.0, 6.0, np.nan]))
    (2.0, {'c': 'it is not finite there'})
    """
    here = (sizes > 0) & np.isfinite(total)
    here[list(doubts or ())] = False
    count = int(sizes[here].sum())
    lacking = {str(ids[at]): (doubts or {}).get(at, NOT_FINITE) for at in np.flatnonzero((sizes > 0) & ~here).tolist()}
    return float(np.where(here, total, 0).sum() / count) if count else np.nan, lacking


def crossed(
    models: Sequence[str],
    sites: Sequence[str],
    found: Mapping[tuple[int, int], tuple[int, Mapping[str, float]] | str],
    doubts: Mapping[tuple[int, int, str], str] | None = None,
) -> CrossEvaluation:
    """The table of what was found: {(model, site): (examples, sums of the metrics), or the reason why there are none}.

    `doubts`: (model, site, metric) -> why what the site tells is not to count in the pooled value.
    """
    shape, totals, counts = (len(models), len(sites)), dict[str, np.ndarray](), np.zeros((len(models), len(sites)), np.int64)
    reasons, without = {}, {(name, models[m], sites[s]): why for (m, s, name), why in (doubts or {}).items()}
    for (m, s), said in sorted(found.items()):
        if isinstance(said, str):
            reasons[models[m], sites[s]] = said
            continue
        counts[m, s] = said[0]
        for name, total in said[1].items():
            totals.setdefault(name, np.full(shape, np.nan))[m, s] = total
    for name in totals:
        for m, s in np.argwhere((counts > 0) & ~np.isfinite(totals[name])).tolist():
            told = found[m, s]
            without.setdefault((name, models[m], sites[s]), NOT_FINITE if not isinstance(told, str) and name in told[1] else NOT_TOLD)
    return CrossEvaluation(tuple(models), tuple(sites), totals, counts, reasons, without)
