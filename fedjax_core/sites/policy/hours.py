"""`Hours`: the windows of the week in which a site works for the federation, in its own time zone.

>>> from datetime import UTC
>>> hours = Hours("Europe/Berlin", ("Mon-Fri 19:00-06:00", "Sat,Sun 00:00-24:00"))
>>> hours.open(datetime(2026, 1, 5, 12, tzinfo=UTC)), hours.open(datetime(2026, 1, 6, 4, tzinfo=UTC))
(False, True)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from fedjax_core.sites.refusal import shown

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_WINDOW = re.compile(r"(?:([A-Za-z,-]+) )?([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")
_DAY, _WEEK = 24 * 60, 7 * 24 * 60  # minutes


@dataclass(frozen=True)
class Hours:
    """The hours in which the site works for the federation; without windows, always."""

    zone: str = "UTC"
    windows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            ZoneInfo(self.zone)
        except (OSError, ValueError):  # a missing zone is a KeyError (below)
            raise ValueError(
                f"zone {self.zone!r} is not a time zone: use a name such as 'Europe/Berlin'"
            ) from None
        except KeyError:
            raise ValueError(
                f"zone {self.zone!r} is not known here: use a name such as 'Europe/Berlin', or install the tzdata package"
            ) from None
        for window in self.windows:
            list(_spans(window))

    def open(self, now: datetime) -> bool:
        """Whether a window is open."""
        if not self.windows:
            return True
        local = now.astimezone(ZoneInfo(self.zone))
        minute = local.weekday() * _DAY + local.hour * 60 + local.minute
        return any(
            (minute - start) % _WEEK < length for window in self.windows for start, length in _spans(window)
        )


def _spans(window: str) -> Iterator[tuple[int, int]]:
    """(first minute of the week, minutes) of a window for each day on which it begins."""
    match = _WINDOW.fullmatch(window)
    if not match:
        raise ValueError(
            f"window {shown(window)} should read like 'Mon-Fri 19:00-06:00', 'Sat,Sun 00:00-24:00' or '19:00-06:00'"
        )
    days, hour, minute, until_hour, until_minute = match.groups()
    start = int(hour) * 60 + int(minute)
    end = _DAY if until_hour is None else int(until_hour) * 60 + int(until_minute)
    for part in (days or "Mon-Sun").split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError(f"window {shown(window)} names a day other than {', '.join(_DAYS)}")
        begin = _DAYS.index(first)
        for day in range(begin, begin + (_DAYS.index(last or first) - begin) % 7 + 1):
            yield day % 7 * _DAY + start, (end - start - 1) % _DAY + 1
