"""Three hospitals whose own functions read CSV files, and a study that prepares what they hold."""

import csv
import os
from pathlib import Path

import numpy as np
import optax

import fedjax_core as fc
from fedjax_core.sites.study import Study

NAMES, STUDY = ("charite", "mayo", "oslo"), "tests.consortium.csv_study:study"
_FOLDER = "TEST_CSV_FOLDER"


def study():
    """Logistic regression of two laboratory values."""
    algorithm = fc.algorithms.fedavg(fc.models.logistic(features=2, classes=2), local=optax.sgd(0.1))
    return Study(
        fc.compose(algorithm),
        batch_size=10,
        epochs=1,
        prepare=[fc.preprocess.Standardise("x")],
        features={"x": ["age", "crea"]},
    )


def charite():
    return _read("charite")


def mayo():
    return _read("mayo")


def oslo():
    return _read("oslo")


def site_files(folder, monkeypatch, *, bad_label=None, absent=None, other_unit=None):
    """The folder with a file for each site, and of the data of each in `data`, but for those of the one that
    is absent."""
    files = folder / "files"
    (files / "data").mkdir(parents=True)
    monkeypatch.setenv(_FOLDER, str(files / "data"))
    for name in NAMES:
        (files / f"{name}.toml").write_text(f'name = "{name}"\ndata = "tests.consortium.csv_study:{name}"\n')
        if name != absent:
            write(files, name, label=7 if name == bad_label else 1, unit=1000 if name == other_unit else 1)
    return files


def write(files, name, label=1, unit=1):
    """The CSV file of a site, with this label in row 12 and creatinine in this unit."""
    rng = np.random.default_rng(NAMES.index(name))
    age, crea = rng.normal(60, 12, 40), rng.gamma(4, 0.25, 40)
    died = (age / 60 + crea + rng.normal(size=40) > 2).astype(int)
    died[12] = label
    with open(files / "data" / f"{name}.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("age", "crea", "died"), *zip(age.round(), (unit * crea).round(2), died, strict=True)]
        )


def _read(name):
    with open(Path(os.environ[_FOLDER]) / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    x = np.array([[float(row["age"]), float(row["crea"])] for row in rows])
    return fc.Clients.from_list(
        [{"x": x, "y": np.array([int(row["died"]) for row in rows])}], features={"x": ["age", "crea"]}
    )
