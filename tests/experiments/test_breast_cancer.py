"""The main job: once through, and again on what the first call left."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import breast_cancer

        yield breast_cancer


@pytest.mark.slow  # nine programs to compile
def test_a_second_call_reads_what_the_first_left(study, tmp_path, capsys, monkeypatch):
    settings = study.Settings(rounds=2, out=tmp_path, quick=True)
    assert study.main(settings) == 0
    first = capsys.readouterr().out
    assert "FedAvg" in first and "rural (n = 14)" in first and "100 simulated clients a round" in first
    table = (tmp_path / "table.md").read_bytes()
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "convergence.png",
        "calibration.png",
        *(f"hospitals_{metric}.png" for metric in study.METRICS),
    }

    def refuse(*args):
        raise AssertionError("a finished run must not train")

    monkeypatch.setattr(study.fc.Simulator, "run_many", refuse)
    monkeypatch.setattr(study, "simulate", lambda cohort, seed, cores: "")
    assert study.main(settings) == 0
    assert (tmp_path / "table.md").read_bytes() == table
