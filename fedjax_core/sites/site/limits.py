"""`SiteLimits`: applies a site's output policy to the groups of people that a statistic discloses.

    group      the least people in a group, and in any difference of groups told of a column (differencing.py)
    model      parameters per person; the groups of every binary column, and of every two of them
    sums       dominance: neither one person's part, nor two persons', may be most of a column's sum
    weights    the same for weights that depend on coefficients, which the requester may choose
    cells      tables of counts: refused, hidden with others, or rounded, as the policy says

Rules count people, not rows. Their measurements stay at the site, as evidence for each release.

>>> limits = SiteLimits(OutputPolicy(minimum=3))
>>> limits.group(np.array([1, 1, 2, 2, 2]), "people in a group", ("age",))
Traceback (most recent call last):
fedjax_core.stats.base.TooFew: people in a group: 2, and the limit is 3
"""

from collections.abc import Iterable, Sequence

import numpy as np

from fedjax_core.disclosure import rules
from fedjax_core.disclosure.policy import OutputPolicy
from fedjax_core.disclosure.rules import Finding
from fedjax_core.disclosure.tables import crosstab_sums, protect
from fedjax_core.stats.base import HIDDEN, Limits, TooFew
from fedjax_core.stats.closed import comparisons
from fedjax_core.stats.expressions import evaluate
from fedjax_core.stats.formula import Design
from fedjax_core.stats.table import SITE, Table


