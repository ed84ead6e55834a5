"""Events over time become features by declared windows, as plain loops make them; FHIR resources become rows
or events by paths."""

import gzip
import json
from datetime import datetime, timedelta

import numpy as np
import pytest

from fedjax_core.cli import main
from fedjax_core.intake import Mapping, paths, read
from fedjax_core.intake.events import Events, Feature, features
from fedjax_core.intake.raw import Raw
from fedjax_core.intake.readiness import readiness

BEGIN = datetime(2020, 1, 1)
TAKES = {
    "mean": np.mean, "min": np.min, "max": np.max, "sum": np.sum, "first": lambda x: x[0], "last": lambda x: x[-1],
}  # fmt: skip


def events(seed, people=12, each=30):
    """Random events in random order; some people are never admitted, and some values are missing."""
    rng = np.random.default_rng(seed)
    rows = [(p, None, f"GENDER//{'FM'[p % 2]}", None) for p in range(people)]
    rows += [
        (p, BEGIN + timedelta(hours=int(h)), "ADMIT//WARD", None)
        for p in range(0, people, 3)
        for h in rng.integers(0, 48, 2)
    ]
    for p in range(people):
        times = rng.choice(200, each, replace=False)
        rows += [
            (
                p,
                BEGIN + timedelta(hours=int(h) - 60),
                f"LAB//{rng.choice(['A', 'B'])}",
                None if rng.random() < 0.2 else float(rng.normal()),
            )
            for h in times
        ]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    return dict(
        zip(("subject_id", "time", "code", "numeric_value"), map(list, zip(*rows, strict=True)), strict=True)
    )


@pytest.mark.parametrize("every", (False, True))
@pytest.mark.parametrize("seed", range(3))
def test_features_are_what_plain_loops_find(seed, every):
    table = events(seed)
    asked = {name: Feature(("LAB//A",), take=name, hours=(-24, 24)) for name in TAKES}
    asked |= {
        "count": Feature(("LAB//*",), take="count", hours=(0, 6)),
        "any": Feature(("LAB//B",), take="any", hours=(0, 6)),
    }
    asked |= {"sex": Feature(("GENDER//*",), take="code", static=True)}
    found = features(Raw(table), Events(asked, index="ADMIT*", every=every))
    rows = sorted(zip(*table.values(), strict=True), key=lambda row: (str(row[0]), row[1] or datetime.max))
    expected = []
    for person in sorted({str(row[0]) for row in rows}):
        own = [row[1:] for row in rows if str(row[0]) == person]
        starts = [time for time, code, _ in own if code.startswith("ADMIT")]
        for start in starts if every else starts[:1]:
            near = [
                (code, x)
                for time, code, x in own
                if time and timedelta(hours=-24) <= time - start < timedelta(hours=24)
            ]
            values = [x for code, x in near if code == "LAB//A" and x is not None]
            soon = [
                code
                for time, code, _ in own
                if time and timedelta(0) <= time - start < timedelta(hours=6) and "LAB" in code
            ]
            row = {name: take(values) if values else None for name, take in TAKES.items()}
            row |= {
                "person": person,
                "time": start.isoformat(),
                "count": len(soon),
                "any": int("LAB//B" in soon),
            }
            expected.append(row | {"sex": next(code for _, code, _ in own if code.startswith("GENDER"))})
    assert len(expected) == found.rows > 0
    for name, column in found.columns.items():
        for here, row in zip(column, expected, strict=True):
            assert here == (
                pytest.approx(row[name], rel=1e-12) if isinstance(row[name], float) else row[name]
            ), name


