"""Finds a site's own file on the site's own machine, though the coordinator starts the site's process.

    FEDJAX_CORE_SITE=/srv/federation/site.toml      for whatever starts the process; several: separated as in PATH

`fedjax-core node site.toml` sets it; with `ray start` it is set by hand.
A coordinator names the site and nothing else. It sends a digest of each setting in its own copy of the file.
If one differs from the site's own setting, the site names the setting, records that in its audit log, and
does not start.

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> path, copy = Path(folder.name) / "site.toml", Path(folder.name) / "copy.toml"
>>> settings = {"name": "charite", "data": "heart", "study": "heart:study", "coordinator": "coordinator.pub", "policy": "policy.toml"}
>>> _ = path.write_text("".join(f'{name} = "{value}"\\n' for name, value in settings.items()))
>>> _ = copy.write_text('name = "charite"\\npolicy = "another.toml"\\nresources = { charite = 1.0 }')
>>> own = find("charite", {VARIABLE: str(path)})
>>> check(own, SiteFile.read(copy).digests)
Traceback (most recent call last):
fedjax_core.sites.own_file.NotOwn: the coordinator's copy of charite's file has another 'policy' than the site's own, which counts...
>>> folder.cleanup()
"""

import os
from collections.abc import Mapping
from pathlib import Path

from fedjax_core.sites.refusal import Refused, listed
from fedjax_core.sites.site_file import PLACE, SiteFile

VARIABLE = "FEDJAX_CORE_SITE"
"""The environment variable that lists the files of the sites on a machine."""


class NotOwn(Refused):
    """A site cannot start from its own file, or was to start from another; the text has no settings'
    values."""

    code = "not-own"


def find(name: str, environment: Mapping[str, str] = os.environ) -> SiteFile:
    """The file of the site of this name, among those that the variable lists; raises `NotOwn` without one."""
    value = environment.get(VARIABLE, "")
    if not value:
        raise NotOwn(
            f"{VARIABLE} is not set on the machine where {name} was to start, so its own file is not known: start Ray there "
            "with `fedjax-core node site.toml`, which sets it to the path of that file, or set it for `ray start`"
        )
    wrong, files = "", []
    for path in paths(value):
        try:
            files.append(SiteFile.read(path))
        except (OSError, ValueError) as error:
            wrong = f", and one cannot be read ({type(error).__name__}): `fedjax-core doctor` says why"
    matches = [one for one in files if one.name == name]
    if len(matches) != 1:
        raise NotOwn(
            f"{VARIABLE} on the machine where {name} was to start names {len(matches) or 'no'} files of a site of this "
            f"name{wrong}. Correct "
            "it there, or correct resources = {...} in the coordinator's copy where the machine is another site's"
        )
    return matches[0]


def paths(value: str) -> list[Path]:
    """The files that a value of the variable lists: one path with whatever characters, or several paths."""
    whole = Path(value).expanduser()
    return (
        [whole] if whole.is_file() else [Path(path).expanduser() for path in value.split(os.pathsep) if path]
    )


def check(own: SiteFile, copy: Mapping[str, str]) -> None:
    """Raises `NotOwn` if the site's own file lacks a setting, or the coordinator's copy differs from it.

    `copy`: the digest of each setting in the copy (`SiteFile.digests`). The coordinator may choose where Ray
    places the site, unless the site's own file does.
    """
    for setting, what in (
        ("data", "data"),
        ("study", "code that is installed at the site"),
        ("coordinator", "key of the one it hears"),
    ):
        if getattr(own, setting) is None:
            raise NotOwn(
                f"{own.name}'s own file has no `{setting}`: its staff names the {what} there; nobody else can"
            )
    if odd := [
        name
        for name, digest in sorted(copy.items())
        if own.digests.get(name, digest if name in PLACE else "") != digest
    ]:
        raise NotOwn(
            f"the coordinator's copy of {own.name}'s file has another {listed(odd)} than the site's own, which counts. Leave everything "
            "but name and resources out of the copy, or have the site's staff change its file"
        )
