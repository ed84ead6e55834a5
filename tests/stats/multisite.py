"""The tables by site of the real data, and the pooled answers that were computed of them elsewhere."""

import json

import numpy as np
import pytest

from fedjax_core.data import Clients

SITE = {"medpar": "provnum", "opt": "Clinic", "exam": "school", "bmt": "z9", "cgd": "center"}
"""The column of sites; of all other tables it is "site"."""
FAMILIES = {"Binomial": "binomial", "Poisson": "poisson", "NegativeBinomial": "negative binomial"}


def answers(folder):
    path = folder / "multisite" / "answers.json"
    if not path.exists():
        pytest.skip(f"{path} is not there: the folder of real data lacks the tables by site")
    return json.loads(path.read_text())


def table(folder, name):
    """The clients of a table, prepared as the answers were: SOURCE.md says how."""
    clients = Clients.from_table(folder / "multisite" / f"{name}.csv", by=SITE.get(name, "site"))
    columns = dict(clients.columns)
    if name == "opt":
        columns["y"] = (columns["GA.at.outcome"] < 259) * 1.0
        columns["treat"] = (columns["Group"] == clients.categories["Group"].index("T")) * 1.0
    if name == "pda_lung2":
        columns["status"] = (columns["status"] == np.max(columns["status"])) * 1.0
        columns["sexn"] = columns["sex"] - np.min(columns["sex"])
    return clients.with_columns(columns)


def assert_named(found, wanted, rtol, atol=0.0):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=rtol, abs=atol), name
