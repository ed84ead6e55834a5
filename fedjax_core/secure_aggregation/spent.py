"""A site's record of the rounds that it took part in, so that none is opened as two sums; on its disk before
a share leaves it.

    ["begun", run, round, exchange, attempt]        opened.jsonl, one a line
    ["opened", run, round, exchange, digest]        digest of who is in the sum, and of the site's own vector

An attempt is begun once. A round that was opened is opened again, in another attempt, only for the very same
sum: the same sites, and the same vector of this one. So a coordinator that falls back to a checkpoint can
repeat its rounds, which reveals nothing new; and no two sums of a round differ by the report of a single
site.

>>> spent, first = Spent(), Round("heart", 3, attempt=1)
>>> spent.begin(first), spent.open(first, b"of a, b and c")
(None, None)
>>> again = Round("heart", 3, attempt=2)
>>> spent.begin(again), spent.check(again, b"of a, b and c")
(None, None)
>>> spent.check(again, b"of a and b")
Traceback (most recent call last):
fedjax_core.secure_aggregation.messages.Refusal: round 3 of 'heart' was opened before, as another sum...
"""

import json
import os
from pathlib import Path
from typing import Any

from fedjax_core.files import make_folder, opener
from fedjax_core.secure_aggregation.messages import Refusal, Round


class Spent:
    """The attempts that one site has begun and the sums that it has opened, in all runs: in the file at
    `path`, or in memory. A site keeps it as long as its runs last."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises ValueError where the file is damaged."""
        self._path = path
        self._begun: dict[tuple[str, int, int], int] = {}  # the last attempt
        self._opened: dict[tuple[str, int, int], str] = {}
        if path is not None and path.exists():
            self._read(path)

    def begin(self, round: Round) -> None:
        """Raises where this attempt, or a later one of the round, was begun before: a site takes part in an
        attempt once."""
        if round.attempt <= self._begun.get(_place(round), -1):
            raise Refusal(
                "replayed",
                f"{round} was begun already: a site takes part in an attempt once; begin another attempt",
            )
        self._keep("begun", round, round.attempt, wait=False)

    def check(self, round: Round, digest: bytes) -> None:
        """Raises where the round was opened before, as another sum than the one of this digest."""
        if self._opened.get(_place(round), digest.hex()) != digest.hex():
            raise Refusal(
                "replayed",
                f"round {round.round} of {round.run!r} was opened before, as another sum: two sums of one round over other sites would "
                "differ by single reports. Ask the very same sites as then, from the same model; or go on with the next round",
            )

    def open(self, round: Round, digest: bytes) -> None:
        """Records that the sum of this digest may be read from now on; it is on the disk when this
        returns."""
        self.check(round, digest)
        if _place(round) not in self._opened:
            self._keep("opened", round, digest.hex(), wait=True)

    def _keep(self, what: str, round: Round, value: int | str, wait: bool) -> None:
        line = [what, *_place(round), value]
        if self._path is not None:
            make_folder(self._path.parent)
            with open(self._path, "ab", opener=opener) as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                if wait:
                    os.fsync(file.fileno())
        self._apply(line)

    def _apply(self, line: list[Any]) -> None:
        what, run, number, exchange, value = line
        place = (str(run), int(number), int(exchange))
        if what == "begun":
            self._begun[place] = int(value)
        elif what == "opened":
            self._opened[place] = bytes.fromhex(value).hex()
        else:
            raise ValueError(what)

    def _read(self, path: Path) -> None:
        *lines, torn = path.read_bytes().split(b"\n")
        try:
            for line in lines:
                self._apply(json.loads(line))
        except (ValueError, TypeError):
            raise ValueError(
                f"{path}, which has the rounds of secure aggregation that this site opened, is damaged: restore it from its backup, or "
                "begin another run and remove it; without it a round could be opened twice, as two sums"
            ) from None
        if torn:  # a line cut short by a crash, before anything left the site
            os.truncate(path, path.stat().st_size - len(torn))


def _place(round: Round) -> tuple[str, int, int]:
    return round.run, round.round, round.exchange
