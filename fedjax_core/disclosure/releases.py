"""The desk that results pass before they leave a site: it applies the policy's rules, hides or declines, and
records the decision.

Each method takes data of the site, with a person for each row, and returns what may leave or raises
`Declined`. Either way one line of JSON is recorded: the request, every rule with its measurement and limit,
what was hidden, and a digest of what left. Each line has the digest of the line before it. The record stays
at the site. `Declined` names rules and no numbers.

>>> desk = Desk(OutputPolicy(minimum=3))
>>> desk.mean("age", np.array([40.0, 50.0, 60.0, 50.0]), ["a", "b", "c", "d"])
50.0
>>> desk.record[-1]["decision"], [each["rule"] for each in desk.record[-1]["findings"]]
('released', ['people', 'dominance NK', 'dominance p%', 'differencing'])
"""

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_core.disclosure import rules
from fedjax_core.disclosure.differencing import Guard
from fedjax_core.disclosure.policy import OutputPolicy
from fedjax_core.disclosure.rules import Finding
from fedjax_core.disclosure.tables import crosstab_sums, protect
from fedjax_core.files import make_folder, opener, write_whole

People = Sequence[Hashable] | np.ndarray


class Declined(Exception):
    """A result that may not leave; it says which rules it breaks, and no number of the data."""


class Table(NamedTuple):
    """Counts of people, NaN where hidden, with a margin at the end of each axis."""

    values: np.ndarray  # [levels + 1, ...]
    levels: tuple[list[Any], ...]


