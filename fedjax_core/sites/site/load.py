"""Reads the examples that a site's file names, divides them into departments, and leaves bad records out.

    load_data    a folder of `Clients.save`, a mapping, columns, or a function's  ─►  `Clients`, one or by departments
    opened       the same for a study, without bad records if the policy has them skipped

>>> clients = divided("charite", {"x": np.ones((3, 2)), "ward": np.array(["icu", "ear", "icu"])}, "ward")
>>> clients.ids.tolist(), clients.sizes.tolist(), list(clients.columns)
(['charite/ear', 'charite/icu'], [1, 2], ['x'])
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core import intake
from fedjax_core.data import partition
from fedjax_core.data.clients import Clients
from fedjax_core.data.features import Features
from fedjax_core.data.given import columns_of, given
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.site import preprocessing
from fedjax_core.sites.site.held_out import mark
from fedjax_core.sites.site.records import usable
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study, is_function, named


def load_data(site_file: SiteFile, check: bool = True, study: Study | None = None) -> Clients:
    """Loads the site's examples, as one client with the site's name, or one for each department.

    With `check`, raises for NaN in the data. Features are in the order of the `study`, if it has one, and the
    examples that it holds out are marked (held_out.py).
    """
    data: Any = site_file.data
    if data is None:
        raise ValueError(
            f"{site_file.file or f'the site {site_file.name}'} names no `data`: a folder of Clients.save, a mapping.toml, or "
            "module:function"
        )
    if isinstance(data, str) and is_function(data):
        data = named(data)
    if callable(data) and not isinstance(data, Clients):
        data = data()
    handed = isinstance(data, Clients)  # such data were checked when they were made
    if isinstance(data, (str, Path)) and Path(data).suffix == ".toml":
        reading = intake.read(data)
        data, site_file = (
            reading.clients,
            site_file if site_file.person else replace(site_file, person=reading.schema.person or None),
        )
    elif isinstance(data, (str, Path)):
        data = Clients.open(data)
    data = columns_of(data)
    if isinstance(data, Mapping):
        data = Clients.from_list([data], [site_file.name], allow_nan=True)
    if not isinstance(data, Clients):
        raise ValueError(
            f"the data of {site_file.name} must be columns, Clients, or a folder of Clients.save, got {type(data).__name__}"
        )
    if site_file.departments is not None and not (len(data) == 1 and isinstance(data.columns, Mapping)):
        raise ValueError(
            f"the data of {site_file.name} must be one client's columns, by name, to be divided by departments = "
            f"{site_file.departments!r}; "
            "where they are Clients of several, these are the departments: leave `departments` out"
        )
    data = data.with_ids([site_file.name] if len(data) == 1 else ids_of(site_file.name, data.ids))
    if study is not None and study.features:
        data = data.arranged(study.features)
    data = mark(data, site_file, *((study.held_out, study.seed) if study is not None else (None, 0)))
    if site_file.departments is not None:
        data = divided(
            site_file.name, data.columns, site_file.departments, features=data.features, allow_nan=True
        )
    if check and not handed:
        data.check_finite()
    return data


def check_divided(site: str, study: Study, clients: Clients) -> None:
    """Raises if a site's examples are divided into departments, but the study's clients are whole sites."""
    if not study.departments and clients.ids.tolist() != [site]:
        raise ValueError(
            f"the data of {site} are divided into departments, {len(clients)} of them, and the clients of this study are whole "
            "sites: leave `departments` out of the site's file and give one client's data, or agree on a study with departments=True"
        )


def divided(
    site: str,
    columns: Mapping[str, Any],
    by: str,
    *,
    features: Features | None = None,
    allow_nan: bool = False,
) -> Clients:
    """Divides a copy of the site's rows by the column `by`, of whole numbers or text, which is left out."""
    if by not in columns:
        raise ValueError(
            f"departments = {by!r} names no column of {site}'s data, which has {', '.join(map(str, columns))}"
        )
    owner = given(columns[by], by, f"{site}: ")
    if owner.ndim != 1 or owner.dtype.kind not in "iuU":
        raise ValueError(
            f"column {by!r}, by which {site} is divided, must hold whole numbers or text, got {owner.dtype}{[*owner.shape]}"
        )
    rest = {name: x for name, x in columns.items() if name != by}
    ids = ids_of(site, partition.owner_names(owner))
    return Clients.from_parts(rest, partition.by_owner(owner), ids, features=features, allow_nan=allow_nan)


def ids_of(site: str, departments: Any) -> list[str]:
    """The ids of departments as clients, SITE/DEPARTMENT. No site's own name contains "/"."""
    return [f"{site}/{one}" for one in np.asarray(departments).tolist()]


def opened(site_file: SiteFile, study: Study) -> tuple[Clients, np.ndarray | None]:
    """Loads the site's data for a study: (examples, positions of the bad records left out, or None if the
    policy has none skipped).

    Raises if the study could not read them; `check_study` checks them for the task.
    """
    most_bad, bad = None if site_file.policy is None else Policy.read(site_file.policy).max_bad_share, None
    clients = load_data(site_file, check=most_bad is None and not study.prepare, study=study)
    if most_bad is not None:
        clients, bad = usable(clients, study.round.algorithm.task, study.prepare)
    elif study.prepare:
        preprocessing.check_rest(study.prepare, clients)
    if study.prepare:
        clients.check_numbers(but=[step.column for step in study.prepare])
    check_divided(site_file.name, study, clients)
    return clients, bad


def too_many_bad(site_file: SiteFile, share: float) -> bool:
    """Whether this share of bad records is more than the policy leaves out."""
    most_bad = None if site_file.policy is None else Policy.read(site_file.policy).max_bad_share
    return most_bad is not None and share > most_bad
