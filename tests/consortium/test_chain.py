"""The whole chain: four hospitals' CSV files of differing names, units and texts become one study with DP-SGD, its
AUROC on held-out people, its statistics and its report."""

import csv

import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import stats
from fedjax_core.cli import main
from fedjax_core.clinical import counted, intervals, ranks
from fedjax_core.intake import Reference, Schema, read
from fedjax_core.intake.readiness import readiness
from fedjax_core.report import note
from fedjax_core.sites.audit import show
from fedjax_core.sites.federation import Federation, Paused
from fedjax_core.sites.site_file import SiteFile

SHARE, SEED, ROUNDS, BATCH = 0.25, 3, 8, 180
PEOPLE = 240  # at each site, of two visits each
EDGES = np.array([0, 0.45, 0.6, 1.0])  # as wide as minimum.cell wants them
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
fields = ["weight", "examples", "data", "loss", "accuracy", "moments", "statistics", COUNTS]
[statistics]
columns = ["age", "crea", "sex", "y"]
minimum = 5
"""


COUNTS = ", ".join(f'"{name}"' for name in counted.names(EDGES))


def patients(seed, n=2 * PEOPLE):
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
    (home / "policy.toml").write_text(POLICY.format(name).replace("COUNTS", COUNTS))
    (home / "site.toml").write_text(
        f'name = "{name}"\ndata = "mapping.toml"\npolicy = "policy.toml"\nfolder = "state"\nlabels = "y"\n'
    )
    return home


@pytest.mark.parametrize("transport", ["in-process", pytest.param("ray", marks=pytest.mark.slow)])
def test_from_four_csv_files_to_a_report(tmp_path, capsys, transport):
    if transport == "ray":
        pytest.importorskip("ray", reason="site processes run under Ray, which is not installed")
    (tmp_path / "schema.toml").write_text(SCHEMA)
    agreed = {name: patients(i + 1) for i, name in enumerate(SITES)}
    homes = {name: write(tmp_path, name, columns) for name, columns in agreed.items()}

    # Mapping and readiness: each table has become what the study agreed on, and the row of somebody aged 999 is
    # left out, with its reason.
    ready = {name: readiness(read(home / "mapping.toml"), examples=10) for name, home in homes.items()}
    for name, found in ready.items():
        assert found.ready and (found.rows, found.used, found.people) == (2 * PEOPLE + 1, 2 * PEOPLE, PEOPLE)
        assert dict(found.reasons) == {"'age' is outside of 18 to 110": 1}
        for field, x in read(homes[name] / "mapping.toml").columns.items():
            np.testing.assert_allclose(x, agreed[name][field], rtol=1e-12)
    assert main(["data", "check", str(homes["oslo"] / "site.toml")]) == 0

    # Training by DP-SGD, on columns made alike by the sums of all sites and on people who are not held out.
    task = counted.counting(fc.models.logistic(features=3, classes=2), EDGES)
    private = fc.privacy.example_level(clip=1.0, noise=4.0, batch_size=BATCH, rounds=ROUNDS, delta=1e-4)
    composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.5), gradient=private.gradient))
    settings = {
        **private.plan,
        "seed": SEED,
        "features": {"x": ["age", "crea", "sex"]},
        "held_out": SHARE,
    }
    with Federation(
        composed, [site_file(name, home, transport) for name, home in homes.items()], prepare=[fc.preprocess.Standardise("x")],
        transport=transport, folder=tmp_path / "coordinator", **settings, **({"insecure_local": True} if transport == "ray" else {}),
    ) as federation:  # fmt: skip
        history = fc.fit(
            federation,
            ROUNDS,
            fc.cohorts.everyone(4),
            tmp_path / "coordinator" / "run",
            progress=False,
            evaluate_every=ROUNDS,
        )
        found = federation.evaluate(history.state)
        held = int(2 * PEOPLE * SHARE)
        assert found.on == "held-out" and found.sizes.tolist() == [held] * 4
        _, losses = history.curve("loss")
        assert losses[-1] < losses[0]

        # Evaluation of held-out people by counts: the AUROC lies where that of their own risks lies, which no site tells.
        people = counted.of(found, EDGES, federation.site_names)
        auroc = intervals.delong(people.together)
        risks = held_out(agreed, history.state.params)
        counts = {name: ranks.counts(*one, EDGES) for name, one in risks.items()}
        few = {name for name, one in counts.items() if any(0 < n < 5 for n in np.concatenate(one))}
        assert set(people.without) == few and len(few) < 4  # the noise of DP-SGD is another in each run
        told = [np.concatenate(x) for x in zip(*(risks[name] for name in people.each), strict=True)]
        sure = ranks.auroc(ranks.counts(*told, ranks.levels([told[1]])), exact=True).value
        bound = ranks.auroc(people.together)
        assert bound.low <= sure <= bound.high and sure > 0.6
        assert private.epsilon() < 12

        # What the sites are like together, by which each sees where it differs: nowhere, as all were drawn alike.
        schema, first = (
            Schema.read(tmp_path / "schema.toml"),
            stats.table_one(federation, ["age", "crea", "sex", "y"]),
        )
        Reference.of(schema, first).write(tmp_path / "federation.toml")
        assert first.groups == {"": 4 * (2 * PEOPLE - held)}

        # Statistics of the people trained on, as of the pooled table; nothing that is not listed, and nobody singled
        # out.
        fit = stats.glm("I(y == 'yes') ~ age + crea + sex", federation, family="binomial")
        with pytest.raises(Paused, match="adds columns to one another"):
            stats.glm("crea ~ I(age + 1000 * (sex == 'male'))", federation)
        with pytest.raises(Paused, match="column 'patient'"):
            stats.glm("crea ~ patient", federation)
    pooled = stats.glm("I(y == 'yes') ~ age + crea + sex", training(agreed), family="binomial")
    assert fit.coefficients.keys() == pooled.coefficients.keys() and fit.rows == 4 * (2 * PEOPLE - held)
    np.testing.assert_allclose(list(fit.coefficients.values()), list(pooled.coefficients.values()), rtol=1e-6)
    np.testing.assert_allclose(
        list(fit.standard_errors.values()), list(pooled.standard_errors.values()), rtol=1e-6
    )

    capsys.readouterr()
    command = [
        "data",
        "check",
        str(homes["oslo"] / "site.toml"),
        "--federation",
        str(tmp_path / "federation.toml"),
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count("sd from all sites") == 2 and out.count("PSI") == 2 and "LOOK" not in out

    # The report, of the folder alone.
    flow = {
        name: {
            "rows in": one.rows,
            "left out": one.reasons,
            "people": one.people,
            "trained on": 2 * PEOPLE - held,
            "held out": held,
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
        performance={"all": found.pooled | {"auroc": [auroc.value, auroc.low, auroc.high]}, **each},
        statistics={"Logistic": fit.table()},
        privacy={
            "epsilon": private.epsilon(),
            "delta": private.delta,
            "rounds": ROUNDS,
            "of": "one visit, at each site",
        },
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
        f"{4 * (2 * PEOPLE - held)} examples at 4 sites",
        "one visit, at each site",
        f"epsilon {private.epsilon():.4g} after {ROUNDS} rounds",
        "rounds that were planned",
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


def site_file(name, home, transport):
    """The site's own file; for processes of a Ray that the federation starts itself, the same made in Python."""
    if transport == "in-process":
        return SiteFile.read(home / "site.toml")
    return SiteFile(
        name=name, data=home / "mapping.toml", policy=home / "policy.toml", folder=home / "state", labels="y"
    )


def held_out(agreed, params):
    """{site: (outcome, risk)} of the held-out people: plain numpy on the pooled table."""
    train, test = fc.Clients.from_list(list(agreed.values()), ids=list(agreed)).split(
        1 - SHARE, seed=SEED, by="patient"
    )
    x, of = (
        np.stack([part.columns[name].astype(float) for name in ("age", "crea", "sex")], axis=1)
        for part in (test, train)
    )
    logits = (x - of.mean(0)) / of.std(0) @ np.asarray(params["w"], float) + np.asarray(params["b"], float)
    risk = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    cuts = test.offsets[1:-1]
    return dict(
        zip(agreed, zip(np.split(test.columns["y"], cuts), np.split(risk, cuts), strict=True), strict=True)
    )


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
