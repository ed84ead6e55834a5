"""Features of each person from their events over time (MEDS: subject_id, time, code, numeric_value), in
declared windows.

    source = "meds"                     a folder of Parquet files (its data/, if it has one), or one file
    [events]
    index = "ICU_ADMISSION*"            this event is time 0 of a row: each person's first, or each one with
                                        every = true
    [events.features.lactate]
    codes = ["LAB//32693-4*"]           * stands for anything
    hours = [0, 24]                     after the index; the first is in the window, the last is not
    take = "max"                        of numbers: mean, min, max, sum, first, last; of events: count, any;
                                        code: the last one's
    [events.features.sex]
    codes = ["GENDER//*"]
    static = true                       events without a time
    take = "code"

The columns are `person`, `time` (of the index) and the features. Without an index there is one row a person,
of all their events. A feature with no event in its window is missing; `count` and `any` are 0. An event
without person or code, or with a time or number that cannot be read, is left out and counted.
https://github.com/Medical-Event-Data-Standard/meds

>>> table = {"subject_id": [7, 7, 7], "time": ["2020-01-01", "2020-01-01T03:00", "2020-01-03"], "code": ["IN", "LAB", "LAB"],
...          "numeric_value": [None, 2.0, 9.0]}
>>> found = features(Raw(table), Events(index="IN", features={"lab": Feature(("LAB",), take="mean", hours=(0, 24))}))
>>> found.columns["person"], found.columns["lab"]
(['7'], [2.0])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core.data import tables
from fedjax_core.intake.raw import LeftOut, Raw

_COLUMNS = ("subject_id", "time", "code", "numeric_value")
_OF_NUMBERS = ("mean", "min", "max", "sum", "first", "last")
_TAKES = (*_OF_NUMBERS, "count", "any", "code")
_HOUR = np.timedelta64(3_600_000_000, "us")


@dataclass(frozen=True)
class Feature:
    """The events of a feature, and how they become one value."""

    codes: tuple[str, ...]
    take: str = "last"
    hours: tuple[float, ...] = ()
    """(from, to) after the index; the first is in the window, the last is not."""
    static: bool = False

    def __post_init__(self) -> None:
        if self.take not in _TAKES:
            raise ValueError(f"take is {self.take!r}; it should be one of {', '.join(_TAKES)}")
        if (
            not isinstance(self.codes, tuple)
            or not self.codes
            or not all(isinstance(one, str) for one in self.codes)
        ):
            raise ValueError(f"codes = [...] are the texts of the events, got {self.codes!r}")
        if self.hours and not (len(self.hours) == 2 and self.hours[0] < self.hours[1]):
            raise ValueError(f"hours is [from, to] with from before to, got {list(self.hours)}")
        if self.hours and self.static:
            raise ValueError("static = true is of events without a time, so there are no hours")


@dataclass(frozen=True)
class Events:
    """How events become rows: the index event, and the features."""

    features: Mapping[str, Feature] = field(default_factory=dict)
    index: str = ""
    every: bool = False

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("it has no features: write [events.features.NAME] with codes and take")
        for name, one in self.features.items():
            if name in ("person", "time"):
                raise ValueError(
                    f"features.{name}: the name is taken, for whose a row is and when its index was"
                )
            if self.index and not one.hours and not one.static:
                raise ValueError(
                    f"features.{name} says no window: write hours = [from, to] after the index, or static = true"
                )
            if not self.index and one.hours:
                raise ValueError(
                    f"features.{name} has hours, and there is no index = 'code' that they are after"
                )


def read(source: Path) -> Raw:
    """The events in a Parquet file, or in all of a folder; raises ValueError for a file without events."""
    folder = source / "data" if (source / "data").is_dir() else source
    files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else [source]
    if not files:
        raise ValueError(
            f"{folder} has no Parquet file: [events] reads a MEDS data set, or one file of its events"
        )
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for file in files:
        try:
            part = tables.raw(file, _COLUMNS)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
        for name in _COLUMNS:
            columns[name] += part[name]
    return Raw(columns, folder)


def features(raw: Raw, events: Events) -> Raw:
    """Makes a table of events into a row for each person, or for each index event."""
    if lacking := [name for name in _COLUMNS if name not in raw.columns]:
        raise ValueError(
            f"events have the columns {', '.join(_COLUMNS)}, and {lacking[0]!r} is not there, but {', '.join(raw.columns)}"
        )
    left = LeftOut(raw.left_out.copy(), list(raw.where))
    person, time, code, value = _usable(raw, left)
    names, whose = np.unique(person, return_inverse=True)
    # NaT, of static events, is the last of each person
    order = np.lexsort((np.arange(len(time)), time, whose))
    whose, time, code, value = whose[order], time[order], code[order], value[order]
    kinds, kind = np.unique(code, return_inverse=True)
    row_of, start, without = _rows(events, whose, time, _named((events.index,), kinds)[kind], len(names))
    columns: dict[str, Any] = {
        "person": names[row_of].tolist(),
        "time": [str(one) for one in start.astype("datetime64[s]")],
    }
    if not events.index:
        del columns["time"]
    begin = np.searchsorted(whose, np.arange(len(names)), side="left")
    length = np.bincount(whose, minlength=len(names))
    # a pair for each row and each event of its person
    pair = np.repeat(np.arange(len(row_of)), length[row_of])
    event = (
        np.arange(len(pair))
        - np.repeat(np.cumsum(length[row_of]) - length[row_of], length[row_of])
        + begin[row_of][pair]
    )
    for name, one in events.features.items():
        here = _named(one.codes, kinds)[kind][event]
        if one.static:
            here &= np.isnat(time[event])
        elif one.hours:
            after = (time[event] - start[pair]) / _HOUR
            here &= (after >= one.hours[0]) & (after < one.hours[1])
        if one.take in _OF_NUMBERS:
            here &= np.isfinite(value[event])
        columns[name] = _taken(one.take, pair[here], event[here], value, code, len(row_of))
    notes: tuple[str, ...] = (f"{len(row_of)} rows of {len(code)} events",)
    if events.index:
        notes += (f"{without} of {len(names)} people have no event {events.index!r}, and no row",)
    return Raw(
        columns, raw.folder, max(raw.records, raw.rows), left.reasons, tuple(left.where), (*raw.notes, *notes)
    )


def _usable(raw: Raw, left: LeftOut) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(person, time, code, number) of the events that can be used."""
    person = np.array([_text(one) for one in raw.columns["subject_id"]], dtype=str)
    code = np.array([_text(one) for one in raw.columns["code"]], dtype=str)
    time, no_time = _times(raw.columns["time"])
    value, no_number = _numbers(raw.columns["numeric_value"])
    fine = np.ones(len(code), bool)
    for bad, reason in (
        (person == "", "an event of no person"), (code == "", "an event without a code"),
        (no_time, "an event whose time cannot be read"), (no_number, "an event whose value is no number"),
    ):  # fmt: skip
        for i in np.flatnonzero(bad & fine):
            left.add(reason, f"event {i}")
        fine &= ~bad
    return person[fine], time[fine], code[fine], value[fine]


