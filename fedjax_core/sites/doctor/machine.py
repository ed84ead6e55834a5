"""Checks of the machine: versions, keys, clock, permissions, disk, memory, network, Ray."""

import os
import shlex
import shutil
import socket
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

from fedjax_core.files import open_to_others
from fedjax_core.machine import memory_available
from fedjax_core.sites.doctor.base import Settings, Skipped, Unfit
from fedjax_core.sites.doctor.expected import packages, python
from fedjax_core.sites.own_file import VARIABLE, paths
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.transport import ray_security
from fedjax_core.sites.transport.certificates import CertificateError, Files
from fedjax_core.sites.wire.envelope import COORDINATOR
from fedjax_core.sites.wire.identity import SiteKey, read_public

_SECONDS = 5.0
_SOON_DAYS = 7


def versions(site_file: SiteFile, settings: Settings) -> str:
    """Checks that Python and the packages are those that the study was made with."""
    expected, here = settings.expected, packages()
    if not expected.packages:
        raise Skipped("the coordinator's expected.toml is not beside the site's file")
    wrong = [f"{name}=={version}" for name, version in expected.packages.items() if here.get(name) != version]
    if wrong:
        have = ", ".join(
            f"{one.partition('==')[0]} {here.get(one.partition('==')[0], 'absent')}" for one in wrong
        )
        raise Unfit(
            f"{have} here, and the study was made with others: pip install {' '.join(repr(one) for one in wrong)}"
        )
    if expected.python != python():
        raise Unfit(
            f"Python {python()} here, and the study was made with {expected.python}: make the environment with that"
        )
    return f"Python {python()} and {len(expected.packages)} packages as the study was made with"


def key_path(site_file: SiteFile) -> Path | None:
    """The path where the site's key is, or will be made."""
    return site_file.key or (
        site_file.folder / f"{site_file.name}.key" if site_file.folder is not None else None
    )


def own_key(site_file: SiteFile, settings: Settings) -> str:
    """Checks that the site's key is there, and is its own."""
    path = key_path(site_file)
    if path is None or not path.exists():
        raise Unfit(
            f"there is no key {path or ''}: make one with `fedjax-core keys make {site_file.name}`, and name it in the site's file"
        )
    key = SiteKey.load(path)
    if key.name != site_file.name:
        raise Unfit(f"{path} is the key of {key.name!r}, and the site is {site_file.name!r}: name its own")
    if read_public(path.with_suffix(".pub")) != (key.name, key.public):
        raise Unfit(
            f"{path.with_suffix('.pub')} is not the public half of {path}: write it anew from `fedjax-core keys show {path}`"
        )
    return f"{path}, fingerprint {key.public.fingerprint}"


def coordinator(site_file: SiteFile, settings: Settings) -> str:
    """Checks that the coordinator's public key is there."""
    if site_file.coordinator is None:
        raise Unfit(
            "the site's file names no coordinator's key: ask for coordinator.pub, and compare the fingerprint by telephone"
        )
    name, key = read_public(site_file.coordinator)
    if name != COORDINATOR:
        raise Unfit(
            f"{site_file.coordinator} is the key of {name!r}, and a site listens to {COORDINATOR!r} alone"
        )
    return f"fingerprint {key.fingerprint}: compare it by telephone"


def clock(site_file: SiteFile, settings: Settings) -> str:
    """Checks that the clock is right."""
    here, made = time.time(), settings.expected.made
    if here < made - settings.offset_seconds:
        raise Unfit(
            f"this clock is at least {made - here:.0f} s behind the coordinator's: set it, or have it set by NTP"
        )
    if settings.now is None:
        raise Skipped("give the right time with --now, such as --now $(ssh coordinator date +%s)")
    offset = here - settings.now
    if abs(offset) > settings.offset_seconds:
        raise Unfit(
            f"this clock is {offset:+.0f} s off, and {settings.offset_seconds:g} s are allowed: set it, or have it set by NTP"
        )
    return f"{offset:+.0f} s off"


