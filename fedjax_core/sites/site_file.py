"""`SiteFile`: a site's configuration file, with its name, data, folder, study, policy and keys.

It belongs to the site and stays there: a coordinator's copy needs only `name` and `resources` (own_file.py).

    name = "charite"                      site.toml
    folder = "/srv/federation"            for client state, audit log and errors
    data = "mapping.toml"                 for its own table (fedjax_core/intake); or "module:function"; or the folder
                                          written by `Clients.save`, of one client (or its departments)
    study = "heart.study:scaffold"        installed at the site; see study.py
    arguments = { lr = 0.001 }
    policy = "policy.toml"                paths are relative to this file
    key = "keys/charite.key"
    coordinator = "coordinator.pub"
    roster = "roster.toml"                the keys of all sites, for a study of secure aggregation
    labels = "y"                          column of classes, for the policy's minimum.per_class
    departments = "ward"                 column that divides the examples, for studies of departments
    person = "patient_id"                column of persons, who are held out whole; see held_out.py
    held_out = "test"                    column of truth values: examples held out, if the study holds some out
    resources = { charite = 1.0 }         of the Ray node that has the site's data

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder) / "site.toml"
...     _ = path.write_text('name = "charite"\\ndata = "heart"')
...     site_file = SiteFile.read(path)
...     site_file.name, site_file.data == path.parent / "heart", site_file.folder
('charite', True, None)
"""

import dataclasses
import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import NoneType
from typing import Any

from fedjax_core.data.batches import Order
from fedjax_core.files import read_text
from fedjax_core.sites.refusal import check_name, listed
from fedjax_core.sites.study import is_function
from fedjax_core.sites.wire.identity import SiteKey

PLACE = ("resources", "node")
"""The settings that choose the Ray node on which the site runs."""


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """The configuration of a site, as its staff writes it; `read` reads the file."""

    name: str
    data: Any = None
    """A folder, "module:function", a function, or, in one's own process or trust domain, the `Clients`
    themselves. None in a coordinator's copy."""
    data_was: str | None = None
    """The former fingerprint of the data, to declare that they were changed on purpose during a run."""
    folder: Path | None = None
    """Where client state, audit log and errors are kept; None keeps nothing, for trials in memory."""
    account: Path | None = None
    """The folder of the privacy ledger (epsilon), if several studies of one institution share one. None: the
    site's own folder."""
    left_gb: float = 0.0
    """How many GB of the tensors that left the site are kept in the folder, to be read again (left.py); the
    audit log has small ones anyway."""
    study: str | None = None
    """"module:function", installed at the site. None: handed over at construction, in one's own process or
    trust domain only."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    policy: Path | None = None
    """None: the first study asked for is the only one allowed, and the usual fields and the task's metrics
    may leave (`usual_policy`)."""
    key: Path | None = None
    """None: a key is made in the folder, or in memory."""
    coordinator: Path | None = None
    roster: Path | None = None
    """The file with the keys of all sites, as the coordinator's roster: sites recognise one another by it
    under secure aggregation."""
    labels: str | None = None
    departments: str | None = None
    """The column, of whole numbers or text, with the department of each example; nothing trains on it.
    `Clients` of several clients are divided already."""
    person: str | None = None
    """The column, of whole numbers or text, with the person of each example, for holding out whole persons;
    nothing trains on it."""
    held_out: str | None = None
    """The column of truth values that marks the held-out examples, instead of a random draw, in a study that
    holds some out."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Ray resources that the site needs: its actor runs on a node that has them."""
    node: Mapping[str, str] = field(default_factory=dict)
    """Labels of the Ray node on which the actor must run."""
    order: Order | None = None
    """The batches themselves, as rows of the site without those held out: [1, updates, batch size], or
    [departments, updates, batch size] if it has departments."""
    file: Path | None = field(default=None, compare=False)
    """The path it was read from; None if made in Python, in one's own process or trust domain."""
    digests: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """The digest of each setting as written in the file."""

    def __post_init__(self) -> None:
        check_name(self.name, "the site")
        for what in ("labels", "departments", "person", "held_out"):
            if not isinstance(getattr(self, what), (str, NoneType)):
                raise TypeError(
                    f"{what} of {self.name} must name a column of its data, got {type(getattr(self, what)).__name__}"
                )
        if not (isinstance(self.left_gb, int | float) and 0 <= self.left_gb < math.inf):
            raise ValueError(
                f"left_gb of {self.name} is {self.left_gb!r}; it is how many GB of what left are kept, 0 for none"
            )

    @classmethod
    def read(cls, path: str | Path) -> "SiteFile":
        """Reads a site from a TOML file; relative paths begin at the file's folder."""
        try:
            settings = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
        known = [f.name for f in dataclasses.fields(cls) if f.name not in ("order", "file", "digests")]
        if wrong := sorted(set(settings) - set(known)) or sorted({"name"} - set(settings)):
            raise ValueError(
                f"{path}: {listed(wrong)} is unknown or missing; a site has name and data, and may have {', '.join(known)}"
            )
        kinds: dict[str, Any] = {"left_gb": (int, float), **dict.fromkeys(("arguments", *PLACE), dict)}
        if odd := [name for name, value in settings.items() if not isinstance(value, kinds.get(name, str))]:
            raise ValueError(
                f"{path}: {listed(odd)} is of another kind than it should be: arguments and resources are tables, names text"
            )
        digests = {
            name: sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
            for name, value in settings.items()
        }
        for name in ("folder", "account", "policy", "key", "coordinator", "roster"):
            if name in settings:
                settings[name] = _beside(path, settings[name])
        if "data" in settings and (
            (folder := _beside(path, settings["data"])).exists() or not is_function(settings["data"])
        ):
            settings["data"] = folder
        return cls(**settings, file=Path(path), digests=digests)

    @property
    def carried(self) -> list[str]:
        """The settings given beside the name and the place in Ray."""
        bare = SiteFile(name=self.name)

        def differs(value: Any, usual: Any) -> bool:
            return value is not usual and (usual is None or value != usual)

        names = [
            f.name for f in dataclasses.fields(self) if f.name not in ("name", *PLACE, "file", "digests")
        ]
        return [name for name in names if differs(getattr(self, name), getattr(bare, name))]


def _beside(file: str | Path, name: str) -> Path:
    """The path named in a site's file: relative to that file, or, with ~, to the home of the user who runs
    the site."""
    # Paths are the file's UTF-8 bytes, whatever the locale's encoding.
    name = os.fsdecode(name.encode())
    return Path(file).parent / Path(name).expanduser()


def load_key(site_file: SiteFile) -> SiteKey:
    """The site's key; a new one if the file names none."""
    if site_file.key is not None:
        key = SiteKey.load(site_file.key)
    elif site_file.folder is None:
        key = SiteKey.make(site_file.name)
    else:
        path = site_file.folder / f"{site_file.name}.key"
        if not path.exists():
            SiteKey.make(site_file.name).save(site_file.folder)
        key = SiteKey.load(path)
    if key.name != site_file.name:
        raise ValueError(f"{site_file.key} is the key of {key.name!r}, not of {site_file.name!r}")
    return key
