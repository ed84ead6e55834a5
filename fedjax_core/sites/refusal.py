"""`Refused`: the error for a message that is not accepted, with a code and a reason that are safe to send and
print.

Refusals travel and are kept. So their texts name settings, sizes and names, never values of anybody's data.

>>> listed(["charite", "mayo"]), shown("x" * 100)[-5:]
("'charite', 'mayo'", 'xx...')
>>> check_name("../etc", "the site")
Traceback (most recent call last):
ValueError: the site '../etc' is not a name: use 1 to 64 letters, digits, '-' and '_', beginning with a letter or digit
"""

import re
from collections.abc import Iterable
from typing import ClassVar

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""The names allowed for sites and everything else in messages: safe in file names, TOML keys and
terminals."""


class Refused(ValueError):
    """A message or file was not accepted. The text says why and what to do, and contains no values of
    anybody's data."""

    code: str = "refused"
    """The reason in one word, for audit entries and counts."""
    of_data: ClassVar[bool] = False
    """Whether the reason may depend on a site's data: the site then only says that it declined."""


def check_name(name: str, what: str) -> str:
    """`name` itself; raises ValueError if it is not an allowed name."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{what} {shown(name)} is not a name: use 1 to 64 letters, digits, '-' and '_', beginning with a letter or digit"
        )
    return name


def printable(text: str) -> str:
    """The text without unprintable characters."""
    return text if text.isprintable() else "".join(c for c in text if c.isprintable())


def shown(value: object) -> str:
    """A value that somebody else sent, safe to print: its repr, cut after 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(names: Iterable[object]) -> str:
    """The names as a list for a message: the first five, and how many more."""
    every = [shown(name) for name in names]
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")
