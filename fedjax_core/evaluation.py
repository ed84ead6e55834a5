"""The results of an evaluation: each metric pooled over all examples and client by client, or model by model
at every site.

A client or site that does not tell a metric, or whose sum is not finite, is left out of the pooled value and
named with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

NOT_TOLD, NOT_FINITE = "it does not tell it", "it is not finite there"
"""Reasons why a client or a site is not in a pooled value."""


class Evaluation(NamedTuple):
    """The metrics of one model, {name: value}: pooled, and client by client."""

    pooled: dict[str, float]  # over all examples of those who tell it; NaN where nobody does
    clients: dict[str, np.ndarray]  # [N] float64, over each client's examples; NaN for a client with none
    sizes: np.ndarray  # [N] examples behind each
    on: str = (
        ""  # "held-out" or "trained on", where a federation's sites evaluated: on which of their examples
    )
    # {metric: {client that is not in its pooled value: why}}
    without: Mapping[str, Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class CrossEvaluation:
    """The metrics of every model at every site; prints as a table of the first metric. A site that did not
    answer is a hole, with its reason."""

    models: tuple[str, ...]  # M
    sites: tuple[str, ...]  # S
    totals: Mapping[str, np.ndarray]
    """{metric: [M, S] float64}: the sum over a site's examples; NaN where the site does not tell it, or says
    that it is not finite."""
    counts: np.ndarray  # [M, S] examples behind each; 0 in holes
    reasons: Mapping[tuple[str, str], str]  # (model, site) -> why there is a hole
    without: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    """(metric, model, site) -> why the site, which answered, is not in the metric's pooled value."""

    def values(self, metric: str) -> np.ndarray:
        """[M, S]: the metric's mean over each site's examples; NaN in holes."""
        return np.divide(
            self._total(metric), self.counts, out=np.full(self.counts.shape, np.nan), where=self.counts > 0
        )

    def pooled(self, metric: str) -> np.ndarray:
        """[M]: the metric's mean over the examples of all sites that tell it of the model, as in
        `Evaluation`; NaN where none does."""
        rows = zip(self.models, self.counts, self._total(metric), strict=True)
        return np.array(
            [pool(self.sites, counts, total, self._doubts(metric, model))[0] for model, counts, total in rows]
        )

    def table(self, metric: str) -> str:
        """Models down, sites across, the pooled value last; `-` for a hole, with the reasons below."""
        values = np.column_stack([self.values(metric), self.pooled(metric)])
        rows = [[f"{metric} of", *self.sites, "pooled"]]
        rows += [
            [name, *("-" if np.isnan(x) else f"{x:.4g}" for x in row)]
            for name, row in zip(self.models, values, strict=True)
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        lines += [f"{model} at {site}: {reason}" for (model, site), reason in self.reasons.items()]
        lines += [
            f"{of} of {model} at {site}: {reason}"
            for (of, model, site), reason in self.without.items()
            if of == metric
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table(next(iter(self.totals))) if self.totals else "no site answered"

    def _doubts(self, metric: str, model: str) -> dict[int, str]:
        """{position of a site: why its value of the metric for the model does not count}."""
        named = {
            position: self.without.get((metric, model, site)) for position, site in enumerate(self.sites)
        }
        return {position: why for position, why in named.items() if why is not None}

    def _total(self, metric: str) -> np.ndarray:
        if metric not in self.totals:
            raise KeyError(f"there is no metric {metric!r}; there are {', '.join(self.totals)}")
        return self.totals[metric]


def pool(
    ids: Any, sizes: np.ndarray, total: np.ndarray, doubts: Mapping[int, str] | None = None
) -> tuple[float, dict[str, str]]:
    """(the mean of a metric over the examples of clients whose sum counts, {a client with examples that is
    left out: why}).

    `ids` [N] are the clients' names, and `total` [N] the sums over `sizes` [N] examples; `doubts`: {position
    of a client that is not to count: why}.

    >>> pool(["a", "b", "c"], np.array([1, 3, 2]), np.array([2.0, 6.0, np.nan]))
    (2.0, {'c': 'it is not finite there'})
    """
    here = (sizes > 0) & np.isfinite(total)
    here[list(doubts or ())] = False
    count = int(sizes[here].sum())
    lacking = {
        str(ids[position]): (doubts or {}).get(position, NOT_FINITE)
        for position in np.flatnonzero((sizes > 0) & ~here).tolist()
    }
    return float(np.where(here, total, 0).sum() / count) if count else np.nan, lacking


def crossed(
    models: Sequence[str],
    sites: Sequence[str],
    results: Mapping[tuple[int, int], tuple[int, Mapping[str, float]] | str],
    doubts: Mapping[tuple[int, int, str], str] | None = None,
) -> CrossEvaluation:
    """The table of these results: {(model, site): (examples, sums of the metrics), or the reason why there
    are none}.

    `doubts`: (model, site, metric) -> why the site's value is not to count in the pooled value.
    """
    shape, totals, counts = (
        (len(models), len(sites)),
        dict[str, np.ndarray](),
        np.zeros((len(models), len(sites)), np.int64),
    )
    reasons, without = {}, {(name, models[m], sites[s]): why for (m, s, name), why in (doubts or {}).items()}
    for (m, s), cell in sorted(results.items()):
        if isinstance(cell, str):
            reasons[models[m], sites[s]] = cell
            continue
        counts[m, s] = cell[0]
        for name, total in cell[1].items():
            totals.setdefault(name, np.full(shape, np.nan))[m, s] = total
    for name in totals:
        for m, s in np.argwhere((counts > 0) & ~np.isfinite(totals[name])).tolist():
            unusable = results[m, s]
            without.setdefault(
                (name, models[m], sites[s]),
                NOT_FINITE if not isinstance(unusable, str) and name in unusable[1] else NOT_TOLD,
            )
    return CrossEvaluation(tuple(models), tuple(sites), totals, counts, reasons, without)