SCHEMA = """
name = "icu"
outcome = "died"
person = "patient"
time = "admitted"
max_bad = 0.2
[fields.patient]
kind = "text"
[fields.admitted]
kind = "text"
[fields.lactate]
range = [0, 30]
[fields.sex]
categories = ["female", "male"]
[fields.died]
categories = ["no", "yes"]
"""
FEATURES = """
[events]
index = "ICU*"
[events.features.lactate]
codes = ["LAB//lactate"]
hours = [0, 24]
take = "max"
[events.features.sex]
codes = ["GENDER//*"]
static = true
take = "code"
[events.features.died]
codes = ["MEDS_DEATH"]
hours = [24, 720]
take = "any"
[fields.patient]
column = "person"
[fields.admitted]
column = "time"
[fields.sex]
codes = { "GENDER//F" = "female", "GENDER//M" = "male" }
[fields.died]
codes = { 0 = "no", 1 = "yes" }
"""
ROWS = [
    (1, None, "GENDER//F", None), (1, BEGIN, "ICU//in", None), (1, BEGIN + timedelta(hours=1), "LAB//lactate", 2.5),
    (1, BEGIN + timedelta(hours=2), "LAB//lactate", 4.5), (1, BEGIN + timedelta(hours=24), "LAB//lactate", 9.0),
    (2, None, "GENDER//M", None), (2, BEGIN, "ICU//in", None), (2, BEGIN + timedelta(hours=30), "MEDS_DEATH", None),
    (2, BEGIN + timedelta(hours=90), "ICU//in", None), (3, BEGIN, "LAB//lactate", 1.0),
]  # fmt: skip


def meds(folder, rows):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    import pyarrow

    kinds = {
        "subject_id": "int64",
        "time": pyarrow.timestamp("us"),
        "code": "string",
        "numeric_value": "float32",
    }
    columns = {
        name: pyarrow.array(
            [row[i] for row in rows], kind if not isinstance(kind, str) else getattr(pyarrow, kind)()
        )
        for i, (name, kind) in enumerate(kinds.items())
    }
    (folder / "meds" / "data").mkdir(parents=True, exist_ok=True)
    (folder / "meds" / "metadata").mkdir(exist_ok=True)
    for k, part in enumerate((slice(0, 5), slice(5, None))):
        parquet.write_table(
            pyarrow.table({n: x[part] for n, x in columns.items()}), folder / "meds" / "data" / f"{k}.parquet"
        )
    parquet.write_table(pyarrow.table({"code": ["ICU//in"]}), folder / "meds" / "metadata" / "codes.parquet")


@pytest.fixture
def site(tmp_path):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    (tmp_path / "mapping.toml").write_text(f'schema = "schema.toml"\nsource = "meds"\n{FEATURES}')
    return tmp_path


def check(found):
    assert found.columns["patient"].tolist() == ["1", "2"] and found.columns["sex"].tolist() == [0, 1]
    assert (
        found.columns["died"].tolist() == [0, 1]
        and found.columns["admitted"].tolist() == ["2020-01-01T00:00:00"] * 2
    )
    np.testing.assert_array_equal(found.columns["lactate"], [4.5, np.nan])


def test_a_meds_data_set_becomes_a_row_a_person_and_bad_events_are_counted(site, capsys):
    meds(site, ROWS)
    check(read(site / "mapping.toml"))
    meds(site, [*ROWS, (None, BEGIN, "LAB//lactate", 1.0), (1, BEGIN, None, 1.0)])
    found = read(site / "mapping.toml")
    check(found)
    assert (
        dict(found.raw.left_out) == {"an event of no person": 1, "an event without a code": 1}
        and found.raw.records == 12
    )
    assert readiness(found).people == 2 and found.clients.examples == 2
    assert main(["data", "check", str(site / "mapping.toml")]) == 1  # lactate is missing in half of the rows
    said = capsys.readouterr().out
    for line in (
        "records   12",
        "1  an event of no person",
        "event 10: an event of no person",
        "1 of 3 people have no event 'ICU*', and no row",
    ):
        assert line in said


def test_more_bad_events_than_the_schema_allows_are_an_error(site):
    meds(site, [*ROWS, *[(None, BEGIN, "LAB", 1.0)] * 4])
    with pytest.raises(
        ValueError,
        match=r"4 of 14 records cannot be used, a share of 0.286, .* 0.2 \(max_bad\): an event of no person: 4",
    ):
        _ = read(site / "mapping.toml").clients


