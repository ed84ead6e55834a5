"""The readiness report says what a person has to do, and nothing where nothing is to be done."""

import numpy as np

from fedjax_core.cli import main
from tests.intake.test_reading import MAPPING, ROWS, SCHEMA, site

__all__ = ["site"]


def test_the_report_has_rows_by_reason_people_and_what_is_to_be_done(site, capsys):
    assert main(["data", "check", str(site / "mapping.toml")]) == 1
    said = capsys.readouterr()
    for line in (
        "rows in   8", "rows out  3, of 2 people", "left out      1  a duplicate", "outcome   no: 2, yes: 1",
        "TO DO  5 of 8 rows cannot be used, and the schema allows a share of 0.5 (max_bad)",
        "TO DO  'sex' has values that are none of its categories: say codes = {...} in the mapping 'x' (1)",
        "TO DO  'crea' has values that are no number: are they missing codes? 'high' (1)",
    ):  # fmt: skip
        assert line in said.out
    assert "not ready, 3 things are to be done" in said.err


def test_a_table_that_is_as_agreed_is_ready(site, capsys):
    good = "\n".join(ROWS.splitlines()[:4]) + "\n"
    (site / "patients.csv").write_text(good)
    assert main(["data", "check", str(site / "mapping.toml")]) == 0
    assert "ready: nothing is to be done" in capsys.readouterr().out


def test_another_unit_and_a_column_that_is_mostly_missing_are_pointed_out(site, capsys):
    rows = [f"{i},1,600,{80 + i},{'NA' if i < 8 else 80},180,m,{i % 2}" for i in range(20)]
    (site / "patients.csv").write_text("\n".join([ROWS.splitlines()[0], *rows]) + "\n")
    (site / "mapping.toml").write_text(MAPPING.replace("factor = 0.01131", ""))
    assert main(["data", "check", str(site / "mapping.toml")]) == 1
    said = capsys.readouterr().out
    assert (
        "'crea' looks like another unit" in said
        and "factor = 0.0" in said
        and "'bmi' is missing in 40% of the rows" in said
    )


def test_the_minimums_of_the_policy_are_asked_where_the_site_s_file_is_given(site, capsys):
    (site / "patients.csv").write_text("\n".join(ROWS.splitlines()[:4]) + "\n")
    (site / "site.toml").write_text('name = "oslo"\ndata = "mapping.toml"\npolicy = "policy.toml"\n')
    (site / "policy.toml").write_text('site = "oslo"\n[minimum]\nexamples = 10\nper_class = 2\n')
    assert main(["data", "check", str(site / "site.toml")]) == 1
    said = capsys.readouterr().out
    assert (
        "1 rows have 'died' = 'yes', and at least 2 are needed" in said
        and "3 rows can be used, and at least 10 are needed" in said
    )


def test_a_site_opens_the_mapping_that_its_file_names_with_its_persons(site):
    from fedjax_core.sites.site.held_out import PERSON
    from fedjax_core.sites.site.load import load_data
    from fedjax_core.sites.site_file import SiteFile

    (site / "schema.toml").write_text(SCHEMA.replace("max_bad = 0.5", "max_bad = 0.7"))
    (site / "site.toml").write_text('name = "oslo"\ndata = "mapping.toml"\n')
    found = load_data(SiteFile.read(site / "site.toml"), check=False)
    assert found.ids.tolist() == ["oslo"] and "patient" not in found.columns
    assert len(np.unique(found.columns[PERSON])) == 2


def test_a_category_that_is_missing_is_no_number_in_a_matrix(site):
    from fedjax_core.data.clients import Clients

    clients = Clients(
        {"sex": np.array([1, -1], np.int32), "age": np.ones(2)}, [0, 2], ["a"], categories={"sex": ("f", "m")}
    )
    np.testing.assert_array_equal(clients.arranged({"x": ["sex", "age"]}).columns["x"], [[1, 1], [np.nan, 1]])


def test_a_file_that_is_no_mapping_is_refused(site, capsys):
    (site / "site.toml").write_text('name = "oslo"\n')
    assert main(["data", "check", str(site / "site.toml")]) == 1
    assert "names no mapping as its data" in capsys.readouterr().err
