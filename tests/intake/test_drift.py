"""A site's columns beside the sums of all sites: the standardised difference and PSI of their definitions, and no alarm by chance."""

import math

import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.cli import main
from fedjax_core.intake import Reference, Schema
from fedjax_core.intake.drift import Known, of_category, of_number
from fedjax_core.intake.mapping import Mapping
from fedjax_core.intake.readiness import readiness
from fedjax_core.intake.reading import fields_of
from tests.intake.test_reading import ROWS, SCHEMA, site

__all__ = ["site"]

SMALL = Schema.of(
    {
        "name": "s",
        "fields": {"kg": {"unit": "kg"}, "sex": {"categories": ["female", "male"]}, "day": {"kind": "whole"}},
    }
)


@pytest.fixture
def clients():
    """Three hospitals alike, whose weights have mean 75 and sd 12."""
    draw = np.random.default_rng(4)
    columns = {
        "site": np.repeat(["a", "b", "c"], 200),
        "kg": draw.normal(75, 12, 600),
        "sex": draw.integers(0, 2, 600),
    }
    return fc.Clients.from_table(columns | {"sex": np.array(["female", "male"])[columns["sex"]]}, by="site")


@pytest.fixture
def reference(clients, tmp_path):
    first = fc.stats.table_one(clients, ["kg", "sex"])
    found = Reference.of(SMALL, first, {"kg": fc.stats.histogram(clients, "kg", [40, 60, 70, 80, 90, 120])})
    found.write(tmp_path / "federation.toml")
    assert Reference.read(tmp_path / "federation.toml") == found
    return found


def table(kg, male):
    sex = np.where(np.arange(len(kg)) < male, "male", "female")
    return fields_of(
        {"kg": kg, "sex": sex, "day": np.ones(len(kg))}, Mapping.of({"schema": "s", "source": "a"}), SMALL
    )


def test_drift_is_the_definition_over_the_pooled_rows(clients, reference):
    kg = np.random.default_rng(5).normal(88, 15, 90)
    found = readiness(table(kg, 30), reference=reference)
    pooled = clients.columns["kg"]
    difference = (kg.mean() - pooled.mean()) / np.sqrt((kg.var(ddof=1) + pooled.var(ddof=1)) / 2)
    assert found.drift["kg"].difference == pytest.approx(difference, rel=1e-12)
    edges = [-np.inf, 40, 60, 70, 80, 90, 120, np.inf]
    then, now = np.histogram(pooled, edges)[0], np.histogram(kg, edges)[0]
    then, now = (then + 0.5, now + 0.5) if not (then * now).all() else (then, now)
    p, q = then / then.sum(), now / now.sum()
    assert found.drift["kg"].psi == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-12)
    theirs = (clients.columns["sex"] == clients.categories["sex"].index("male")).mean()
    of_sex = (1 / 3 - theirs) * (np.log(1 / 3 / theirs) - np.log((2 / 3) / (1 - theirs)))
    assert found.drift["sex"].psi == pytest.approx(of_sex, rel=1e-12) and math.isnan(
        found.drift["sex"].difference
    )
    assert found.ready and len(found.look) == 1 and "'kg' is unlike all sites" in found.text()


def test_another_quantity_is_to_be_mended_and_the_same_is_no_drift(clients, reference):
    assert readiness(table(clients[0]["kg"], 100), reference=reference).look == ()
    pounds = readiness(table(clients[0]["kg"] * 2.2, 100), reference=reference)
    assert not pounds.ready and "is it the same quantity, in kg?" in pounds.to_do[0] and pounds.look == ()
    constant = readiness(table(np.full(20, 75.0), 10), reference=reference)
    assert constant.drift["kg"].large  # by its spread alone: all in one bin


def test_of_small_sites_that_are_alike_about_as_many_are_pointed_out_as_chance_says():
    draw, there = np.random.default_rng(0), Known(count=5000, mean=0.0, sd=1.0)
    few = [of_number(draw.normal(size=8), there).large for _ in range(2000)]
    assert (
        0.02 < np.mean(few) < 0.09
    )  # t for z, and spread of the site's own, make it a little more than 0.05
    assert np.mean([of_number(draw.normal(size=200), there).large for _ in range(300)]) == 0
    levels = Known(categories={"a": 2500, "b": 1500, "c": 1000})
    drawn = [
        dict(zip("abc", draw.multinomial(30, [0.5, 0.3, 0.2]).tolist(), strict=True)) for _ in range(2000)
    ]
    assert np.mean([of_category(one, levels).large for one in drawn]) < 0.07


def test_the_command_says_what_differs_and_refuses_sums_of_another_schema(site, capsys, tmp_path):
    (site / "patients.csv").write_text("\n".join(ROWS.splitlines()[:4]) + "\n")
    schema = Schema.read(site / "schema.toml")
    there = {"age": Known(count=900, mean=20.0, sd=3.0), "died": Known(categories={"no": 300, "yes": 100})}
    Reference(schema.digest, there).write(tmp_path / "federation.toml")
    command = ["data", "check", str(site / "mapping.toml"), "--federation", str(tmp_path / "federation.toml")]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "sd from all sites" in out and "'age' is +" in out and "in year?" in out
    (site / "schema.toml").write_text(SCHEMA.replace("[18, 110]", "[18, 111]"))
    assert main(command) == 1
    assert "are of another schema" in capsys.readouterr().err


def test_what_is_no_reference_is_refused(clients, tmp_path):
    with pytest.raises(ValueError, match="table_one without by="):
        Reference.of(SMALL, fc.stats.table_one(clients, ["kg"], by="sex"))
    with pytest.raises(ValueError, match="'site' is no field of the schema"):
        Reference.of(SMALL, fc.stats.table_one(clients, ["site"]))
    (tmp_path / "a.toml").write_text('schema = "x"\n[fields.kg]\nedges = [1.0, 2.0]\nbins = [3, 4]\n')
    with pytest.raises(ValueError, match="2 edges go with 3 bins"):
        Reference.read(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text('schema = "x"\n[fields.kg]\nmena = 3.0\n')
    with pytest.raises(ValueError, match="'mena' is no setting here"):
        Reference.read(tmp_path / "a.toml")
