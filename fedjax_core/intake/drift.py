"""Drift: how far a site's columns are from those of all sites together, by sums that sites sent before.

    number     d = (mean - theirs) / sqrt((sd^2 + their sd^2) / 2)        the standardised difference (Austin 2009)
    category   PSI = sum_b (here_b - there_b) log(here_b / there_b)       over the shares of its categories
    number with edges    PSI over bins, besides

A difference is worth a look where it is large, |d| >= 0.5 or PSI >= 0.25, and more than chance: a site of
this size would differ as much in fewer than 1 of 20 fields without drift. From |d| = 2 on, two normal columns
overlap by a third: that is more often another quantity than other patients.

The sums come from `fc.stats`, so that what sites send for them is in their audit logs:

    first = fc.stats.table_one(federation, ["age", "sex"])
    Reference.of(schema, first, {"age": fc.stats.histogram(federation, "age", [18, 40, 60, 80, 110])}).write("federation.toml")

    fedjax-core data check mapping.toml --federation federation.toml        at a site

>>> there = Known(count=1000, mean=60.0, sd=10.0)
>>> found = of_number(np.array([70.0, 72, 74, 76, 78] * 5), there)
>>> round(found.difference, 2), found.chance < 0.5, found.large
(1.9, True, True)
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2, norm

from fedjax_core.files import write_whole
from fedjax_core.intake.schema import Schema
from fedjax_core.intake.tables import made, table_of
from fedjax_core.stats.describe import TableOne
from fedjax_core.stats.histogram import Histogram, population_stability_index

LARGE, OTHER, UNSTABLE = 0.5, 2.0, 0.25
_LEVEL = 0.05  # the share of fields in which chance alone exceeds its bound


@dataclass(frozen=True)
class Known:
    """One field at all sites together."""

    count: int = 0
    """Values that are not missing."""
    mean: float = math.nan
    sd: float = math.nan
    categories: Mapping[str, int] = field(default_factory=dict)
    """{category: rows}."""
    edges: tuple[float, ...] = ()
    bins: tuple[int, ...] = ()
    """Values below the first edge, between each two, and above the last: one more than edges."""

    def __post_init__(self) -> None:
        if self.edges and len(self.bins) != len(self.edges) + 1:
            raise ValueError(
                f"{len(self.edges)} edges go with {len(self.edges) + 1} bins, got {len(self.bins)}"
            )
        if any(type(n) is not int or n < 0 for n in (*self.bins, *self.categories.values(), self.count)):
            raise ValueError("counts are whole numbers from 0 on")


@dataclass(frozen=True)
class Reference:
    """A study's fields at all sites together."""

    schema: str
    """The digest of the schema that the fields are of."""
    fields: Mapping[str, Known]

    @classmethod
    def of(
        cls, schema: Schema, first: TableOne, histograms: Mapping[str, Histogram] | None = None
    ) -> "Reference":
        """The reference of a Table 1 without groups, and of histograms by field; what sites hid is left out.

        Raises ValueError for a Table 1 by groups, and for a field that is none of the schema's.
        """
        if len(first.groups) != 1:
            raise ValueError(
                f"the reference is of all people: table_one without by=, got {len(first.groups)} groups"
            )
        (group,) = first.groups
        fields: dict[str, dict[str, Any]] = {}
        for name, counts in first.counts.items():
            if counts[group] > 0:
                fields[name] = {
                    "count": counts[group],
                    "mean": first.means[name][group],
                    "sd": first.deviations[name][group],
                }
        for name, levels in first.levels.items():
            if all(of[group] >= 0 for of in levels.values()):
                fields[name] = {"categories": {level: of[group] for level, of in levels.items()}}
        for name, one in (histograms or {}).items():
            bins = (one.below, *one.counts.tolist(), one.above)
            fields[name] = fields.get(name, {}) | {"edges": tuple(one.edges.tolist()), "bins": bins}
        if odd := [name for name in fields if name not in schema.fields]:
            raise ValueError(f"{odd[0]!r} is no field of the schema; it has {', '.join(schema.fields)}")
        return cls(schema.digest, {name: Known(**one) for name, one in fields.items()})

    @classmethod
    def read(cls, path: str | Path) -> "Reference":
        """The reference in a TOML file; raises ValueError, naming the setting, where it is none."""
        table = table_of(Path(path))
        fields = table.get("fields", {})
        each = {name: made(Known, one, f"{path}: fields.{name}") for name, one in fields.items()}
        reference: Reference = made(cls, {**table, "fields": each}, str(path))
        return reference

    def write(self, path: str | Path) -> None:
        """Writes the reference to a TOML file, as `read` reads it."""
        lines = [f"schema = {json.dumps(self.schema)}"]
        for name, one in self.fields.items():
            lines.append(f"[fields.{json.dumps(name)}]")
            if one.count:
                lines += [f"count = {one.count}", f"mean = {one.mean!r}", f"sd = {one.sd!r}"]
            if one.edges:
                lines += [f"edges = {list(one.edges)}", f"bins = {list(one.bins)}"]
            if one.categories:
                inner = ", ".join(f"{json.dumps(level)} = {n}" for level, n in one.categories.items())
                lines.append(f"categories = {{ {inner} }}")
        write_whole(Path(path), "\n".join(lines) + "\n", private=False)


