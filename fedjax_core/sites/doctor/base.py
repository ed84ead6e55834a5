"""The interface of the doctor's checks: functions of a site's file and `Settings` that return a finding.

A check raises `Unfit` with what to do, or `Skipped` with why it was not made.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedjax_core.sites.doctor.expected import Expected


class Unfit(ValueError):
    """A check found something wrong; the text has the way out."""


class Skipped(Exception):
    """A check was not made; the text says why."""


@dataclass(frozen=True)
class Settings:
    """The settings of the checks: what a site is compared with, and limits."""

    expected: Expected = field(default_factory=Expected)
    address: str | None = None
    """host:port of the coordinator's Ray."""
    now: float | None = None
    """The right time, in seconds since 1970."""
    offset_seconds: float = 60.0
    """How far the site's clock may be off."""
    free_gb: float = 2.0
    memory_gb: float = 1.0
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
