"""Examines a site before it joins, to find what would otherwise show in its first round, or never.

    examine(site.toml)  ─►  findings, each fine, not fine with what to do about it, or not looked at and why

The site is compared with `expected.toml` beside its file (expected.py), which the coordinator sends with the
study; the checks are in checks.py. One thing is not checked: whether the run will limit the time to train, so
that the policy has to let `steps_done` and `examples_seen` leave. The coordinator may set that rule for any
round.
"""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fedjax_core.sites.doctor.checks import CHECKS, Settings, Skipped
from fedjax_core.sites.doctor.expected import Expected
from fedjax_core.sites.own_file import VARIABLE
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.transport import ray_security

__all__ = ["Finding", "Settings", "beside", "examine"]


class Finding(NamedTuple):
    """The result of one check."""

    what: str
    fine: bool | None
    """None: not checked."""
    message: str
    """What was found, and, if not fine, what to do."""


def examine(
    path: str | Path, settings: Settings | None = None, *, only: Collection[str] = tuple(CHECKS)
) -> list[Finding]:
    """Runs all checks, or those named in `only`, on the site in this file; raises nothing, whatever is wrong.

    Without settings, it uses `expected.toml` and the `ray` folder beside the file if they exist."""
    try:
        settings = beside(Path(path)) if settings is None else settings
        site_file = SiteFile.read(path)
    except (OSError, ValueError) as error:
        return [Finding("file", False, str(error))]
    findings = [Finding("file", True, f"{path} describes {site_file.name}")]
    for what, check in ((what, check) for what, check in CHECKS.items() if what in only):
        try:
            findings.append(Finding(what, True, check(site_file, settings)))
        except Skipped as why:
            findings.append(Finding(what, None, str(why)))
        except Exception as error:
            reason = (
                str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
            )
            findings.append(Finding(what, False, reason))
    return findings


def beside(path: Path, settings: Settings | None = None) -> Settings:
    """The settings completed from beside a site's file: `expected.toml`, and the `ray` folder of `fedjax-core
    certificates make`, with the variables in `ray/environment`."""
    settings = Settings() if settings is None else settings
    if (expected := path.parent / "expected.toml").exists():
        settings = replace(settings, expected=Expected.read(expected))
    if (path.parent / "ray").is_dir():
        variables = ray_security.environment(path.parent / "ray")
        if (written := path.parent / "ray" / "environment").exists():
            lines = dict(
                line.strip().split("=", 1) for line in written.read_text().splitlines() if "=" in line
            )
            variables |= {name: value for name, value in lines.items() if name == VARIABLE}
        settings = replace(settings, environment={**os.environ, **variables})
    return settings
