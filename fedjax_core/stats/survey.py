"""A survey of columns before they enter a model: which are text, their levels, and how many values are
missing.

    each site:   kinds, missing values, and labels with counts for the columns `levels`   over the complete rows
    centre:      kinds that agree  ─►  one sorted list of levels for all

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": ["a", "a", "b"], "sex": ["F", "M", "F"], "age": [3, None, 5]}, by="site")
>>> found = survey(clients, ("sex", "age"), missing="drop")
>>> found.kinds, found.levels["sex"], found.rows, found.dropped
({'sex': 'text', 'age': 'number'}, {'F': 2}, 2, 1)
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedjax_core.stats.base import HIDDEN, Limits, Source, Sums, TooFew, ask, count, names_of
from fedjax_core.stats.expressions import Expression
from fedjax_core.stats.table import KINDS, Table

Missing = Literal["refuse", "drop"]
"""What happens to rows that lack a used value."""


@dataclass(frozen=True)
class Survey:
    """The site half: kinds and missing values of `names`, levels with counts of those that are text or in
    `levels`."""

    names: tuple[str, ...]
    levels: tuple[str, ...]
    partial: bool = False
    """Whether counts may be hidden, as in a table: a model needs all of them."""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.names

    def sums(self, table: Table, limits: Limits) -> Sums:
        whole = table.complete(self.names)
        limits.group(whole.person_ids, "people")
        kinds = np.array([KINDS.index(table.kind(name)) for name in self.names], np.int64)
        missing = np.array([table.missing(name).sum() for name in self.names], np.int64)
        sums: dict[str, np.ndarray] = {
            "rows": count(table.rows),
            "complete": count(whole.rows),
            "kinds": kinds,
            "missing": missing,
        }
        for i, name in enumerate(self.names):
            listed = name in self.levels or table.kind(name) == "text"
            labels, places = (
                np.unique(whole.labels(name), return_inverse=True)
                if listed
                else (np.zeros(0, str), np.zeros(0, np.int64))
            )
            counts = limits.cells(f"levels of {name!r}", places, (len(labels),), whole.person_ids, (name,))
            if (counts == HIDDEN).any() and not self.partial:
                raise TooFew(f"column {name!r} has a level of too few people for a model")
            sums[f"labels.{i}"] = np.frombuffer(json.dumps(labels.tolist()).encode(), np.uint8)[
                : None if len(labels) else 0
            ]
            sums[f"counts.{i}"] = counts.astype(np.int64)
        return sums


@dataclass(frozen=True)
class Surveyed:
    """The columns as all sites together have them."""

    kinds: dict[str, str]
    levels: dict[str, dict[str, int]]
    """{column: {level: rows}} of text and of the requested columns, in the order of their values; `HIDDEN`
    where a site hides its count."""
    rows: int
    """The complete ones."""
    dropped: int
    """Incomplete rows."""
    by_site: dict[Any, int]
    """{site: its complete rows}."""


def survey(
    source: Source,
    names: Sequence[str],
    levels: Sequence[str] = (),
    missing: Missing = "refuse",
    *,
    partial: bool = False,
) -> Surveyed:
    """Surveys these columns at all sites; raises ValueError where values are missing and `missing` is
    "refuse".

    `partial`: sites whose policies hide counts of few people may give `HIDDEN` for a level.
    """
    if missing not in ("refuse", "drop"):
        raise ValueError(
            f'missing={missing!r} is not known: "refuse" raises, "drop" leaves out the rows that lack a value that is used'
        )
    names = tuple(dict.fromkeys(names))
    site_sums = ask(source, Survey(names, tuple(levels), partial))
    gone = {name: int(sum(one["missing"][i] for one in site_sums)) for i, name in enumerate(names)}
    rows, complete = (int(sum(one[word] for one in site_sums)) for word in ("rows", "complete"))
    if missing == "refuse" and rows > complete:
        lacking = ", ".join(f"{name!r} in {lacks} rows" for name, lacks in gone.items() if lacks)
        raise ValueError(
            f"values are missing: {lacking}, of {rows} rows. Fill them in before, or give missing='drop' to analyse the {complete} rows "
            "that lack none of these columns"
        )
    if not complete:
        raise ValueError(
            f"no row has a value in each of {', '.join(map(repr, names))}, so there is nothing to analyse"
        )
    kinds = {
        name: _kind(name, [KINDS[int(one["kinds"][i])] for one in site_sums if one["rows"]])
        for i, name in enumerate(names)
    }
    level_counts: dict[str, dict[str, int]] = {}
    for i, name in enumerate(names):
        if name in levels or kinds[name] == "text":
            level_counts[name] = _levels(
                [one[f"labels.{i}"] for one in site_sums],
                [one[f"counts.{i}"] for one in site_sums],
                kinds[name],
            )
    by_site = {site: int(one["complete"]) for site, one in zip(names_of(source), site_sums, strict=True)}
    return Surveyed(kinds, level_counts, complete, rows - complete, by_site)


def _kind(name: str, kinds: Sequence[str]) -> str:
    if len(set(kinds) - {"text"}) and "text" in kinds:
        raise ValueError(
            f"column {name!r} is text at some sites and a number at others: have all sites write it in one way"
        )
    return "whole" if set(kinds) == {"whole"} else kinds[0] if "text" in kinds else "number"


def _levels(labels: Sequence[np.ndarray], counts: Sequence[np.ndarray], kind: str) -> dict[str, int]:
    """Levels in order: numbers by size, and text as it sorts. A whole number that is a float at one site is
    one at all, "1.0"."""
    merged: dict[str, int] = {}
    for site_labels, how_many in zip(labels, counts, strict=True):
        for label, rows in zip(
            json.loads(bytes(site_labels)) if len(site_labels) else (), how_many.tolist(), strict=True
        ):
            label = label if kind != "number" else str(float(label))
            before = merged.get(label, 0)
            merged[label] = HIDDEN if HIDDEN in (before, rows) else before + rows
    return {
        label: merged[label] for label in (sorted(merged) if kind == "text" else sorted(merged, key=float))
    }


def truth(expression: Expression, known: Surveyed) -> Expression:
    """The expression of an outcome or event, as a number where it is a column of truth values; raises
    ValueError where the column is other text."""
    if expression[0] != "column" or known.kinds[expression[1]] != "text":
        return expression
    name = expression[1]
    levels = list(known.levels[name])
    if set(levels) <= {"False", "True"}:
        return ["is", name, "True"]
    raise ValueError(
        f"the outcome {name!r} is text, {', '.join(map(repr, levels[:5]))}: say which of it counts, as in "
        f"'I({name} == {levels[-1]!r}) ~ ...'"
    )
