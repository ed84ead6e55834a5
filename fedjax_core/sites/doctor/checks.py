"""What the doctor looks at, one function a check: each says what it found, or raises `Unfit` with what to do, or `Skipped` with why not.

The table `CHECKS` has them in the order in which they are read.
"""

import contextlib
import os
import shlex
import shutil
import socket
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.files import open_to_others
from fedjax_core.machine import memory_available
from fedjax_core.sites.doctor.expected import Expected, code, packages, python
from fedjax_core.sites.own_file import VARIABLE, paths
from fedjax_core.sites.policy import PINNED, SAFE, Policy, Request, Tasks, pinned
from fedjax_core.sites.policy.privacy_ledger import Ledger, epsilon
from fedjax_core.sites.protocol.kinds import leaving
from fedjax_core.sites.protocol.schema import columns, difference, items_of
from fedjax_core.sites.protocol.schema import said as said_of
from fedjax_core.sites.refusal import listed
from fedjax_core.sites.site import preprocessing, reviewed
from fedjax_core.sites.site.data import absent, check_study, fingerprint
from fedjax_core.sites.site.held_out import parted
from fedjax_core.sites.site.load import load_data, opened, too_many_bad
from fedjax_core.sites.site.usual_policy import metrics_of, minimum_of
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study, build
from fedjax_core.sites.transport import ray_security
from fedjax_core.sites.transport.certificates import CertificateError, Files
from fedjax_core.sites.wire.envelope import COORDINATOR
from fedjax_core.sites.wire.identity import SiteKey, read_public

_SECONDS = 5.0


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


def _versions(about: SiteFile, settings: Settings) -> str:
    expected, here = settings.expected, packages()
    if not expected.packages:
        raise Skipped("the coordinator's expected.toml is not beside the site's file")
    wrong = [f"{name}=={version}" for name, version in expected.packages.items() if here.get(name) != version]
    if wrong:
        have = ", ".join(f"{one.partition('==')[0]} {here.get(one.partition('==')[0], 'absent')}" for one in wrong)
        raise Unfit(f"{have} here, and the study was made with others: pip install {' '.join(repr(one) for one in wrong)}")
    if expected.python != python():
        raise Unfit(f"Python {python()} here, and the study was made with {expected.python}: make the environment with that")
    return f"Python {python()} and {len(expected.packages)} packages as the study was made with"


def _key_path(about: SiteFile) -> Path | None:
    """Where the site's key is, or will be made."""
    return about.key or (about.folder / f"{about.name}.key" if about.folder is not None else None)


def _own_key(about: SiteFile, settings: Settings) -> str:
    path = _key_path(about)
    if path is None or not path.exists():
        raise Unfit(f"there is no key {path or ''}: make one with `fedjax-core keys make {about.name}`, and name it in the site's file")
    key = SiteKey.load(path)
    if key.name != about.name:
        raise Unfit(f"{path} is the key of {key.name!r}, and the site is {about.name!r}: name its own")
    if read_public(path.with_suffix(".pub")) != (key.name, key.public):
        raise Unfit(f"{path.with_suffix('.pub')} is not the public half of {path}: write it anew from `fedjax-core keys show {path}`")
    return f"{path}, fingerprint {key.public.fingerprint}"


def _coordinator(about: SiteFile, settings: Settings) -> str:
    if about.coordinator is None:
        raise Unfit("the site's file names no coordinator's key: ask for coordinator.pub, and compare the fingerprint by telephone")
    name, key = read_public(about.coordinator)
    if name != COORDINATOR:
        raise Unfit(f"{about.coordinator} is the key of {name!r}, and a site listens to {COORDINATOR!r} alone")
    return f"fingerprint {key.fingerprint}: compare it by telephone"


def _clock(about: SiteFile, settings: Settings) -> str:
    here, made = time.time(), settings.expected.made
    if here < made - settings.offset_seconds:
        raise Unfit(f"this clock is at least {made - here:.0f} s behind the coordinator's: set it, or have it set by NTP")
    if settings.now is None:
        raise Skipped("give the right time with --now, such as --now $(ssh coordinator date +%s)")
    offset = here - settings.now
    if abs(offset) > settings.offset_seconds:
        raise Unfit(f"this clock is {offset:+.0f} s off, and {settings.offset_seconds:g} s are allowed: set it, or have it set by NTP")
    return f"{offset:+.0f} s off"


def _opened(about: SiteFile) -> Clients:
    """The site's data as the site opens them: NaN may be where the study's preprocessing fills it, and bad records may be left out."""
    if (built := _built(about)) is not None:
        return opened(_policy_read(about), built)[0]
    found = load_data(about)
    found.check_numbers()
    return found