def test_a_file_without_events_is_named(site):
    meds(site, ROWS)
    (site / "meds" / "data" / "0.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match=r"0.parquet cannot be read"):
        read(site / "mapping.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('take = "max"', 'take = "median"', "events.features.lactate: take is 'median'"),
        ("hours = [0, 24]", "hours = [24, 0]", "hours is"),
        ("hours = [0, 24]", "", "features.lactate says no window"),
        ('index = "ICU*"', "", "there is no index"),
        ('codes = ["LAB//lactate"]', "codes = []", "codes = "),
        ("[events.features.lactate]", "[events.features.person]", "the name is taken"),
        ('index = "ICU*"', 'index = "ICU*"\nwindow = 3', "'window' is no setting here"),
    ],
)
def test_what_is_wrong_in_the_features_is_named(site, old, new, said):
    (site / "mapping.toml").write_text((site / "mapping.toml").read_text().replace(old, new))
    with pytest.raises(ValueError, match=said):
        Mapping.read(site / "mapping.toml")


RECORDS = """
[[records]]
resource = "Patient"
[records.columns]
subject_id = "id"
code = "'GENDER//' & gender.replace('female', 'F').replace('male', 'M')"
[[records]]
resource = "Encounter"
where = "class.code = 'ICU'"
[records.columns]
subject_id = "subject.reference.replace('Patient/', '')"
time = "period.start"
code = "'ICU//in'"
[[records]]
resource = "Observation"
where = "code.coding.where(system = 'http://loinc.org').code = '2524-7'"
[records.columns]
subject_id = "subject.reference.replace('Patient/', '')"
time = "effectiveDateTime"
code = "'LAB//lactate'"
numeric_value = "value.ofType(Quantity).value"
"""


def export(folder, extra=()):
    """The same people as `ROWS`, as a bulk export has them."""
    of = [
        {"resourceType": "Patient", "id": str(i), "gender": g}
        for i, g in ((1, "female"), (2, "male"), (3, "male"))
    ]
    of += [
        {
            "resourceType": "Encounter",
            "class": {"code": code},
            "subject": {"reference": f"Patient/{i}"},
            "period": {"start": when},
        }
        for i, code, when in (
            (1, "ICU", "2020-01-01T01:00:00+01:00"),
            (2, "ICU", "2020-01-01"),
            (3, "AMB", "2020-01-01"),
        )
    ]
    coding = [{"system": "urn:own", "code": "x"}, {"system": "http://loinc.org", "code": "2524-7"}]
    of += [
        {"resourceType": "Observation", "subject": {"reference": f"Patient/{i}"}, "code": {"coding": coding}, "effectiveDateTime": when,
         "valueQuantity": {"value": value, "unit": "mmol/L"}}
        for i, when, value in ((1, "2020-01-01T01:00:00Z", 2.5), (1, "2020-01-01T02:00:00Z", 4.5), (3, "2020-01-01T02:00:00Z", 1.0))
    ]  # fmt: skip
    (folder / "fhir").mkdir(exist_ok=True)
    (folder / "fhir" / "a.ndjson").write_text("".join(f"{json.dumps(one)}\n" for one in of[:5]))
    with gzip.open(folder / "fhir" / "b.ndjson.gz", "wt") as file:
        file.write(
            "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in [*of[5:], *extra])
        )


def test_resources_become_events_and_features_of_people(site):
    export(site)
    (site / "mapping.toml").write_text(f'schema = "schema.toml"\nsource = "fhir"\n{RECORDS}{FEATURES}')
    found = read(site / "mapping.toml")
    assert found.columns["patient"].tolist() == ["1", "2"] and found.columns["sex"].tolist() == [0, 1]
    assert found.columns["admitted"].tolist() == ["2020-01-01T00:00:00"] * 2
    np.testing.assert_array_equal(found.columns["lactate"], [4.5, np.nan])


PATIENTS = """
schema = "schema.toml"
source = "fhir"
[[records]]
resource = "Patient"
[records.columns]
patient = "id"
sex = "gender"
died = "deceased.ofType(Boolean)"
[fields.died]
codes = { true = "yes", false = "no" }
[fields.sex]
"""