class Desk:
    """One policy, one memory of all releases, one record; `folder` keeps memory and record over restarts, for
    its owner alone.

    `key` is a secret of the site, by which the memory hashes people.
    """

    def __init__(self, policy: OutputPolicy, *, folder: str | Path | None = None, key: bytes = b"") -> None:
        self.policy = policy
        self.guard = Guard(policy.minimum, combinations=policy.combinations, key=key)
        """The guard of all releases but sums."""
        self.columns: dict[str, Guard] = {}
        """A guard of sums for each column that they describe: people are subtracted within one column's
        releases."""
        self._key = key
        self.record: list[dict[str, Any]] = []
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._read(self._folder)

    def under(self, policy: OutputPolicy) -> "Desk":
        """The same desk, which applies this policy from now on."""
        self.policy = policy
        for guard in (self.guard, *self.columns.values()):
            guard.minimum, guard.combinations = policy.minimum, policy.combinations
        return self

    def count(self, name: str, people: People) -> int:
        """The number of distinct people."""
        persons = _distinct(people)
        return self._decide(
            name, "count", [rules.enough("people", len(persons), self.policy)], [persons], len(persons)
        )

    def mean(self, name: str, values: np.ndarray, people: People) -> float:
        """The mean of the known values [n], if no person's part is too large; missing ones are NaN."""
        values, people = np.asarray(values, float), _array(people)
        known = np.isfinite(values)
        persons, place = np.unique(people[known], return_inverse=True)
        parts = np.bincount(place, values[known], len(persons))
        findings = [rules.enough("people", len(persons), self.policy), *rules.dominance(parts, self.policy)]
        return self._decide(
            name, "mean", findings, [persons], float(values[known].mean()) if known.any() else np.nan
        )

    def extremes(self, name: str, values: np.ndarray, people: People) -> tuple[float, float]:
        """The smallest and largest value as the policy allows: averages over the `minimum` people who have
        them."""
        if self.policy.extremes == "refuse":
            self._decide(name, "extremes", [Finding("extremes", 1, 0, False)], [], None)
        values, people = np.asarray(values, float), _array(people)
        known = np.isfinite(values)
        persons, place = np.unique(people[known], return_inverse=True)
        ends, sets, k = [], [], self.policy.minimum
        for sign in (1, -1):
            least = np.full(len(persons), np.inf)
            np.minimum.at(least, place, sign * values[known])
            first = np.argsort(least, kind="stable")[:k]
            ends.append(sign * float(least[first].mean()) if len(persons) else np.nan)
            sets.append(persons[first])
        findings = [rules.enough("people", len(persons), self.policy)]
        return self._decide(name, "extremes", findings, [persons, *sets], (ends[0], ends[1]))

    def table(
        self,
        name: str,
        columns: Sequence[np.ndarray],
        people: People,
        levels: Sequence[Sequence[Any]] | None = None,
    ) -> Table:
        """The number of people with each combination of the columns' levels, with margins: hidden or rounded
        as the policy says.

        `levels` are the public ones; without them, those that occur. Raises ValueError for a person in two
        cells."""
        people, arrays = _array(people), [np.asarray(column) for column in columns]
        named = (
            [list(each) for each in levels]
            if levels is not None
            else [np.unique(column).tolist() for column in arrays]
        )
        for column, known in zip(arrays, named, strict=True):
            if unknown := set(column.tolist()) - set(known):
                raise ValueError(
                    f"table {name!r} has levels that are not among those given: {sorted(map(str, unknown))[:5]}"
                )
        shape = tuple(len(each) for each in named)
        codes = [
            np.array([known.index(v) for v in col.tolist()], int)
            for col, known in zip(arrays, named, strict=True)
        ]
        cell = np.ravel_multi_index(codes, shape) if len(people) else np.zeros(0, int)
        persons, first = np.unique(people, return_index=True)
        if (cell != cell[first][np.searchsorted(persons, people)]).any():
            raise ValueError(f"table {name!r}: a person is in two cells: choose one record of each person")
        cell = cell[first]
        counts, sums = np.bincount(cell, minlength=int(np.prod(shape))), crosstab_sums(shape)
        findings = [
            rules.enough("people", len(persons), self.policy),
            *(Finding("levels", len(k), self.policy.levels, len(k) <= self.policy.levels) for k in named),
        ]
        protected = protect(counts, sums, self.policy)
        findings.append(
            Finding(
                "small cells",
                int(protected.primary.sum()),
                0,
                self.policy.tables != "refuse" or not protected.primary.any(),
            )
        )
        shown = ~np.isnan(protected.values)
        sets = [persons[sums[j, cell] > 0] for j in np.flatnonzero(shown)]
        hidden = {"primary": int(protected.primary.sum()), "secondary": int(protected.secondary.sum())}
        return self._decide(
            name, "table", findings, sets, Table(_laid_out(protected.values, shape), tuple(named)), hidden
        )

    def histogram(self, name: str, values: np.ndarray, edges: np.ndarray, people: People) -> Table:
        """People in each bin of public edges, as a table of one column; values outside are refused."""
        values, edges = np.asarray(values, float), np.asarray(edges, float)
        if not ((values >= edges[0]) & (values <= edges[-1])).all():
            raise ValueError(
                f"histogram {name!r}: values outside of the edges {edges[0]} to {edges[-1]}, or unknown: give wider ones"
            )
        where = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        counts = np.zeros(len(edges) - 1)
        counts[0] = len(_distinct(people))
        finding = rules.bins(counts, self.policy)
        if not finding.holds:
            self._decide(name, "histogram", [finding], [], None)
        return self.table(name, [where], people, [range(len(edges) - 1)])

    def survival(
        self, name: str, time: np.ndarray, event: np.ndarray, people: People, times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(times, survival) of Kaplan and Meier at public times, one record of each person.

        A time is shown where at least the minimum of people are still at risk, and as many had the event
        since the last time shown. Fewer events are part of the next step; after the last step the curve
        ends."""
        time, event, persons = np.asarray(time, float), np.asarray(event, bool), _array(people)
        if len(np.unique(persons)) < len(persons) or not np.isfinite(time).all():
            raise ValueError(
                f"survival {name!r} takes one record of each person, with a time: choose the first event of each"
            )
        when = np.unique(time[event])
        at_risk = (time[:, None] >= when).sum(axis=0)
        died = (time[event][:, None] == when).sum(axis=0)
        shown, levels, steps, last = [], [], [], -np.inf
        for end in np.sort(np.asarray(times, float)):
            step = event & (time > last) & (time <= end)
            if step.sum() >= self.policy.minimum and (time > end).sum() >= self.policy.minimum:
                shown.append(end)
                levels.append(float(np.prod(1 - died[when <= end] / at_risk[when <= end])))
                steps.append(persons[step])
                last = end
        findings = [
            rules.enough("people", len(persons), self.policy),
            Finding("steps", len(steps), 1, len(steps) >= 1),
        ]
        return self._decide(
            name, "survival", findings, [persons, *steps], (np.array(shown), np.array(levels))
        )

    def fit(
        self,
        name: str,
        coefficients: Any,
        people: People,
        *,
        parameters: int,
        columns: dict[str, np.ndarray] | None = None,
    ) -> Any:
        """A fit's coefficients, if it has few parameters and its columns with few values (outcome, factors)
        have no rare level.

        A column of text is a factor, and so is one of numbers with two values; give a factor that is coded by
        more numbers as text.
        """
        array = _array(people)
        persons, first = np.unique(array, return_index=True)
        findings = [
            rules.enough("people", len(persons), self.policy),
            *rules.parameters(parameters, len(persons), self.policy),
        ]
        for column, values in (columns or {}).items():
            values = np.asarray(values)
            if np.issubdtype(values.dtype, np.number) and len(np.unique(values)) > 2:
                continue
            counts = np.array([len(np.unique(array[values == level])) for level in np.unique(values)])
            findings += [
                each._replace(rule=f"{each.rule}: {column}") for each in rules.levels(counts, self.policy)
            ]
        return self._decide(name, "fit", findings, [array[first]], coefficients)

    def sums(
        self,
        name: str,
        findings: Sequence[Finding],
        sets: Mapping[str, Sequence[Sequence[Hashable]]],
        value: Any,
        tables: Mapping[str, Sequence[Sequence[Sequence[Hashable]]]] | None = None,
        evidence: Any = None,
    ) -> dict[str, Any]:
        """Checks a statistic's sums with these findings, and returns the line of the record where they may
        leave.

        `sets`: for each column the groups of people that the sums describe; `tables`: for each column the
        cells and margins of its tables, each safe by itself. All columns' guards must admit them, or none
        does.
        """
        checked, kept, broken = list(findings), {}, [each.rule for each in findings if not each.holds]
        for column, groups in {} if broken else sets.items():
            guard = self.columns.setdefault(
                column, Guard(self.policy.minimum, combinations=self.policy.combinations, key=self._key)
            )
            kept[column] = guard.released
            if not guard.admit(groups) or not all(
                guard.admit(table, joint=True) for table in (tables or {}).get(column, ())
            ):
                broken.append(f"differencing: {column}")
                checked.append(Finding(broken[-1], 1, 0, False))
                break
        if broken:
            for column, before in kept.items():
                self.columns[column].released = before
        else:
            checked.append(Finding("differencing", 0, 0, True))
        return self._recorded(
            name, "sums", checked, broken, value, {} if evidence is None else {"evidence": evidence}
        )

    def _decide(
        self,
        name: str,
        kind: str,
        findings: list[Finding],
        sets: Sequence[Any],
        value: Any,
        hidden: dict[str, int] | None = None,
    ) -> Any:
        if all(each.holds for each in findings):
            admitted = self.guard.admit(sets, joint=kind == "table")
            findings = [*findings, Finding("differencing", 0 if admitted else 1, 0, admitted)]
        broken = [each.rule for each in findings if not each.holds]
        self._recorded(name, kind, findings, broken, value, {"hidden": hidden or {}})
        return value

    def _recorded(
        self,
        name: str,
        kind: str,
        findings: Sequence[Finding],
        broken: Sequence[str],
        value: Any,
        more: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The line of the record; raises `Declined` where a rule is broken."""
        entry = {
            "name": name,
            "kind": kind,
            "decision": "declined" if broken else "released",
            "findings": [_plain(each) for each in findings],
            **more,
            "digest": None if broken else _digest(value),
            "before": _digest(self.record[-1]) if self.record else None,
        }
        self.record.append(entry)
        self._write(entry)
        if broken:
            raise Declined(f"declined: {name} ({', '.join(broken)})")
        return entry

    def _read(self, folder: Path) -> None:
        make_folder(folder)
        lines = (
            (folder / "releases.jsonl").read_text().splitlines()
            if (folder / "releases.jsonl").exists()
            else []
        )
        try:
            self.record = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{folder / 'releases.jsonl'} has a line that is not whole: {error}; restore it from a copy"
            ) from error
        for before, after in zip([None, *self.record], self.record, strict=False):
            if after["before"] != (None if before is None else _digest(before)):
                raise ValueError(
                    f"{folder / 'releases.jsonl'} was changed before the release {after['name']!r}: restore it from a copy"
                )
        if (folder / "people.json").exists():
            kept = json.loads((folder / "people.json").read_text())
            self.guard.restore(kept["all"])
            for column, saved in kept["columns"].items():
                self.columns[column] = Guard(
                    self.policy.minimum, combinations=self.policy.combinations, key=self._key
                )
                self.columns[column].restore(saved)
        self._kept = self._memory()

    def _memory(self) -> tuple[int, ...]:
        """The size of the memory, which only grows."""
        return (len(self.guard.released), *(len(guard.released) for guard in self.columns.values()))

    def _write(self, entry: dict[str, Any]) -> None:
        """Writes people first, so that the guard remembers every recorded release."""
        if self._folder is None:
            return
        if (memory := self._memory()) != self._kept:
            saved = {
                "all": self.guard.saved(),
                "columns": {column: guard.saved() for column, guard in self.columns.items()},
            }
            write_whole(self._folder / "people.json", json.dumps(saved))
            self._kept = memory
        with open(self._folder / "releases.jsonl", "a", opener=opener) as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _plain(finding: Finding) -> dict[str, Any]:
    """The finding as plain JSON values."""
    return {
        "rule": finding.rule,
        "measured": float(finding.measured),
        "limit": float(finding.limit),
        "holds": bool(finding.holds),
    }


def _laid_out(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sums in the order of `crosstab_sums` as one array [levels + 1, ...], margins last."""
    out = np.full([n + 1 for n in shape], np.nan)
    start = 0
    for summed in sorted(range(2 ** len(shape)), key=lambda bits: (bits.bit_count(), bits)):
        place = tuple(-1 if summed >> axis & 1 else slice(0, n) for axis, n in enumerate(shape))
        size = int(np.prod([n for axis, n in enumerate(shape) if not summed >> axis & 1]))
        out[place] = values[start : start + size].reshape(out[place].shape)
        start += size
    return out


def _array(people: People) -> np.ndarray:
    array = np.asarray(people)
    if array.ndim != 1:
        raise ValueError(f"people are one identifier for each row, got an array of shape {array.shape}")
    return array


def _distinct(people: People) -> np.ndarray:
    return np.unique(_array(people))


def _digest(value: Any) -> str:
    text = json.dumps(
        value, sort_keys=True, default=lambda each: each.tolist() if hasattr(each, "tolist") else repr(each)
    )
    return hashlib.sha256(text.encode()).hexdigest()
