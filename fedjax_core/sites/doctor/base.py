"""What a check of the doctor is: a function of the site's file and `Settings` that says what it found.

It raises `Unfit` with what to do, or `Skipped` with why it was not made.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedjax_core.sites.doctor.expected import Expected


class Unfit(ValueError):
    """What a check found wrong, with the way out."""


class Skipped(Exception):
    """Why a check was not made."""


@dataclass(frozen=True)
class Settings:
    """What is asked of a site, and against what."""

    expected: Expected = field(default_factory=Expected)
    address: str | None = None
    """host:port of the coordinator's Ray."""
    now: float | None = None
    """Seconds since 1970 by a clock that is right."""
    offset_seconds: float = 60.0
    """So far the site's clock may be off."""
    free_gb: float = 2.0
    memory_gb: float = 1.0
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
