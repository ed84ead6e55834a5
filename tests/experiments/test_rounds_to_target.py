"""The long study of rounds to a target, in its quick form: it prints, draws, and goes on where it was."""

import importlib.util
import re

import numpy as np
import pytest

import fedjax_core as fc
from tests.conftest import REPOSITORY

found = importlib.util.spec_from_file_location(
    "rounds_to_target", REPOSITORY / "experiments" / "rounds_to_target.py"
)
study = importlib.util.module_from_spec(found)
found.loader.exec_module(study)


def test_the_first_round_that_reaches_the_target_counts():
    rounds, accuracy = np.array([5, 10, 15, 20]), np.array([0.1, 0.8, 0.7, 0.9])
    assert [study.rounds_to(target, rounds, accuracy) for target in (0.0, 0.8, 0.85, 0.95)] == [
        5,
        10,
        20,
        np.inf,
    ]
    assert study.row("A", [10.0, np.inf, 20.0], [0.5, 0.5, 0.5]) == "| A | 10, not, 20 | 20 | 50.00 ± 0.00 |"


def test_every_method_is_built():
    task = fc.models.logistic(features=4, classes=2)
    for name in study.METHODS:
        assert fc.compose(study.built(name, task, study.Settings())).algorithm.name == name.lower()


@pytest.mark.slow
def test_the_quick_form_runs_and_goes_on(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDJAX_CORE_DATA", str(data_dir))
    settings = study.Settings(
        quick=True, methods=("FedAvg",), runs=tmp_path / "runs", picture=tmp_path / "a.png", target=0.0
    )
    study.main(settings)
    first = capsys.readouterr().out
    assert (
        re.search(r"\| FedAvg \| [02] \| [02] \| \d+\.\d\d ± 0\.00 \|", first)
        and (tmp_path / "a.png").stat().st_size > 1000
    )
    monkeypatch.setattr(fc.Simulator, "run_many", None)  # nothing is left to train
    monkeypatch.setattr(fc.Simulator, "run", None)
    study.main(settings)
    assert capsys.readouterr().out == first
    with pytest.raises(ValueError, match="there is no method FedX"):
        study.main(study.Settings(methods=("FedX",)))