def modes(site_file: SiteFile, settings: Settings) -> str:
    """Checks that nobody else on this machine can read or change private files."""
    named = isinstance(site_file.data, (str, Path)) and ":" not in str(site_file.data)
    private = [
        path
        for path in (Path(site_file.data) if named else None, site_file.folder)
        if path is not None and path.exists()
    ]
    exposed = {path: list(open_to_others(path)) for path in private}
    if readable := {path: inside for path, inside in exposed.items() if inside}:
        listing = "; ".join(
            f"{len(inside)} files and folders of {path}, such as {inside[-1]}"
            for path, inside in readable.items()
        )
        command = f"chmod -R go-rwx {shlex.join(map(str, readable))}"
        raise Unfit(
            f"other users of this machine may read {listing}, which may hold records of patients: {command}"
        )
    keys = {
        path.parent for path in (site_file.key, site_file.coordinator, site_file.policy) if path is not None
    }
    if writable := sorted(
        path for path in keys if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o022
    ):
        command = f"chmod go-w {shlex.join(map(str, writable))}"
        raise Unfit(
            f"other users of this machine may put another key or policy into {', '.join(map(str, writable))}: {command}"
        )
    return f"nobody but its owner can read {' and '.join(map(str, private)) or 'what is there'}"


def disk(site_file: SiteFile, settings: Settings) -> str:
    """Checks that there is room on the disk, and it can be written."""
    folder = (site_file.folder or Path.cwd()).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e9
    if free < settings.free_gb:
        raise Unfit(
            f"{free:.1f} GB free at {place}, and {settings.free_gb:g} are asked for: free some, or move `folder`"
        )
    if not os.access(place, os.W_OK):
        raise Unfit(
            f"{place} cannot be written: give it to the user that runs the site, or name another `folder`"
        )
    return f"{free:.1f} GB free at {place}"


def memory(site_file: SiteFile, settings: Settings) -> str:
    """Checks that enough memory is free."""
    free = memory_available() / 1e9
    if free < settings.memory_gb:
        raise Unfit(
            f"{free:.1f} GB of memory free, and {settings.memory_gb:g} are asked for: stop something, or use another machine"
        )
    return f"{free:.1f} GB free"


def started(site_file: SiteFile, settings: Settings) -> str:
    """Checks that Ray starts the site by the site's own file."""
    value = settings.environment.get(VARIABLE, "")
    where = "" if site_file.file is None else site_file.file.absolute()
    if not value:
        raise Skipped(
            f"start Ray with `fedjax-core node {where}`, by which the site's process knows its file; for `ray start` set {VARIABLE}"
        )
    if site_file.file is not None and not any(
        path.exists() and path.samefile(site_file.file) for path in paths(value)
    ):
        raise Unfit(f"{VARIABLE} names {value}, and not this file: start Ray with {VARIABLE}={where}")
    return f"Ray starts the site by this file ({VARIABLE})"


def network(site_file: SiteFile, settings: Settings) -> str:
    """Checks that the coordinator's address can be reached."""
    if settings.address is None:
        raise Skipped("give the coordinator's address with --address host:port")
    host, _, port = settings.address.rpartition(":")
    try:
        began = time.monotonic()
        socket.create_connection((host, int(port)), _SECONDS).close()
    except ConnectionRefusedError:
        raise Unfit(f"{settings.address} refuses: start Ray there first, or correct the address") from None
    except (OSError, ValueError) as error:
        raise Unfit(
            f"{settings.address} is not reached ({error}): ask for the firewall to let this machine out to it"
        ) from None
    return f"{settings.address} in {(time.monotonic() - began) * 1000:.0f} ms"


def ray(site_file: SiteFile, settings: Settings) -> str:
    """Checks that Ray asks for a token and TLS, with a certificate that lasts."""
    if missing := ray_security.lacking(settings.environment):
        raise Unfit(f"Ray lacks {' and '.join(missing)}")
    files = Files.named_by(settings.environment)
    if settings.address is not None and (wrong := ray_security.greeting(settings.address, files)) is not None:
        raise Unfit(wrong)
    days = (files.check() - datetime.now(UTC)).days
    if days < _SOON_DAYS:
        raise CertificateError(
            f"the certificate ends in {days} days: make another with `fedjax-core certificates make`"
        )
    return (
        f"a token and TLS, the certificate for {days} more days. Whoever is in this Ray can run programs here as the user that started it: "
        "it is for those who trust each other so far"
    )
