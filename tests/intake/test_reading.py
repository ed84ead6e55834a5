"""Hospitals' own tables become a study's fields: names, units, codes and expressions, and every row that is
left out has a reason."""

import sys
import types

import numpy as np
import pytest

from fedjax_core.intake import Mapping, Schema, read
from fedjax_core.intake.reading import fields_of
from fedjax_core.intake.units import convert, suspects

SCHEMA = """
name = "icu"
outcome = "died"
person = "patient"
time = "day"
max_bad = 0.5
[fields.patient]
kind = "text"
[fields.day]
kind = "whole"
[fields.age]
unit = "year"
range = [18, 110]
missing = [999]
[fields.crea]
unit = "mg/dL"
range = [0.1, 25]
[fields.bmi]
range = [10, 80]
[fields.sex]
categories = ["female", "male"]
[fields.died]
categories = ["no", "yes"]
"""
MAPPING = """
schema = "schema.toml"
source = "patients.csv"
[fields.patient]
column = "nr"
[fields.age]
column = "alter_monate"
unit = "month"
[fields.crea]
column = "krea"
factor = 0.01131
[fields.bmi]
expression = "kg / (cm / 100) ** 2"
[fields.sex]
column = "geschlecht"
codes = { w = "female", m = "male" }
[fields.died]
codes = { 0 = "no", 1 = "yes" }
"""
ROWS = """nr,day,alter_monate,krea,kg,cm,geschlecht,died
01,1,732,88.42,80,200,w,0
01,2,732,NA,80,200,w,1
02,1,999,176.84,45,150,m,0
02,1,600,88.42,45,150,m,0
03,1,24,88.42,45,150,m,0
04,1,600,88.42,45,150,x,0
05,1,600,88.42,45,150,m,
06,1,600,high,45,150,m,1
"""


@pytest.fixture
def site(tmp_path):
    for name, text in (("schema.toml", SCHEMA), ("mapping.toml", MAPPING), ("patients.csv", ROWS)):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_table_of_other_names_units_and_codes_becomes_the_fields_and_each_row_left_out_has_a_reason(site):
    found = read(site / "mapping.toml")
    np.testing.assert_allclose(found.columns["age"], [61, 61, np.nan])  # 732 months; the code 999 is no age
    np.testing.assert_allclose(found.columns["crea"], [1, np.nan, 2], rtol=1e-4)
    np.testing.assert_allclose(found.columns["bmi"], [20, 20, 20])
    assert found.columns["sex"].tolist() == [0, 0, 1] and found.columns["died"].tolist() == [0, 1, 0]
    assert found.columns["patient"].tolist() == ["01", "01", "02"]
    assert dict(found.reasons) == {
        "a duplicate": 1, "'age' is outside of 18 to 110": 1, "'sex' is none of its categories": 1, "'died' is missing": 1,
        "'crea' is no number": 1,
    }  # fmt: skip
    assert found.strange["sex"] == {"x": 1} and found.strange["crea"] == {"high": 1}
    assert sum(found.reasons.values()) + len(found.columns["age"]) == len(found.bad)


def test_more_rows_that_cannot_be_used_than_the_schema_allows_are_an_error_with_their_reasons(site):
    with pytest.raises(
        ValueError,
        match=r"5 of 8 rows cannot be used, a share of 0.625, .* 0.5 \(max_bad\): .*'crea' is no number: 1",
    ):
        _ = read(site / "mapping.toml").clients
    (site / "schema.toml").write_text(SCHEMA.replace("max_bad = 0.5", "max_bad = 0.7"))
    clients = read(site / "mapping.toml").clients
    assert clients.examples == 3 and clients.categories["sex"] == ("female", "male")


def test_numbers_of_a_csv_file_parquet_and_npz_are_the_same_fields(site):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    import pyarrow

    rows = [line.split(",") for line in ROWS.strip().splitlines()[1:4]]
    columns = dict(zip(ROWS.splitlines()[0].split(","), zip(*rows, strict=True), strict=True))
    typed = {
        name: [None if v == "NA" else float(v) for v in x] if name not in ("nr", "geschlecht") else list(x)
        for name, x in columns.items()
    }
    parquet.write_table(pyarrow.table(typed), site / "patients.parquet")
    np.savez(
        site / "patients.npz",
        **{n: np.array(x if n in ("nr", "geschlecht") else np.array(x, float)) for n, x in typed.items()},
    )
    expected = {name: x[:3] for name, x in read(site / "mapping.toml").columns.items()}
    for kind in ("parquet", "npz"):
        (site / "mapping.toml").write_text(MAPPING.replace("patients.csv", f"patients.{kind}"))
        found = read(site / "mapping.toml").columns
        for name, x in expected.items():
            np.testing.assert_array_equal(found[name], x)


