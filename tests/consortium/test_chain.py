"""The whole chain: four hospitals' CSV files of differing names, units and texts become one study, its
statistics and its report."""

import csv

import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import stats
from fedjax_core.cli import main
from fedjax_core.intake import read
from fedjax_core.intake.readiness import readiness
from fedjax_core.report import note
from fedjax_core.sites.audit import show
from fedjax_core.sites.federation import Federation, Paused
from fedjax_core.sites.site_file import SiteFile

SHARE, SEED = 0.25, 3
SCHEMA = """
name = "icu"
outcome = "y"
person = "patient"
time = "visit"
max_bad = 0.05
[fields.patient]
kind = "whole"
[fields.visit]
kind = "whole"
[fields.age]
unit = "year"
range = [18, 110]
required = true
[fields.crea]
unit = "mg/dL"
range = [0.1, 25]
required = true
[fields.sex]
categories = ["female", "male"]
required = true
[fields.y]
categories = ["no", "yes"]
"""
# For each site: the names of its columns, what a value is there, and how the mapping has it.
NAMES = ("patient", "visit", "age", "crea", "sex", "y")
SITES = {
    "charite": (("nr", "besuch", "alter_monate", "krea", "geschlecht", "tot"), 12, 1, "wm", "01"),
    "kyoto": (
        ("patient", "visit", "age", "cre_umol", "sex", "died"),
        1,
        88.42,
        ("female", "male"),
        ("no", "yes"),
    ),
    "mayo": (("mrn", "visit", "age", "crea", "gender", "dead"), 1, 1, "FM", "NY"),
    "oslo": (("id", "besok", "alder", "krea", "kjonn", "dod"), 1, 88.42, "KM", "01"),
}
POLICY = """
site = "{}"
[tasks]
mode = "first-use"
[minimum]
examples = 10
cell = 5
[leaving]
fields = ["weight", "examples", "data", "loss", "accuracy", "moments", "statistics"]
[statistics]
columns = ["age", "crea", "sex", "y"]
minimum = 5
"""