def _policy_read(about: SiteFile) -> SiteFile:
    """The same, without a policy where that cannot be read, which another check tells."""
    try:
        if about.policy is not None:
            Policy.read(about.policy)
    except (OSError, ValueError):
        return replace(about, policy=None)
    return about


def _built(about: SiteFile) -> Study | None:
    """The study that the file names; None where it cannot be built, which is another check's to tell."""
    with contextlib.suppress(Exception):
        return None if about.study is None else build(about.study, about.arguments)
    return None


def _steps(built: Study | None) -> preprocessing.Steps:
    return () if built is None else built.prepare


def _data(about: SiteFile, settings: Settings) -> str:
    opened, expected = _opened(about), settings.expected
    clients, held = parted(opened)
    here = columns(clients)
    if expected.columns and here != expected.columns:
        odd = [name for name in {**expected.columns, **here} if here.get(name) != expected.columns.get(name)]
        said = "; ".join(f"{name} is {here.get(name, 'absent')}, not {expected.columns.get(name, 'expected')}" for name in odd[:5])
        raise Unfit(f"the columns are not those of the study: {said}. Convert the data, and save it again with Clients.save")
    if expected.features and dict(clients.features) != {name: tuple(of) for name, of in expected.features.items()}:
        here_, there = (items_of(expected.columns, of) for of in (clients.features, expected.features))
        raise Unfit(f"the features are not those of the study: {difference('this site', said_of(here_), 'the study', said_of(there))}")
    path, key, said = (
        _key_path(about),
        None,
        f"{clients.examples} examples of {listed(here)}{'' if held is None else f', and {held.examples} held out'}",
    )
    with contextlib.suppress(OSError, ValueError):  # which another check tells
        key = None if path is None else SiteKey.load(path)
    if key is None:
        return f"{said}, which have a fingerprint once the site has a key"
    known, now = expected.data.get(about.name), fingerprint(opened, about.order, key)
    if known is not None and known != now:
        raise Unfit(
            f"the data have the fingerprint {now}, and {known} is known: the data are others, or the site's key is. "
            f"Where that is meant, set data_was = {known!r}"
        )
    return f"{said}, fingerprint {now}"


def _task(about: SiteFile, settings: Settings) -> str:
    if (built := _built(about)) is None:
        raise Skipped("there is no study here that the data could be looked at with")
    about = _policy_read(about)
    try:
        clients, bad = opened(about, built)
    except Exception:
        raise Skipped("the data cannot be opened, as is said above") from None
    skipped, said = 0 if bad is None else len(bad), ""
    if too_many_bad(about, skipped / (clients.examples + skipped)):
        raise Unfit(
            f"{skipped} of {clients.examples + skipped} records are bad, which is more than the policy leaves out (max_bad_share): mend "
            "those that errors.log names once the site was opened, or raise the share after review"
        )
    check_study(built, clients)
    if bad is not None:
        said = f", {skipped} bad records left out"
    kept = (
        [] if about.policy is None else [one for one in metrics_of(built, clients) if one not in Policy.read(about.policy).leaving.fields]
    )
    said += f"; of what it measures {listed(kept)} would not leave (leaving.fields)" if kept else ""
    return f"the study's task can be trained on the data{said}" + (", as far as is known before they are prepared" if built.prepare else "")


def _labels(about: SiteFile, settings: Settings) -> str:
    if about.policy is None and about.study is None:
        raise Skipped("the site has no policy of its own")
    minimum = minimum_of(about) if about.policy is None else Policy.read(about.policy).minimum
    clients, held = parted(_opened(about))
    if clients.examples < minimum.examples:
        raise Unfit(f"{clients.examples} examples, and the policy asks for {minimum.examples} (minimum.examples)")
    if held is not None and held.examples < minimum.examples:
        raise Unfit(
            f"{held.examples} examples are held out, and the policy asks for {minimum.examples} (minimum.examples): no model would "
            "be judged here. Agree on a larger share, or lower the minimum after review"
        )
    least = int(clients.sizes[clients.sizes > 0].min())
    if (built := _built(about)) is not None and built.departments and least < minimum.department:
        raise Unfit(
            f"a department has {least} examples, and the policy asks for {minimum.department}: put small ones together (minimum.department)"
        )
    if built is not None and isinstance(built.steps, int) and built.steps * built.batch_size < minimum.examples:
        raise Unfit(
            f"a report of the study is of {built.steps * built.batch_size} examples at most, and the policy asks for {minimum.examples} "
            "(minimum.examples): it would never leave. Decline the study, or have it take more steps"
        )
    if not minimum.examples:
        return f"{clients.examples} examples, and the policy asks for none: set minimum.examples, such as {SAFE.examples}"
    if not minimum.per_class:
        return f"{clients.examples} examples, {minimum.examples} asked for"
    if about.labels is None or about.labels not in clients.columns:
        raise Unfit(f"the policy asks for {minimum.per_class} of each class, and `labels` names no column of the data ({about.labels})")
    classes, counts = np.unique(clients.columns[about.labels], return_counts=True)
    if len(classes) < minimum.classes or (built is not None and absent(len(classes), built.round.algorithm.task)):
        raise Unfit(
            f"the only classes with examples are {listed(classes.tolist())}, and the task has more: the policy asks for "
            f"{minimum.per_class} of each (minimum.per_class)"
        )
    if few := [f"{name}: {count}" for name, count in zip(classes, counts, strict=True) if count < minimum.per_class]:
        raise Unfit(f"too few of some classes ({', '.join(few[:5])}), and the policy asks for {minimum.per_class} (minimum.per_class)")
    return f"{len(classes)} classes, each with {counts.min()} examples or more, {minimum.per_class} asked for"