def test_a_query_runs_in_duckdb_or_says_how_to_get_it(site, monkeypatch):
    text = MAPPING.replace('source = "patients.csv"', 'query = "SELECT * FROM patients"')
    (site / "mapping.toml").write_text(text)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"pip install 'fedjax-core\[duckdb\]'"):
        read(site / "mapping.toml")


def test_duckdb_reads_a_csv_file_by_a_query(site, monkeypatch):
    pytest.importorskip("duckdb", reason="the extra duckdb is not installed")
    query = f"SELECT * FROM read_csv('{site / 'patients.csv'}', all_varchar = true)"
    (site / "mapping.toml").write_text(MAPPING.replace('source = "patients.csv"', f'query = "{query}"'))
    found, expected = read(site / "mapping.toml"), None
    (site / "mapping.toml").write_text(MAPPING)
    expected = read(site / "mapping.toml")
    assert (
        found.reasons == expected.reasons
        and found.columns["patient"].tolist() == expected.columns["patient"].tolist()
    )


@pytest.mark.parametrize(
    ("schema", "mapping", "said"),
    [
        ("", '[fields.weight]\ncolumn = "kg"', "fields.weight, and the schema has no such field"),
        ("", "x = 1", "'x' is no setting here"),
        ("[fields.crp]", "", "no column 'crp' for the field 'crp'; it has nr, day"),
        ('[fields.crp]\nunits = "mg"', "", "fields.crp: 'units' is no setting here"),
        ('[fields.crp]\nkind = "date"', "", "kind is 'date'"),
        ("[fields.crp]\nrange = [3, 1]", "", r"range is \[least, most\]"),
        ("[fields.crp]", '[fields.crp]\nexpression = "open(1)"', "is not understood"),
        (
            "[fields.crp]",
            '[fields.crp]\ncolumn = "kg"\nunit = "kg"\nfactor = 2.0',
            "unit says how to convert",
        ),
        ('[fields.crp]\nunit = "mg/L"', '[fields.crp]\ncolumn = "kg"\nunit = "umol/L"', "give factor"),
    ],
)
def test_what_is_wrong_in_a_schema_or_a_mapping_is_named(site, schema, mapping, said):
    (site / "schema.toml").write_text(f"{SCHEMA}\n{schema}\n")
    (site / "mapping.toml").write_text(
        f"{mapping}\n{MAPPING}" if mapping.startswith("x") else f"{MAPPING}\n{mapping}\n"
    )
    with pytest.raises(ValueError, match=said):
        read(site / "mapping.toml")


def test_an_expression_reads_numbers_and_compares_text_and_a_truth_value_is_a_category():
    schema = Schema.of(
        {"name": "s", "max_bad": 0.0, "fields": {"old": {"categories": ["no", "yes"]}, "dose": {}}}
    )
    origins = {
        "old": {"expression": "age > 60", "codes": {"0": "no", "1": "yes"}},
        "dose": {"expression": "mg * (unit == 'mg') + 1000 * mg * (unit == 'g')"},
    }
    mapping = Mapping.of({"schema": "s", "source": "a", "fields": origins})
    found = fields_of(
        {"age": [61, None, 50], "mg": ["5", "2", "1"], "unit": ["mg", "g", ""]}, mapping, schema
    )
    assert found.columns["old"].tolist() == [1, -1, 0]
    np.testing.assert_array_equal(found.columns["dose"], [5, 2000, np.nan])


def test_units_of_one_dimension_are_converted_and_others_are_not():
    for value, given, wanted, expected in (
        (1.0, "lb", "kg", 0.45359237),
        (100.0, "C", "F", 212.0),
        (2.0, "year", "day", 730.5),
    ):
        assert convert(np.array([value]), given, wanted)[0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="'kg' is of mass, and 'cm' of length"):
        convert(np.ones(1), "kg", "cm")


def test_a_column_in_another_unit_is_suspected_and_one_with_a_few_odd_values_is_not():
    crea = np.random.default_rng(0).gamma(4, 0.3, 200)
    assert [said for _, said in suspects(88.42 * crea, 0.1, 15.0)] and "umol/L" in suspects(
        88.42 * crea, 0.1, 15.0
    )[-1][1] + str(suspects(88.42 * crea, 0.1, 15.0))
    assert suspects(np.append(crea, [500.0] * 20), 0.1, 15.0) == []


def test_the_module_of_duckdb_is_only_needed_for_a_query(site, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", types.ModuleType("duckdb"))
    assert read(site / "mapping.toml").share == 0.625
