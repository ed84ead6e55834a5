"""`Refused`: why a message is not accepted, as a code and a reason that may travel, and values as a reason
may show them.

The texts of refusals travel and are kept, so they name settings, sizes and names, and never a value of
somebody's data.

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
"""What a site, and all else that is named in these messages, may be called: it goes into file names, TOML
keys and terminals."""


class Refused(ValueError):
    """Something that came in was not accepted. The text says why and what to do, and holds no values of
    anybody's data."""

    code: str = "refused"
    """The reason in one word, for audit entries and counts."""
    of_data: ClassVar[bool] = False
    """Whether the reason may have to do with a site's data: a site then says no more than that it
    declined."""


def check_name(name: str, what: str) -> str:
    """`name` itself; raises where it could not be a name of ours."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{what} {shown(name)} is not a name: use 1 to 64 letters, digits, '-' and '_', beginning with a letter or digit"
        )
    return name


def printable(text: str) -> str:
    """The text without what cannot be printed."""
    return text if text.isprintable() else "".join(c for c in text if c.isprintable())


def shown(value: object) -> str:
    """A value that somebody else sent, safe to print: its repr, cut after 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(names: Iterable[object]) -> str:
    """Names for a message, the first five of them."""
    every = [shown(name) for name in names]
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")
