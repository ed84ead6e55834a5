"""The file that says what a site is: its name, where its data and folder are, its study, policy and keys.

It is the site's, and lies at the site: a coordinator's copy needs `name` and `resources` alone (own_file.py).

    name = "charite"                      site.toml
    folder = "/srv/federation"            of its state, ledger and errors
    data = "/srv/data/heart"              what `Clients.save` wrote, of one client (or departments); or "module:function"
    study = "heart.study:scaffold"        installed at the site; see study.py
    arguments = { lr = 0.001 }
    policy = "policy.toml"                paths are relative to this file
    key = "keys/charite.key"
    coordinator = "coordinator.pub"
    labels = "y"                          column of classes, for the policy's minimum.per_class
    departments = "ward"                  column by which its examples are divided, for a study whose clients are departments
    person = "patient_id"                 column of persons, who are held out whole; see held_out.py
    held_out = "test"                     column of truth values: the examples that the site holds out, where the study does
    resources = { charite = 1.0 }         of the Ray node where the site's data is

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder) / "site.toml"
...     _ = path.write_text('name = "charite"\\ndata = "heart"')
...     found = SiteFile.read(path)
...     found.name, found.data == path.parent / "heart", found.folder
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

import jax
import numpy as np

from fedjax_core.data.batches import Order
from fedjax_core.data.clients import Clients
from fedjax_core.data.columns import narrow
from fedjax_core.data.given import columns_of
from fedjax_core.files import read_text
from fedjax_core.round import check_metrics
from fedjax_core.sites import local, policy, prepare
from fedjax_core.sites.base import check_name, listed
from fedjax_core.sites.departments import divided, ids_of
from fedjax_core.sites.held_out import mark
from fedjax_core.sites.identity import SiteKey
from fedjax_core.sites.limit import PARTIAL
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.study import Study, is_function, named
from fedjax_core.types import Batch

PLACE = ("resources", "node")
"""The settings that say on which node of Ray the site is."""


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """What a site is, as its staff writes it down; `read` reads the file."""

    name: str
    data: Any = None
    """A folder, "module:function", a function, or, in one's own process or trust domain, the `Clients` themselves. None: in a copy."""
    data_was: str | None = None
    """The fingerprint that the data had before, where they have changed in the middle of a run and are meant to have."""
    folder: Path | None = None
    """Where state, ledger and errors are kept; None keeps nothing, for tries in memory."""
    left_gb: float = 0.0
    """So many GB of tensors that left are kept in the folder, to be read again (left.py); the ledger has small ones anyway."""
    study: str | None = None
    """"module:function", installed at the site. None: given at construction, in one's own process or trust domain only."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    policy: Path | None = None
    """None: the first configuration asked for is the only one, and the usual fields and the task's metrics may leave (`usual_policy`)."""
    key: Path | None = None
    """None: one is made in the folder, or in memory."""
    coordinator: Path | None = None
    labels: str | None = None
    departments: str | None = None
    """The column, of whole numbers or text, that says of which department an example is; it is for nothing else. Data that are `Clients` of
    several are divided already."""
    person: str | None = None
    """The column, of whole numbers or text, that says whose an example is, where examples are held out; it is for nothing else."""
    held_out: str | None = None
    """The column of truth values that says which examples are held out in a study that holds some out, instead of a draw."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Of Ray, that the site takes up: a node that has them is where its actor runs."""
    node: Mapping[str, str] = field(default_factory=dict)
    """Labels of the Ray node on which the actor runs."""
    order: Order | None = None
    """Batches outright, [1, updates, batch size] of the site's own rows, those held out not counted; [departments, updates, batch size]
    where it has some."""
    file: Path | None = field(default=None, compare=False)
    """Where it was read; None: made in Python, in one's own process or trust domain."""
    said: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Of each setting in the file, a digest of it as it stands there."""

    def __post_init__(self) -> None:
        check_name(self.name, "the site")
        for what in ("labels", "departments", "person", "held_out"):
            if not isinstance(getattr(self, what), (str, NoneType)):
                raise TypeError(f"{what} of {self.name} must name a column of its data, got {type(getattr(self, what)).__name__}")
        if not (isinstance(self.left_gb, int | float) and 0 <= self.left_gb < math.inf):
            raise ValueError(f"left_gb of {self.name} is {self.left_gb!r}; it is how many GB of what left are kept, 0 for none")

    @classmethod
    def read(cls, path: str | Path) -> "SiteFile":
        """The site in a TOML file; relative paths begin at the file's folder."""
        try:
            found = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
        known = [f.name for f in dataclasses.fields(cls) if f.name not in ("order", "file", "said")]
        if wrong := sorted(set(found) - set(known)) or sorted({"name"} - set(found)):
            raise ValueError(f"{path}: {listed(wrong)} is unknown or missing; a site has name and data, and may have {', '.join(known)}")
        kinds: dict[str, Any] = {"left_gb": (int, float), **dict.fromkeys(("arguments", *PLACE), dict)}
        if odd := [name for name, value in found.items() if not isinstance(value, kinds.get(name, str))]:
            raise ValueError(f"{path}: {listed(odd)} is of another kind than it should be: arguments and resources are tables, names text")
        said = {name: sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest() for name, value in found.items()}
        for name in ("folder", "policy", "key", "coordinator"):
            if name in found:
                found[name] = _beside(path, found[name])
        if "data" in found and ((folder := _beside(path, found["data"])).exists() or not is_function(found["data"])):
            found["data"] = folder
        return cls(**found, file=Path(path), said=said)

    @property
    def carried(self) -> list[str]:
        """The settings that it has beside its name and where Ray places it."""
        bare = SiteFile(name=self.name)

        def differs(value: Any, usual: Any) -> bool:
            return value is not usual and (usual is None or value != usual)

        mine = [f.name for f in dataclasses.fields(self) if f.name not in ("name", *PLACE, "file", "said")]
        return [name for name in mine if differs(getattr(self, name), getattr(bare, name))]