class Drift(NamedTuple):
    """How far a field is from all sites together."""

    difference: float = math.nan
    """Standardised, of means; NaN where it is not known."""
    chance: float = 0.0
    """|difference| exceeds this by chance in 1 of 20 fields."""
    psi: float = math.nan
    psi_chance: float = 0.0

    @property
    def large(self) -> bool:
        """Whether it is worth a look."""
        moved = abs(self.difference) >= max(LARGE, self.chance)
        return moved or self.psi >= max(UNSTABLE, self.psi_chance)

    @property
    def other(self) -> bool:
        """Whether it looks like another quantity."""
        return abs(self.difference) >= max(OTHER, self.chance)

    def text(self) -> str:
        """The drift as text."""
        parts = [f"{self.difference:+.2f} sd from all sites"] if math.isfinite(self.difference) else []
        return ", ".join(parts + ([f"PSI {self.psi:.2f}"] if math.isfinite(self.psi) else []))


def of_number(x: np.ndarray, there: Known) -> Drift:
    """The drift of values [n], NaN where missing."""
    x = x[np.isfinite(x)]
    drift = Drift()
    if len(x) > 1 and there.count > 1 and math.isfinite(there.mean):
        spread = math.sqrt((x.var(ddof=1) + there.sd**2) / 2)
        gap = float(x.mean()) - there.mean
        difference = gap / spread if spread else math.copysign(math.inf, gap) if gap else 0.0
        chance = float(norm.ppf(1 - _LEVEL / 2)) * math.sqrt(1 / len(x) + 1 / there.count)
        drift = Drift(difference, chance)
    if len(x) and there.edges and sum(there.bins):
        inner = (*there.edges[:-1], float(np.nextafter(there.edges[-1], np.inf)))  # as fc.stats.histogram
        here = np.bincount(np.searchsorted(inner, x, side="right"), minlength=len(there.bins))
        drift = _with_psi(drift, np.array(there.bins), here)
    return drift


def of_category(counts: Mapping[str, int], there: Known) -> Drift:
    """The drift of a field of categories, by the rows of each category."""
    levels = list(dict.fromkeys((*there.categories, *counts)))
    then, now = (np.array([one.get(level, 0) for level in levels]) for one in (there.categories, counts))
    return _with_psi(Drift(), then, now) if then.sum() and now.sum() else Drift()


def _with_psi(drift: Drift, then: np.ndarray, now: np.ndarray) -> Drift:
    """Adds PSI over the bins that are not empty, and its 95 % point without drift (Yurdakul 2018)."""
    used = (then > 0) | (now > 0)
    chance = float(chi2.ppf(1 - _LEVEL, max(1, used.sum() - 1))) * (1 / then.sum() + 1 / now.sum())
    return drift._replace(psi=population_stability_index(then[used], now[used]), psi_chance=chance)
