"""The folder of a consortium in a box: made once, then read.

Everything of a site is made and kept in that site's folder, its key first of all; only its `.pub` goes to the
coordinator. The coordinator's `study.toml` says what is run:

    study = "fedjax_core.consortium.example:study"
    arguments = '{"lr": 0.05}'            JSON
    rounds = 20
    checkpoint_every = 5
    quorum = 0                            sites that must report; 0: all of them
    train_seconds = 0.0                   that a site trains in an exchange at most; 0: as long as it needs
    sites = ["hospital-1", "hospital-2"]
"""

import json
import logging
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from shutil import move
from typing import Any

from fedjax_core.checks import at_least
from fedjax_core.consortium import example
from fedjax_core.data.clients import Clients
from fedjax_core.files import read_text, write_whole
from fedjax_core.run.log import METRICS, Record, read_records
from fedjax_core.sites.coordinator.claims import doubtful
from fedjax_core.sites.doctor import expected
from fedjax_core.sites.doctor.examination import examine
from fedjax_core.sites.own_file import VARIABLE
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.protocol.schema import columns
from fedjax_core.sites.refusal import check_name
from fedjax_core.sites.site.held_out import parted
from fedjax_core.sites.site.load import load_data
from fedjax_core.sites.site.preprocessing import held_back, leaving
from fedjax_core.sites.site.usual_policy import minimum_of, usual_policy
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study, build
from fedjax_core.sites.transport import ray_security
from fedjax_core.sites.wire import identity
from fedjax_core.sites.wire.envelope import COORDINATOR

log = logging.getLogger("fedjax_core")

STUDY = "fedjax_core.consortium.example:study"
DEADLINE_SECONDS = 600.0
"""Of a round."""
_RAY = "ray"