def test_resources_become_rows_and_lines_that_cannot_be_used_are_counted_and_named(site, capsys):
    (site / "schema.toml").write_text(
        'name = "s"\nperson = "patient"\nmax_bad = 0.3\n[fields.patient]\nkind = "text"\n[fields.sex]\ncategories = ["female", "male"]\n'
        '[fields.died]\ncategories = ["no", "yes"]\n'
    )
    patient = {"resourceType": "Patient", "id": "4", "gender": "female", "deceasedBoolean": True}
    export(
        site,
        extra=[
            "{cut short",
            '"text"',
            {**patient, "gender": ["male", "female"]},
            {**patient, "gender": {"code": "f"}},
            patient,
        ],
    )
    (site / "mapping.toml").write_text(PATIENTS)
    found = read(site / "mapping.toml")
    assert found.columns["sex"].tolist() == [0, 1, 1, 0] and found.columns["died"].tolist() == [-1, -1, -1, 1]
    assert dict(found.raw.left_out) == {
        "a line that is no JSON": 1, "a line that is no resource": 1,
        "'sex' has more than one value: say which, with where(...) or first()": 1,
        "'sex' is no number or text: its path ends too early": 1,
    }  # fmt: skip
    main(["data", "check", str(site / "mapping.toml")])
    assert "b.ndjson.gz, line 5: a line that is no JSON" in capsys.readouterr().out
    (site / "schema.toml").write_text((site / "schema.toml").read_text().replace("0.3", "0.25"))
    with pytest.raises(ValueError, match=r"4 of 14 records cannot be used"):
        _ = read(site / "mapping.toml").clients


RESOURCE = {
    "resourceType": "Patient", "id": "p1", "active": True,
    "name": [{"given": ["Ann", "Bo"], "use": "usual"}, {"given": ["Cy"], "use": "old"}],
    "link": [], "contact": [{"telecom": [{"system": "phone", "value": "1"}, {"system": "email", "value": "a@b"}]}],
    "deceasedBoolean": False, "multipleBirthInteger": 2,
}  # fmt: skip
PATHS = (
    ("id", ["p1"]),
    ("Patient.id", ["p1"]),
    ("name.given", ["Ann", "Bo", "Cy"]),
    ("name[0].given", ["Ann", "Bo"]),
    ("name.given[2]", ["Cy"]),
    ("name.given.first()", ["Ann"]),
    ("name.given.last()", ["Cy"]),
    ("name.where(use = 'old').given", ["Cy"]),
    ("name.where(use != 'old').given", ["Ann", "Bo"]),
    ("contact.telecom.where(system = 'email').value", ["a@b"]),
    ("link.exists()", [False]),
    ("name.exists()", [True]),
    ("name.count()", [2]),
    ("name.where(use = 'old').exists()", [True]),
    ("active.not()", [False]),
    ("'a' & id", ["ap1"]),
    ("id & '-' & name[1].use", ["p1-old"]),
    ("nothing", []),
    ("nothing.deeper", []),
    ("nothing = 'x'", []),
    ("id = 'p1'", [True]),
    ("id.replace('p', 'q')", ["q1"]),
    ("name[1].given = 'Cy'", [True]),
    ("name.given = 'Cy'", [False]),
    ("active = true", [True]),
    ("multipleBirth.ofType(integer)", [2]),
)


@pytest.mark.parametrize(("path", "expected"), PATHS)
def test_a_path_finds_what_the_language_says(path, expected):
    assert paths.values(paths.parse(path), RESOURCE) == expected


@pytest.mark.parametrize(
    "path",
    (
        "",
        "a.",
        "a..b",
        "a[",
        "a[x]",
        "a.where()",
        "a.where(b = ",
        "a b",
        "a.resolve()",
        "a ~ b",
        "a.replace(b, c)",
    ),
)
def test_a_path_that_is_not_understood_is_refused(path):
    with pytest.raises(ValueError, match="no path that is understood"):
        paths.parse(path)