def _rows(
    events: Events, whose: np.ndarray, time: np.ndarray, index: np.ndarray, people: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """(the person of each row [rows], its index time [rows], people without a row)."""
    if not events.index:
        return np.arange(people), np.full(people, np.datetime64("NaT", "us")), 0
    positions = np.flatnonzero(index & ~np.isnat(time))
    if not events.every:
        positions = positions[np.unique(whose[positions], return_index=True)[1]]
    return whose[positions], time[positions], people - len(np.unique(whose[positions]))


def _named(patterns: Sequence[str], kinds: np.ndarray) -> np.ndarray:
    """[kinds] bool: the codes that match a pattern, in which brackets and question marks stand for
    themselves."""
    plain = [one.replace("[", "[[]").replace("?", "[?]") for one in patterns]
    return np.array([any(fnmatchcase(kind, one) for one in plain) for kind in kinds.tolist()], bool)


def _taken(
    take: str, row: np.ndarray, event: np.ndarray, value: np.ndarray, code: np.ndarray, rows: int
) -> list[Any]:
    """[rows] the feature's value from the events of each row, which are in the order of time."""
    count = np.bincount(row, minlength=rows)
    if take in ("count", "any"):
        return (np.minimum(count, 1) if take == "any" else count).tolist()
    first, last = np.full(rows, -1), np.full(rows, -1)
    # where several fall on one place, the last that is written stays
    first[row[::-1]], last[row] = (
        event[::-1],
        event,
    )
    if take == "code":
        return [str(code[one]) if one >= 0 else None for one in last]
    x = value[event]
    if take in ("first", "last"):
        result = value[first if take == "first" else last] if len(value) else np.zeros(rows)
    elif take in ("min", "max"):
        result = np.full(rows, np.inf if take == "min" else -np.inf)
        (np.minimum if take == "min" else np.maximum).at(result, row, x)
    else:
        result = np.bincount(row, x, minlength=rows) / (np.maximum(count, 1) if take == "mean" else 1)
    return [one if there else None for one, there in zip(result.tolist(), count, strict=True)]


def _times(column: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(times [rows] in UTC, NaT where there is none; [rows] bool: times that cannot be read)."""
    times, wrong = np.full(len(column), np.datetime64("NaT", "us")), np.zeros(len(column), bool)
    for i, one in enumerate(column):
        if _text(one) in tables.MISSING:
            continue
        try:
            times[i] = _moment(one)
        except ValueError:
            wrong[i] = True
    return times, wrong


def _moment(value: Any) -> np.datetime64:
    from datetime import UTC, datetime

    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(time, datetime):
        time = datetime.fromisoformat(str(time))
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time, "us")


def _numbers(column: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    numbers, wrong = np.full(len(column), np.nan), np.zeros(len(column), bool)
    for i, one in enumerate(column):
        if _text(one) in tables.MISSING:
            continue
        try:
            numbers[i] = float(one)
        except (TypeError, ValueError):
            wrong[i] = True
    return numbers, wrong | np.isinf(numbers)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