def _beside(file: str | Path, name: str) -> Path:
    """The path that a site's file means: relative to the file, or, with ~, to the home of the user who runs the site."""
    name = os.fsdecode(name.encode())  # the bytes of the file's UTF-8, whatever the locale says that paths are
    return Path(file).parent / Path(name).expanduser()


def load_key(about: SiteFile) -> SiteKey:
    """The site's key; made where the file names none."""
    if about.key is not None:
        key = SiteKey.load(about.key)
    elif about.folder is None:
        key = SiteKey.make(about.name)
    else:
        path = about.folder / f"{about.name}.key"
        if not path.exists():
            SiteKey.make(about.name).save(about.folder)
        key = SiteKey.load(path)
    if key.name != about.name:
        raise ValueError(f"{about.key} is the key of {key.name!r}, not of {about.name!r}")
    return key


def load_data(about: SiteFile, check: bool = True, study: Study | None = None) -> Clients:
    """The site's examples, as one client with the site's name, or one for each department.

    With `check`, raises where there is NaN in what it reads. Features are in the order of the `study`, where that has one, and
    examples that it holds out are marked (held_out.py).
    """
    found: Any = about.data
    if found is None:
        raise ValueError(f"{about.file or f'the site {about.name}'} names no `data`: a folder of Clients.save, or module:function")
    if isinstance(found, str) and is_function(found):
        found = named(found)
    if callable(found) and not isinstance(found, Clients):
        found = found()
    handed = isinstance(found, Clients)  # and looked at when it was made
    if isinstance(found, (str, Path)):
        found = Clients.open(found)
    found = columns_of(found)
    if isinstance(found, Mapping):
        found = Clients.from_list([found], [about.name], allow_nan=True)
    if not isinstance(found, Clients):
        raise ValueError(f"the data of {about.name} must be columns, Clients, or a folder of Clients.save, got {type(found).__name__}")
    if about.departments is not None and not (len(found) == 1 and isinstance(found.columns, Mapping)):
        raise ValueError(
            f"the data of {about.name} must be one client's columns, by name, to be divided by departments = {about.departments!r}; "
            "where they are Clients of several, these are the departments: leave `departments` out"
        )
    found = found.with_ids([about.name] if len(found) == 1 else ids_of(about.name, found.ids))
    if study is not None and study.features:
        found = found.arranged(study.features)
    found = mark(found, about, *((study.held_out, study.seed) if study is not None else (None, 0)))
    if about.departments is not None:
        found = divided(about.name, found.columns, about.departments, features=found.features, allow_nan=True)
    if check and not handed:
        found.check_finite()
    return found


def check_divided(site: str, study: Study, clients: Clients) -> None:
    """Raises where these examples of a site are divided into departments, and the study's clients are whole sites."""
    if not study.departments and clients.ids.tolist() != [site]:
        raise ValueError(
            f"the data of {site} are divided into departments, {len(clients)} of them, and the clients of this study are whole "
            "sites: leave `departments` out of the site's file and give one client's data, or agree on a study with departments=True"
        )


def usual_policy(about: SiteFile, study: Study, clients: Clients) -> Policy:
    """The policy of a site that has no file for it: the first study asked for is the only one, and its metrics may leave.

    A site whose file names its study is a real one: it has the minimums of policies that are made (`policy.SAFE`). One that is handed its
    study is a try in one's own process or trust domain: it has none, and evaluates whatever model it is given.
    """
    sums = [name for name in prepare.leaving(study.prepare) if name != "range"]  # which tells of single persons
    clients_ = ("clients",) if study.departments else ()
    left = local.LEFT if study.measurable else ()
    fields = ("weight", "examples", "data", *clients_, *sorted({*left, *PARTIAL, *metrics_of(study, clients), *sums}))
    usual = Policy(about.name, tasks=policy.Tasks("first-use"), leaving=policy.Leaving(fields))
    if about.study is None:
        return dataclasses.replace(usual, evaluation=policy.Evaluation("any", per_day=_TRIES))
    return dataclasses.replace(usual, minimum=minimum_of(about))


def minimum_of(about: SiteFile) -> policy.Minimum:
    """The minimums of a policy that is made for a site: of each class where its file names the column of classes."""
    return policy.SAFE if about.labels is not None else dataclasses.replace(policy.SAFE, per_class=0)


def metrics_of(study: Study, clients: Clients) -> list[str]:
    """The names of all that is measured in training and in evaluation; raises where one of them could not be told."""
    task, columns = study.round.algorithm.task, narrow(prepare.one_row(study.prepare, clients))
    steps = check_metrics(study.round, columns, study.batch_size)
    params = jax.eval_shape(task.init, jax.eval_shape(lambda: jax.random.key(0)))
    shapes = jax.eval_shape(task.evaluation, params, Batch(columns, np.ones(1, np.float32)))  # type: ignore[arg-type]
    return sorted({*steps, *shapes})


_TRIES = 10_000  # evaluations a day