def patients(seed, n=160):
    """Two visits of each of n / 2 patients, as the study has them."""
    draw = np.random.default_rng(seed)
    person = np.repeat(np.arange(n // 2), 2)
    age, crea, sex = (
        draw.integers(30, 90, n // 2)[person],
        draw.gamma(4, 0.3, n).round(2) + 0.2,
        draw.integers(0, 2, n // 2)[person],
    )
    died = (draw.uniform(size=n) < 1 / (1 + np.exp(4 - 0.04 * age - crea))).astype(np.int32)
    return {
        "patient": 1000 * seed + person, "visit": np.tile([1, 2], n // 2), "age": age.astype(float), "crea": crea,
        "sex": sex.astype(np.int32), "y": died,
    }  # fmt: skip


def write(folder, name, columns):
    """A site's own table, mapping, policy and file; one row of its table cannot be used."""
    names, months, umol, sexes, deaths = SITES[name]
    home = folder / "sites" / name
    home.mkdir(parents=True)
    its = dict(columns) | {"age": columns["age"] * months, "crea": columns["crea"] * umol}
    its |= {"sex": np.array(list(sexes))[columns["sex"]], "y": np.array(list(deaths))[columns["y"]]}
    rows = list(zip(*(its[one].tolist() for one in NAMES), strict=True))
    with open(home / "patients.csv", "w", newline="") as file:
        csv.writer(file).writerows([names, *rows, (9999, 1, 999 * months, umol, sexes[0], deaths[0])])
    origins = [f'schema = "{folder / "schema.toml"}"\nsource = "patients.csv"']
    origins += [f'[fields.{one}]\ncolumn = "{own}"' for one, own in zip(NAMES[:2], names[:2], strict=True)]
    origins.append(f'[fields.age]\ncolumn = "{names[2]}"\nunit = "{"month" if months == 12 else "year"}"')
    origins.append(f'[fields.crea]\ncolumn = "{names[3]}"\nfactor = {1 / umol!r}')
    for one, own, texts, known in (
        ("sex", names[4], sexes, ("female", "male")),
        ("y", names[5], deaths, ("no", "yes")),
    ):
        codes = ", ".join(f'"{text}" = "{category}"' for text, category in zip(texts, known, strict=True))
        origins.append(f'[fields.{one}]\ncolumn = "{own}"\ncodes = {{ {codes} }}')
    (home / "mapping.toml").write_text("\n".join(origins) + "\n")
    (home / "policy.toml").write_text(POLICY.format(name))
    (home / "site.toml").write_text(
        f'name = "{name}"\ndata = "mapping.toml"\npolicy = "policy.toml"\nfolder = "state"\nlabels = "y"\n'
    )
    return home


def test_from_four_csv_files_to_a_report(tmp_path, capsys):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    agreed = {name: patients(i + 1) for i, name in enumerate(SITES)}
    homes = {name: write(tmp_path, name, columns) for name, columns in agreed.items()}

    # Mapping and readiness: each table has become what the study agreed on, and the row of somebody aged 999 is
    # left out, with its reason.
    ready = {name: readiness(read(home / "mapping.toml"), examples=10) for name, home in homes.items()}
    for name, found in ready.items():
        assert found.ready and (found.rows, found.used, found.people) == (161, 160, 80)
        assert dict(found.reasons) == {"'age' is outside of 18 to 110": 1}
        for field, x in read(homes[name] / "mapping.toml").columns.items():
            np.testing.assert_allclose(x, agreed[name][field], rtol=1e-12)
    assert main(["data", "check", str(homes["oslo"] / "site.toml")]) == 0

    # Training by the sums of all sites, on people who are not held out; evaluation on those who are.
    task = fc.models.logistic(features=3, classes=2)
    composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.2)))
    settings = {
        "batch_size": 16,
        "epochs": 1,
        "seed": SEED,
        "features": {"x": ["age", "crea", "sex"]},
        "held_out": SHARE,
    }
    with Federation(
        composed, [SiteFile.read(home / "site.toml") for home in homes.values()], prepare=[fc.preprocess.Standardise("x")],
        transport="in-process", folder=tmp_path / "coordinator", **settings,
    ) as federation:  # fmt: skip
        history = fc.fit(
            federation,
            2,
            fc.cohorts.everyone(4),
            tmp_path / "coordinator" / "run",
            progress=False,
            evaluate_every=2,
        )
        found = federation.evaluate(history.state)
        assert found.on == "held-out" and found.sizes.tolist() == [40, 40, 40, 40]
        _, losses = history.curve("loss")
        assert losses[-1] < losses[0]

        # Statistics of the people trained on, as of the pooled table; nothing that is not listed, and nobody singled
        # out.
        fit = stats.glm("I(y == 'yes') ~ age + crea + sex", federation, family="binomial")
        with pytest.raises(Paused, match="adds columns to one another"):
            stats.glm("crea ~ I(age + 1000 * (sex == 'male'))", federation)
        with pytest.raises(Paused, match="column 'patient'"):
            stats.glm("crea ~ patient", federation)
    pooled = stats.glm("I(y == 'yes') ~ age + crea + sex", training(agreed), family="binomial")
    assert fit.coefficients.keys() == pooled.coefficients.keys() and fit.rows == 480
    np.testing.assert_allclose(list(fit.coefficients.values()), list(pooled.coefficients.values()), rtol=1e-6)
    np.testing.assert_allclose(
        list(fit.standard_errors.values()), list(pooled.standard_errors.values()), rtol=1e-6
    )

    # The report, of the folder alone.
    flow = {
        name: {
            "rows in": one.rows,
            "left out": one.reasons,
            "people": one.people,
            "trained on": 120,
            "held out": 40,
        }
        for name, one in ready.items()
    }
    each = {
        name: {metric: values[i] for metric, values in found.clients.items()} for i, name in enumerate(SITES)
    }
    note(
        tmp_path,
        question="Who dies?",
        flow=flow,
        performance={"all": found.pooled, **each},
        statistics={"Logistic": fit.table()},
    )
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 2_000_000 and "http" not in text
    for said in (
        *SITES,
        "left out",
        "crea",
        "statistic",
        "adds columns to one another",
        "study, at every site",
        "data of oslo",
        "tables of 4 sites",
        "480 examples at 4 sites",
        "for the author",
    ):
        assert said in text
    assert "patient_" not in text and "9999" not in text
    left = [
        entry
        for entry in show(homes["mayo"] / "state" / "audit")
        if entry.what == "left" and entry.about["kind"] == "statistic"
    ]
    assert left and all("released" in entry.about and "rule.people" in entry.about for entry in left)


def training(agreed):
    """The rows of all sites that are not held out, as a simulation divides them."""
    clients = fc.Clients.from_list(list(agreed.values()), ids=list(agreed))
    return clients.split(1 - SHARE, seed=SEED, by="patient")[0].map(_texts)


def _texts(columns):
    return {
        **columns,
        "sex": np.array(["female", "male"])[columns["sex"]],
        "y": np.array(["no", "yes"])[columns["y"]],
    }