class SiteLimits(Limits):
    """The limits of one answer: `findings` are the rules' tightest measurements, `sets` the groups of people
    by column."""

    def __init__(self, policy: OutputPolicy) -> None:
        self.policy = policy
        self.findings: dict[str, Finding] = {}
        self._groups: dict[str, dict[bytes, np.ndarray]] = {}
        self.tables: dict[str, list[list[list[int]]]] = {}
        """{column: for each table with it, the groups of people in the visible cells and margins}."""
        self.hidden = 0

    @property
    def sets(self) -> dict[str, list[list[int]]]:
        """{column: the groups of people about whom something of it is told}."""
        return {
            column: [each.tolist() for each in groups.values()] for column, groups in self._groups.items()
        }

    def group(self, people: np.ndarray, what: str, columns: Iterable[str] = ()) -> None:
        persons = np.unique(people)
        if not len(persons):
            if not self.policy.zeros:
                self._ask(what, Finding("empty cell", 0, self.policy.minimum, False))
            return
        self._ask(what, rules.enough("people", len(persons), self.policy))
        for column in columns:
            if column not in SITE:
                records = np.sort(people)  # with repeats: differencing subtracts records
                self._groups.setdefault(column, {})[records.tobytes()] = records

    def _table(self, groups: Sequence[np.ndarray], columns: Iterable[str]) -> None:
        for column in columns:
            if column not in SITE:
                self._groups.setdefault(column, {})
                self.tables.setdefault(column, []).append([each.tolist() for each in groups])

    def model(
        self,
        table: Table,
        design: Design,
        x: np.ndarray,
        y: np.ndarray | None = None,
        columns: Iterable[str] = (),
    ) -> None:
        people, count = table.person_ids, len(np.unique(table.person_ids))
        if not count:
            return
        for finding in rules.parameters(x.shape[1], count, self.policy):
            self._ask(f"{x.shape[1]} parameters", finding)
        variables = dict(zip(design.names, x.T, strict=True)) | ({} if y is None else {"outcome": y})
        truths = {}
        for name, column in variables.items():
            values = np.unique(column)
            if len(values) == 2:
                truths[name] = column == values[1]
            elif len(values) > 2:
                self.sum(column, people, name, must=True)
        for name, expression in zip(design.names, design.expressions, strict=True):
            within = [evaluate(one, table) == 1 for one in comparisons(expression)]
            if within:
                truths[f"the groups of {name}"] = np.all(within, axis=0)
        self._pairs(truths, people, tuple(columns))

    def sum(self, x: np.ndarray, people: np.ndarray, name: str, must: bool = False) -> bool:
        persons, place = np.unique(people, return_inverse=True)
        parts = np.bincount(place, x, len(persons))
        findings = rules.dominance(parts, self.policy) if np.any(parts) else []
        if not must and self.hides() and not all(each.holds for each in findings):
            self.hidden += 1
            return False
        for finding in findings:
            self._ask(f"a sum of {name!r}", finding)
        return True

    def weights(self, w: np.ndarray, people: np.ndarray) -> None:
        persons, place = np.unique(people, return_inverse=True)
        parts = np.sort(np.bincount(place, np.where(np.isfinite(w), w, np.inf), len(persons)))[::-1]
        few = float(parts[: self.policy.minimum - 1].sum())
        if len(persons):
            limit = self.policy.top_share * float(parts.sum())
            self._ask(
                "weights by these coefficients",
                Finding("dominance of few", few, limit, bool(np.isfinite(few) and few <= limit)),
            )

    def cells(
        self,
        name: str,
        cell: np.ndarray,
        shape: tuple[int, ...],
        people: np.ndarray,
        columns: Iterable[str] = (),
    ) -> np.ndarray:
        totals = super().cells(name, cell, shape, people)
        columns, size = tuple(columns), int(np.prod(shape))
        if not size or not len(people):
            return totals
        each = [np.unique(people[cell == i]) for i in range(size)]
        counts = np.array([len(group) for group in each])
        if len(shape) == 1 and columns:
            for finding in rules.levels(counts[counts > 0], self.policy)[:1]:
                self._ask(name, finding)
        margins_of = crosstab_sums(shape)
        shown = protect(counts, margins_of, self.policy)
        margins = shown.primary[size:] | shown.secondary[size:]
        if self.policy.tables == "refuse" or margins.any():
            for group in each:
                self._ask(name, rules.each_enough("small cells", np.array([len(group)]), self.policy))
            self._ask(name, Finding("margins to hide", float(margins.sum()), 0, not margins.any()))
        hides = np.isnan(shown.values[:size])
        self.hidden += int(hides.sum())
        visible = [
            np.sort(people[(cell >= 0) & (margins_of[i, cell] > 0)])
            for i in np.flatnonzero(~np.isnan(shown.values))
        ]
        visible = [group for group in visible if len(group)]
        for group in visible:
            self.group(group, name)
        self._table(visible, columns)
        if self.policy.tables == "round":
            totals = (np.floor(totals / self.policy.base + 0.5) * self.policy.base).astype(np.int64)
        return np.where(hides, HIDDEN, totals)

    def hides(self) -> bool:
        """Whether parts about too few people are hidden if possible, instead of refusing the answer."""
        return self.policy.tables != "refuse"

    def _pairs(self, truths: dict[str, np.ndarray], people: np.ndarray, columns: tuple[str, ...]) -> None:
        """Checks the groups of these truth values [rows], and of every two, which products of two columns
        would disclose."""
        unlike = {mask.tobytes(): (name, mask) for name, mask in truths.items()}
        these = list(unlike.values())
        for i, (name, a) in enumerate(these):
            self.group(people[a], f"people of {name}", columns)
            self.group(people[~a], f"people not of {name}", columns)
            for other, b in these[:i]:
                for mask in (a & b, a & ~b, ~a & b, ~a & ~b):
                    if mask.any():  # an empty group follows from the others
                        self.group(people[mask], f"people by {name} and {other}", columns)

    def _ask(self, what: str, finding: Finding) -> None:
        rule = finding.rule
        before = self.findings.get(rule)
        if before is None or not finding.holds or _margin(finding) < _margin(before):
            self.findings[rule] = finding._replace(
                measured=float(finding.measured), limit=float(finding.limit), holds=bool(finding.holds)
            )
        if not finding.holds:
            raise TooFew(f"{what}: {finding.measured:g}, and the limit is {finding.limit:g}")


def _margin(finding: Finding) -> float:
    return abs(finding.measured - finding.limit)