def _policy(about: SiteFile, settings: Settings) -> str:
    built = _built(about)
    steps = _steps(built)
    if about.policy is None:
        if "range" in preprocessing.leaving(steps):
            raise Unfit("the study needs 'range', which is of single persons and leaves only where a policy of the site's own names it")
        raise Skipped("the site has no policy of its own: the first study asked for is the only one, and its metrics may leave")
    found, study = Policy.read(about.policy), settings.expected.study
    if found.site != about.name:
        raise Unfit(f"{about.policy} is the policy of {found.site!r}, and the site is {about.name!r}")
    if found.withdrawn or found.paused:
        raise Unfit(f"{about.policy} says that the site is {'withdrawn' if found.withdrawn else 'paused'}: it would decline everything")
    study = study if built is None else built.hash  # where these differ, that is another check's to tell
    if found.tasks.mode == "list" and study and study not in found.tasks.allowed:
        raise Unfit(f"{about.policy} does not allow the study {study}: add it to tasks.allowed after review")
    pin = None if about.folder is None else pinned(about.folder / PINNED)
    if found.tasks.mode == "first-use" and study and pin not in (None, study) and study not in found.tasks.allowed:
        raise Unfit(
            f"{about.folder} pins the study {pin}, which was asked for first, and this one is {study}: add it to tasks.allowed after review"
        )
    always = leaving("train", departments=built is not None and built.departments, stats=() if built is None else built.stats)
    if kept := [name for name in always if name not in found.leaving.fields]:
        raise Unfit(f"{about.policy} does not let {listed(kept)} leave, which every report has: add it to leaving.fields")
    if sums := preprocessing.held_back(steps, found.leaving.fields):
        said = "; ".join(f"{kind!r}, which {needs} needs" for kind, needs in sums.items())
        raise Unfit(
            f"{about.policy} does not let leave {said}, so the run would pause before its first round: add it to leaving.fields after "
            "review, or decline the study" + (" (a range is of single persons)" if "range" in sums else "")
        )
    if built is not None:  # but for what the checks above and before have said of it
        asked = Request(built.hash, examples=0, clip=built.clip, noise=built.noise)
        decision = Policy(found.site, tasks=Tasks("first-use"), leaving=found.leaving).allows(asked, datetime.now(UTC))
        if not decision.allowed:
            raise Unfit(f"{decision.reason}, and {about.study} does not say that it does so: decline it, or have it changed")
    open_now = "open now" if found.hours.open(datetime.now(UTC)) else f"closed now, open at {', '.join(found.hours.windows)}"
    if steps and not found.minimum.cell:
        open_now += f", sums of columns of however few examples leave: set minimum.cell, such as {SAFE.cell}"
    if found.leaving.delta is not None:
        open_now += f", an epsilon of {epsilon(Ledger(about.folder).told, found.leaving.delta):.3g} told so far"
    return f"{about.policy}, {open_now}"


def _study(about: SiteFile, settings: Settings) -> str:
    if about.study is None:
        raise Skipped("the site's file names no study, so the coordinator's is handed over, which is code")
    built, expected = build(about.study, about.arguments), settings.expected
    here, known = code(built), expected.code
    odd = [name for name in {**known, **here} if known.get(name) != here.get(name)] if known else []
    if expected.study and built.hash != expected.study:
        why = f"the files of {listed(odd)} differ: install the same version" if odd else "install the same version, with the same arguments"
        raise Unfit(f"{about.study} here is {built.hash}, and the run is of {expected.study}; {why}")
    if odd:
        raise Unfit(f"the files of {listed(odd)} are others than those that the study was made with: install the same version")
    if about.folder is not None and (odd := reviewed.changed(about.folder, about.study, built.hash)):
        raise Unfit(
            f"the files of {listed(odd)} have changed since this site took part: review them, and remove {about.folder / reviewed.NAME}"
        )
    return f"{about.study}, {built.hash}, made of the files of {listed([name for name in here])}"


