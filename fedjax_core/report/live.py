"""A view of a run as it goes on, for a terminal, from its folder alone: rounds and time left, metrics, sites,
refusals, privacy spent.

>>> pace = Pace(rounds=30)
>>> pace.look(round=10, now=0.0)
>>> pace.look(round=12, now=8.0)
>>> pace.seconds_left
72.0
"""

import math
from collections import deque
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from fedjax_core.report.facts import Facts

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH, _LOOKS = 40, 30


class Pace:
    """The pace of a run's rounds, by looks at its folder.

    `rounds`: the number of rounds of the run, where it is known; a run's plan gives it, too (`planned`).
    """

    def __init__(self, rounds: int | None = None) -> None:
        if rounds is not None and rounds < 1:
            raise ValueError(
                f"rounds={rounds} must be at least 1: how many the run is to have; leave it out where you do not know"
            )
        self.rounds = self._given = rounds
        self._looks: deque[tuple[int, float]] = deque(maxlen=_LOOKS)

    def planned(self, rounds: int | None) -> None:
        """Takes the number of rounds from the run's plan, unless it was given."""
        self.rounds = self._given or rounds

    def look(self, round: int, now: float) -> None:
        """Records the rounds that are done at this second. A run that began again is measured anew."""
        if self._looks and round < self._looks[-1][0]:
            self._looks.clear()
        if not self._looks or round > self._looks[-1][0]:
            self._looks.append((round, now))

    @property
    def seconds_a_round(self) -> float:
        """Seconds a round over the last looks; NaN before a round has passed."""
        if len(self._looks) < 2:
            return math.nan
        (first, then), (last, now) = self._looks[0], self._looks[-1]
        return (now - then) / (last - first)

    @property
    def seconds_left(self) -> float:
        """Seconds until the last round is done; NaN where that is not known."""
        return (
            math.nan
            if self.rounds is None or not self._looks
            else (self.rounds - self._looks[-1][0]) * self.seconds_a_round
        )

    @property
    def done(self) -> bool:
        """Whether all rounds of the run are done."""
        return self.rounds is not None and bool(self._looks) and self._looks[-1][0] >= self.rounds


def view(facts: Facts, pace: Pace) -> RenderableType:
    """The view of the run that a terminal shows."""
    parts = [_rounds(facts, pace), _metrics(facts), _sites(facts), _faults(facts), _privacy(facts)]
    return Group(
        f"[bold]{escape(str(facts.notes.get('question') or facts.folder))}",
        *(part for part in parts if part is not None),
    )


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """The last values as blocks from the lowest to the highest; a dot for one that is not finite.

    >>> sparkline([1.0, 0.5, float("nan"), 0.0])
    '█▅·▁'
    """
    shown = values[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    low, reach = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)

    def block(value: float) -> str:
        return _BLOCKS[round((value - low) / reach * (len(_BLOCKS) - 1)) if reach else 0]

    return "".join(block(value) if math.isfinite(value) else "·" for value in shown)


def _rounds(facts: Facts, pace: Pace) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    a_round, left = pace.seconds_a_round, pace.seconds_left
    texts = [f"round {facts.rounds}" + (f" of {pace.rounds}" if pace.rounds else "")]
    texts += [f"{a_round:.3g} s a round"] if math.isfinite(a_round) else []
    texts += [f"{timedelta(seconds=round(max(left, 0.0)))} left"] if math.isfinite(left) else []
    texts += [facts.plan.stopped] if facts.plan.stopped else []
    bar = [ProgressBar(total=pace.rounds, completed=facts.rounds, width=_WIDTH)] if pace.rounds else []
    grid.add_row(*bar, *texts)
    return grid


def _metrics(facts: Facts) -> RenderableType | None:
    table = Table("metric", "of", "", "last", box=None, title="metrics", title_justify="left")
    for kind in ("train", "eval"):
        records = [record for record in facts.records if record["kind"] == kind]
        names = dict.fromkeys(
            name for record in records for name, value in record.items() if isinstance(value, float)
        )
        for name in list(names)[:8]:
            values = [float(record.get(name, math.nan)) for record in records]
            table.add_row(
                escape(name),
                {"train": "training", "eval": "evaluation"}[kind],
                sparkline(values),
                f"{values[-1]:.4g}",
            )
    return table if table.row_count else None


def _sites(facts: Facts) -> RenderableType | None:
    lacked = [name for record in facts.records for name in str(record.get("lacked") or "").split()]
    table = Table(
        "site",
        "examples",
        "messages",
        "bytes sent",
        "rounds without it",
        box=None,
        title="sites",
        title_justify="left",
    )
    for site in dict.fromkeys(
        [*facts.examples, *facts.notes.get("flow", {}), *(site for site, _ in facts.left), *lacked]
    ):
        sent = [value for (sender, _), value in facts.left.items() if sender == site]
        messages, size = (sum(of) for of in zip(*sent, strict=True)) if sent else (0, 0)
        examples = f"{facts.examples[site]:,}" if site in facts.examples else "-"
        table.add_row(escape(site), examples, f"{messages:,}", f"{size:,}", str(lacked.count(site)))
    return table if table.row_count else None


def _faults(facts: Facts) -> RenderableType | None:
    table = Table(
        "who", "what", "why", "times", box=None, title="refused, missing and set aside", title_justify="left"
    )
    for (name, what, why), times in list(facts.faults.items())[-10:]:
        table.add_row(escape(name), escape(what), escape(why), str(times))
    return table if table.row_count else None


def _privacy(facts: Facts) -> RenderableType | None:
    spent = ", ".join(
        f"{name} {facts.spent[name]:.4g}"
        for name in ("epsilon", "delta")
        if isinstance(facts.spent.get(name), float)
    )
    return f"privacy spent: {spent}" if spent else None
