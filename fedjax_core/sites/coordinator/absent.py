"""Logs which sites a round goes on without, and why: once when that changes, not in every round.

>>> absent = Absent(["charite", "mayo", "oslo"])
>>> absent.tell("round 1", [0, 1, 2], [0, 2], {1: "no reply in 12 s"})
{'mayo': 'no reply in 12 s'}
>>> with_reasons({"mayo": "no reply in 12 s", "oslo": "declined"})
'mayo: no reply in 12 s; oslo: declined'
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence

from fedjax_core.sites.refusal import printable

log = logging.getLogger("fedjax_core")

ENOUGH = "not waited for, as there were enough reports"
"""The reason for a site that the rules leave out, through no fault of its own."""

_NUMBER = re.compile(r"\d[\d.]*")
_LETTERS = 1500
_ROUNDS = 1000


def without_numbers(text: str) -> str:
    """The text with `#` for each number, so that reasons that differ only in numbers compare equal."""
    return _NUMBER.sub("#", text)


class Absent:
    """Logs which sites a round goes on without, and which are back."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        # position -> the reason last logged for that absent site, without its numbers
        self._reported: dict[int, str] = {}

    def tell(
        self, what: str, expected: Iterable[int], here: Collection[int], reasons: Mapping[int, str]
    ) -> dict[str, str]:
        """{name: reason} of the `expected` sites that are not here; logs changes. `what` goes on without
        them."""
        lacked = {
            position: reasons.get(position, "no reply") for position in expected if position not in here
        }
        self._say(what, {position: why for position, why in lacked.items() if why != ENOUGH}, here)
        return {self._names[position]: why for position, why in lacked.items()}

    def _say(self, what: str, lacked: Mapping[int, str], here: Collection[int]) -> None:
        now = {position: without_numbers(why) for position, why in lacked.items()}
        if news := {
            self._names[position]: lacked[position]
            for position, why in now.items()
            if self._reported.get(position) != why
        }:
            log.warning("%s goes on without %d of its sites. %s", what, len(news), with_reasons(news))
        if back := [position for position in self._reported if position in here]:
            log.warning(
                "%s: back again are %s",
                what,
                ", ".join(self._names[position] for position in back)[:_LETTERS],
            )
        self._reported = {
            position: why for position, why in self._reported.items() if position not in here
        } | now


class LackedRounds:
    """The missing sites of each of the last thousand rounds, with reasons."""

    def __init__(self) -> None:
        self._rounds: OrderedDict[int, dict[str, str]] = OrderedDict()

    def tell(self, number: int, lacked: Mapping[str, str]) -> None:
        """Notes {name: reason} of the sites missing in a round."""
        self._rounds.pop(number, None)
        if lacked:
            self._rounds[number] = dict(lacked)
        while len(self._rounds) > _ROUNDS:
            self._rounds.popitem(last=False)

    def of(self, number: int) -> dict[str, str]:
        """{name: reason} of the sites missing in a round."""
        return dict(self._rounds.get(number, {}))


def with_reasons(reasons: Mapping[str, str]) -> str:
    """The names with their reasons, as one line that is safe to print."""
    return printable("; ".join(f"{name}: {why}" for name, why in reasons.items()))[:_LETTERS]