@dataclass(frozen=True)
class StudyPlan:
    """What a consortium runs: the study, its sites, and the rules of its rounds."""

    sites: tuple[str, ...]
    study: str = STUDY
    arguments: str = "{}"
    rounds: int = 20
    checkpoint_every: int = 5
    quorum: int = 0
    train_seconds: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, rounds=self.rounds, checkpoint_every=self.checkpoint_every)
        if not 0 <= self.quorum <= len(self.sites):
            raise ValueError(
                f"quorum={self.quorum} of {len(self.sites)} sites: ask for as many at most; 0 is all of them"
            )
        if not 0 <= self.train_seconds < DEADLINE_SECONDS:
            raise ValueError(
                f"train_seconds={self.train_seconds:g}, and a round has {DEADLINE_SECONDS:g} s: ask for less; 0 is no limit"
            )

    @classmethod
    def read(cls, path: Path) -> "StudyPlan":
        """The plan in a study.toml; raises, naming the file, where it is none."""
        try:
            values = tomllib.loads(read_text(path))
            return cls(**{**values, "sites": tuple(values["sites"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a study that `consortium run` wrote: {error}") from None

    def write(self, path: Path) -> None:
        """Writes the study.toml whole, over one that is there."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in asdict(self).items()]
        write_whole(path, "\n".join(lines) + "\n")


@dataclass(frozen=True)
class Layout:
    """The paths in a consortium's folder."""

    root: Path

    @property
    def coordinator(self) -> Path:
        """The coordinator's own folder."""
        return self.root / "coordinator"

    @property
    def plan(self) -> Path:
        """The study.toml, which is written last: a folder that has it is whole."""
        return self.coordinator / "study.toml"

    def site(self, name: str) -> Path:
        """A site's own folder."""
        return self.root / "sites" / name

    def home(self, name: str) -> Path:
        """The folder of a site, or of the coordinator."""
        return self.coordinator if name == COORDINATOR else self.site(name)

    def rounds(self) -> list[Record]:
        """The records of the rounds so far."""
        return [
            record for record in read_records(self.coordinator / "run" / METRICS) if record["kind"] == "train"
        ]

    def environment(self, name: str) -> dict[str, str]:
        """Ray's environment variables on this machine; for a site also the one that names its file."""
        own = {} if name == COORDINATOR else {VARIABLE: str((self.site(name) / "site.toml").absolute())}
        return ray_security.environment(self.home(name) / _RAY) | own


def prepare(
    folder: Layout,
    *,
    sites: int | None = None,
    site_files: Path | None = None,
    study: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    rounds: int | None = None,
    quorum: int | None = None,
    train_seconds: float | None = None,
    checkpoint_every: int | None = None,
) -> tuple[StudyPlan, bool]:
    """(the plan, whether the folder was made now). A folder that is there keeps what it has; only its rounds
    may become more."""
    given: dict[str, Any] = {
        "study": study,
        "arguments": None if arguments is None else json.dumps(arguments),
        "rounds": rounds,
        "quorum": quorum,
        "train_seconds": train_seconds,
    }
    given = {
        name: value
        for name, value in {**given, "checkpoint_every": checkpoint_every}.items()
        if value is not None
    }
    if folder.plan.exists():
        old = StudyPlan.read(folder.plan)
        odd = [name for name, value in given.items() if name != "rounds" and value != getattr(old, name)]
        changed = [f"{name} {getattr(old, name)!r}, not {given[name]!r}" for name in odd]
        if sites is not None and sites != len(old.sites):
            changed.insert(0, f"{len(old.sites)} sites, not {sites}")
        if changed:
            raise ValueError(
                f"{folder.root} was made with {' and '.join(changed)}: choose another folder, or leave that out"
            )
        plan = StudyPlan(**{**_values(old), **given})
        if plan.rounds < (done := len(folder.rounds())):
            raise ValueError(
                f"{folder.root} has {done} rounds already, more than {plan.rounds}: ask for as many, or choose another folder"
            )
        if plan != old:
            plan.write(folder.plan)
        return plan, False
    if folder.root.exists() and any(folder.root.iterdir()):
        raise ValueError(
            f"{folder.root} is not empty and has no whole consortium in it: choose another folder, or remove it"
        )
    if site_files is not None and study is None:
        raise ValueError("with sites of your own, say which study they run: --study module:function")
    built = build(study or STUDY, arguments or {})  # raises where it cannot
    made_up = {} if site_files is not None else _made_up(3 if sites is None else sites)
    site_settings = (
        _own(site_files)
        if site_files is not None
        else {name: {"data": "data", "labels": "y"} for name in made_up}
    )
    _check_policies(site_settings, built)
    plan = StudyPlan(sites=tuple(site_settings), **given)
    for name, clients in made_up.items():
        clients.save(folder.site(name) / "data")
    _keys_and_certificates(folder, plan.sites)
    for name, settings in site_settings.items():
        _write_site(folder.site(name), name, settings, plan)
    clients, counts = _opened(folder, plan, built)
    if large := doubtful(counts, {}):  # all of it belongs to the owner of this roster
        agreed = "".join(f"{name} = {counts[name]}\n" for name in large)
        roster = folder.coordinator / "roster.toml"
        write_whole(roster, f"{read_text(roster)}\n[examples]\n{agreed}")
    for name, settings in site_settings.items():
        expected.Expected.here(built, columns(clients), clients.features).write(
            folder.site(name) / "expected.toml"
        )
        if "policy" not in settings:
            write_whole(
                folder.site(name) / "policy.toml",
                _policy(SiteFile.read(folder.site(name) / "site.toml"), built, clients),
            )
        _warn_of_unfit(
            folder.site(name) / "site.toml", ("labels",) if name in made_up else ("data", "task", "labels")
        )
    plan.write(folder.plan)
    return plan, True


def _opened(folder: Layout, plan: StudyPlan, built: Study) -> tuple[Clients, dict[str, int]]:
    """(the training data of the first site whose data can be opened, how many examples each such site has);
    raises where none can."""
    first, counts, errors = None, dict[str, int](), list[Exception]()
    for name in plan.sites:
        try:
            clients, _ = parted(
                load_data(SiteFile.read(folder.site(name) / "site.toml"), check=False, study=built)
            )
        except Exception as error:  # a site's own function reads the data
            errors.append(error)
            continue
        first, counts[name] = first or clients, clients.examples
    if first is None:
        raise errors[0]
    return first, counts


def _warn_of_unfit(file: Path, checks: Collection[str]) -> None:
    """Warns of what will keep a site from taking part: data that cannot be opened, a label that means
    nothing, too few examples."""
    for finding in examine(file, only=checks):
        if finding.fine is False:
            log.warning(
                "%s will take no part until that is mended: %s (%s)", file.parent.name, finding.message, file
            )
            return


def _made_up(count: int) -> dict[str, Clients]:
    if not 2 <= count <= 16:
        raise ValueError(
            f"a consortium in a box has 2 to 16 sites, each with some 400 MB of memory; got {count}"
        )
    return example.hospitals(count)


def _own(site_files: Path) -> dict[str, dict[str, Any]]:
    """The settings in the sites' own files: name, data, and labels and policy where they have them."""
    paths = sorted(site_files.glob("*.toml"))
    if len(paths) < 2:
        raise ValueError(
            f"{site_files} has {len(paths)} files *.toml; a consortium needs two sites, each in a file with name and data"
        )
    site_settings: dict[str, dict[str, Any]] = {}
    for path in paths:
        site_file = SiteFile.read(path)
        if site_file.data is None:
            raise ValueError(
                f"{path} names no `data`: a consortium in a box needs it of each site, a folder of Clients.save"
            )
        data = site_file.data if isinstance(site_file.data, str) else str(Path(site_file.data).absolute())
        policy = None if site_file.policy is None else str(site_file.policy.absolute())
        kept = {
            name: getattr(site_file, name) for name in ("labels", "departments", "person", "held_out")
        } | {"policy": policy}
        if site_file.name in site_settings or site_file.name == COORDINATOR:
            raise ValueError(f"{path}: the name {site_file.name!r} is taken")
        site_settings[site_file.name] = {
            "data": data,
            **{key: value for key, value in kept.items() if value is not None},
        }
    return site_settings


def _keys_and_certificates(folder: Layout, sites: Sequence[str]) -> None:
    public = [f'{name} = "{identity.SiteKey.load(_key(folder, name)).public.text}"' for name in sites]
    _key(folder, COORDINATOR)
    write_whole(folder.coordinator / "roster.toml", "[keys]\n" + "\n".join(public) + "\n")
    everyone = (COORDINATOR, *sites)
    ray_security.equip(folder.root / "tls", {name: ["127.0.0.1", "localhost"] for name in everyone})
    for name in everyone:
        move(folder.root / "tls" / name, folder.home(name) / _RAY)
        lines = [f"{key}={value}" for key, value in folder.environment(name).items()]
        write_whole(folder.home(name) / _RAY / "environment", "\n".join(lines) + "\n")


def _key(folder: Layout, name: str) -> Path:
    """The path of the key of a site, or of the coordinator."""
    return identity.SiteKey.make(check_name(name, "the site")).save(folder.home(name))


def _check_policies(site_settings: Mapping[str, Mapping[str, Any]], built: Study) -> None:
    """Raises where a policy that a site brings would stop the run before its first round."""
    for settings in site_settings.values():
        if "policy" in settings and (
            kept := held_back(built.prepare, Policy.read(settings["policy"]).leaving.fields)
        ):
            lacking = "; ".join(f"{sums!r}, which {steps} of the study needs" for sums, steps in kept.items())
            raise ValueError(
                f"{settings['policy']} does not let leave {lacking}: name it in leaving.fields, or do without in the study"
            )


def _write_site(home: Path, name: str, settings: Mapping[str, Any], plan: StudyPlan) -> None:
    # here all of one machine; elsewhere each site gets the others' keys by another way
    for file in (
        "coordinator.pub",
        "roster.toml",
    ):
        write_whole(home / file, (home.parents[1] / "coordinator" / file).read_bytes())
    content = {"name": name, "policy": "policy.toml", **settings, "folder": "state", "study": plan.study}
    content |= {"key": f"{name}.key", "coordinator": "coordinator.pub", "roster": "roster.toml"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items()]
    lines += [f"resources = {{ {name} = 1.0 }}", "[arguments]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in json.loads(plan.arguments).items()]
    write_whole(home / "site.toml", "\n".join(lines) + "\n")


def _policy(site_file: SiteFile, built: Study, clients: Clients) -> str:
    """A policy under which the study runs: what every study needs, the task's metrics, and the sums that its
    preprocessing needs."""
    fields = [*usual_policy(site_file, built, clients).leaving.fields, *leaving(built.prepare)]
    steps = "".join(f"# {kind}: sums for {needs}\n" for kind, needs in held_back(built.prepare, ()).items())
    minimum = asdict(minimum_of(site_file))
    return _POLICY.format(
        name=site_file.name, steps=steps, fields=json.dumps(list(dict.fromkeys(fields))),
        minimum="\n".join(f"{name} = {value}" for name, value in minimum.items() if value),
    )  # fmt: skip


_POLICY = """\
# What {name} takes part in, and what may leave it. Read anew for every request: set paused = true, and it takes no more part.
site = "{name}"
paused = false

[tasks]
mode = "first-use"

[minimum]
{minimum}

[leaving]
{steps}fields = {fields}

[evaluation]
models = "sent"
per_day = 150

[caps]
updates_per_day = 2000
"""


def _values(plan: StudyPlan) -> dict[str, Any]:
    return {field.name: getattr(plan, field.name) for field in fields(plan)}
