"""Intensive care: what is read of a file, that nobody who is judged was learned from, and the whole study
where its data are."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

HEAD = [
    "hospitalid",
    "region",
    "unitvisitnumber",
    "apachescore",
    "actualhospitalmortality",
    "age",
    "acutephysiologyscore",
    "admissionheight",
    "admissionweight",
    "gender",
    "predictedhospitalmortality",
]


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import eicu

        yield eicu


@pytest.fixture
def columns(study, tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    # 600 cm, and no weight
    rows = [["1", "South", "1", "50", "ALIVE", "> 89", "40", "600", "", "Male", "-1"]]
    # not the first stay
    rows += [["1", "South", "2", "50", "EXPIRED", "70", "40", "170", "70", "Male", "0.2"]]
    rows += [["1", "South", "1", "", "EXPIRED", "70", "40", "170", "70", "Male", "0.2"]]  # no score
    for i in range(120):
        died = "EXPIRED" if draw.uniform() < 0.3 else "ALIVE"
        some = [
            f"{draw.normal(60, 10):.0f}",
            f"{draw.normal(50, 15):.0f}",
            f"{draw.normal(170, 8):.0f}",
            f"{draw.normal(75, 9):.0f}",
        ]
        rows.append([str(i % 6 + 2), "West", "1", "50", died, *some, "Female" if i % 3 else "Male", "0.1"])
    (tmp_path / "eicu_demo").mkdir()
    with (tmp_path / "eicu_demo" / "patient.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([HEAD, *rows])
    monkeypatch.setenv("FEDJAX_CORE_DATA", str(tmp_path))
    return study.read()


def test_first_stays_with_a_score_are_read_and_what_cannot_be_is_missing(columns):
    assert len(columns["died"]) == 121
    assert columns["age"][0] == 89
    assert np.isnan([columns[name][0] for name in ("height", "weight", "apache")]).all()


def test_nobody_who_is_judged_was_learned_from(study, columns):
    test = columns["hospital"] % 2 == 0
    other = columns | {"died": np.where(test, 1 - columns["died"], columns["died"])}
    np.testing.assert_array_equal(study.unseen(columns, test), study.unseen(other, test))


@pytest.mark.slow  # a minute
@pytest.mark.skipif("FEDJAX_CORE_DATA" not in os.environ, reason="the data are in $FEDJAX_CORE_DATA")
def test_hospitals_that_were_never_seen_have_an_auroc_of_78_at_least(study, tmp_path, capsys):
    assert study.main(study.Settings(figure=tmp_path / "eicu.png")) == 0
    said = capsys.readouterr().out
    assert "hospitals that can fit the model alone: 0" in said and "every fourth hospital | 0.800" in said
    assert (tmp_path / "eicu.png").stat().st_size > 10_000