def _modes(about: SiteFile, settings: Settings) -> str:
    named = isinstance(about.data, (str, Path)) and ":" not in str(about.data)
    private = [path for path in (Path(about.data) if named else None, about.folder) if path is not None and path.exists()]
    found = {path: list(open_to_others(path)) for path in private}
    if readable := {path: inside for path, inside in found.items() if inside}:
        said = "; ".join(f"{len(inside)} files and folders of {path}, such as {inside[-1]}" for path, inside in readable.items())
        command = f"chmod -R go-rwx {shlex.join(map(str, readable))}"
        raise Unfit(f"other users of this machine may read {said}, which may hold records of patients: {command}")
    keys = {path.parent for path in (about.key, about.coordinator, about.policy) if path is not None}
    if writable := sorted(path for path in keys if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o022):
        command = f"chmod go-w {shlex.join(map(str, writable))}"
        raise Unfit(f"other users of this machine may put another key or policy into {', '.join(map(str, writable))}: {command}")
    return f"nobody but its owner can read {' and '.join(map(str, private)) or 'what is there'}"


def _disk(about: SiteFile, settings: Settings) -> str:
    folder = (about.folder or Path.cwd()).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e9
    if free < settings.free_gb:
        raise Unfit(f"{free:.1f} GB free at {place}, and {settings.free_gb:g} are asked for: free some, or move `folder`")
    if not os.access(place, os.W_OK):
        raise Unfit(f"{place} cannot be written: give it to the user that runs the site, or name another `folder`")
    return f"{free:.1f} GB free at {place}"


def _memory(about: SiteFile, settings: Settings) -> str:
    free = memory_available() / 1e9
    if free < settings.memory_gb:
        raise Unfit(f"{free:.1f} GB of memory free, and {settings.memory_gb:g} are asked for: stop something, or use another machine")
    return f"{free:.1f} GB free"


def _started(about: SiteFile, settings: Settings) -> str:
    value = settings.environment.get(VARIABLE, "")
    where = "" if about.file is None else about.file.absolute()
    if not value:
        raise Skipped(
            f"start Ray with `fedjax-core node {where}`, by which the site's process knows its file; for `ray start` set {VARIABLE}"
        )
    if about.file is not None and not any(path.exists() and path.samefile(about.file) for path in paths(value)):
        raise Unfit(f"{VARIABLE} names {value}, and not this file: start Ray with {VARIABLE}={where}")
    return f"Ray starts the site by this file ({VARIABLE})"


def _network(about: SiteFile, settings: Settings) -> str:
    if settings.address is None:
        raise Skipped("give the coordinator's address with --address host:port")
    host, _, port = settings.address.rpartition(":")
    try:
        began = time.monotonic()
        socket.create_connection((host, int(port)), _SECONDS).close()
    except ConnectionRefusedError:
        raise Unfit(f"{settings.address} refuses: start Ray there first, or correct the address") from None
    except (OSError, ValueError) as error:
        raise Unfit(f"{settings.address} is not reached ({error}): ask for the firewall to let this machine out to it") from None
    return f"{settings.address} in {(time.monotonic() - began) * 1000:.0f} ms"


def _ray(about: SiteFile, settings: Settings) -> str:
    if found := ray_security.lacking(settings.environment):
        raise Unfit(f"Ray lacks {' and '.join(found)}")
    files = Files.named_by(settings.environment)
    if settings.address is not None and (wrong := ray_security.greeting(settings.address, files)) is not None:
        raise Unfit(wrong)
    days = (files.check() - datetime.now(UTC)).days
    if days < _SOON_DAYS:
        raise CertificateError(f"the certificate ends in {days} days: make another with `fedjax-core certificates make`")
    return (
        f"a token and TLS, the certificate for {days} more days. Whoever is in this Ray can run programs here as the user that started it: "
        "it is for those who trust each other so far"
    )


_SOON_DAYS = 7
CHECKS: dict[str, Callable[[SiteFile, Settings], str]] = {
    "versions": _versions, "key": _own_key, "coordinator": _coordinator, "clock": _clock, "data": _data, "task": _task, "labels": _labels,
    "policy": _policy, "study": _study, "modes": _modes, "disk": _disk, "memory": _memory, "network": _network, "started": _started,
    "ray": _ray,
}  # fmt: skip
