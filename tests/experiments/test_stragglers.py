"""The study of stragglers: who does how much in each round, and its quick form."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import stragglers

        yield stragglers


def test_one_client_in_ten_does_all_and_the_others_some(study):
    settings = study.Settings()
    work = study.Work(3, settings)
    for round in range(5):
        cohort = np.asarray(work.sampler(round))
        epochs = work.epochs(round, cohort)
        finishers = work.finishers(round)
        assert len(cohort) == 10 and (epochs == 20).sum() == 1 and epochs.min() >= 1
        assert finishers.tolist() == cohort[epochs == 20].tolist()
        assert (study.Work(3, settings).epochs(round, cohort[::-1]) == epochs[::-1]).all()
    drawn = np.concatenate([work.epochs(r, np.asarray(work.sampler(r))) for r in range(200)])
    late = drawn[drawn < 20]
    assert len(late) == 1800 and abs(late.mean() - 10) < 0.5  # 1 to 19, evenly


def test_a_row_has_the_last_tenth_and_the_largest_rise(study):
    loss = np.array([9, 5, 4, 3, 2, 4, 2, 2.5, 1, 1.5])
    curves = np.stack([loss, np.full(10, 0.5)], axis=-1)[None]
    assert study.row("A", curves) == "| A | 1.500 ± 0.000 | 50.0 ± 0.0 | 0.500 |"


@pytest.mark.slow  # three programs to compile
def test_the_quick_form_prints_and_draws(study, tmp_path, capsys):
    study.main(study.Settings(quick=True, picture=tmp_path / "a.png"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in study.METHODS]
    assert (tmp_path / "a.png").stat().st_size > 1000
