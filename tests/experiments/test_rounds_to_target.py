"""The long study of rounds to a target, in its quick form: it prints, draws, and goes on where it was."""

import io
import re
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_core as fc


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import rounds_to_target

        yield rounds_to_target


def test_the_first_round_that_reaches_the_target_counts(study):
    rounds, accuracy = np.array([5, 10, 15, 20]), np.array([0.1, 0.8, 0.7, 0.9])
    reached = [study.rounds_to(target, rounds, accuracy) for target in (0.0, 0.8, 0.85, 0.95)]
    assert reached == [5, 10, 20, np.inf]
    ends = [0.5, 0.5, 0.5]
    assert (
        study.row("A", 0.1, [10.0, np.inf, 20.0], ends, 30) == "| A | 0.1 | 10, not, 20 | 20 | 50.00 ± 0.00 |"
    )
    assert "| not within 30 |" in study.row("A", 0.1, [10.0, np.inf, np.inf], ends, 30)


def test_every_method_is_built(study):
    task = fc.models.logistic(features=4, classes=2)
    for name in study.METHODS:
        assert fc.compose(study.built(name, task, 0.1, 10)).algorithm.name == name.lower()


def test_the_step_with_the_best_later_half_is_taken(study, monkeypatch):
    curves = {0.02: [0.1, 0.2, 0.3, 0.3], 0.06: [0.9, 0.9, 0.2, 0.2], 0.2: [np.nan] * 4}
    monkeypatch.setattr(study, "curve", lambda name, lr, *rest: (np.arange(4), np.array(curves[lr])))
    step, scores = study.best_step("FedAvg", 4, study.Settings())
    assert step == 0.02 and scores[0.06] == pytest.approx(0.2) and scores[0.2] == 0


def test_the_small_network_and_the_pictures_of_cifar(tmp_path, monkeypatch, study):
    import pictures

    images = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("FEDJAX_CORE_DATA", str(tmp_path))
    (tmp_path / "cifar10_jpg").mkdir()
    with zipfile.ZipFile(tmp_path / "cifar10_jpg" / "cifar10_jpg_20k.zip", "w") as archive:
        for part, count in (("train", 2), ("test", 1)):
            for kind, value in (("cat", 200), ("airplane", 20)):
                for i in range(count):
                    content = io.BytesIO()
                    images.new("RGB", (32, 32), (value, 0, 0)).save(content, "JPEG")
                    archive.writestr(f"{part}/{kind}/{i:04}.jpg", content.getvalue())
    data = pictures.cifar10()
    assert data.train.columns["x"].shape == (4, 32, 32, 3) and data.test.columns["y"].tolist() == [0, 1]
    red = data.train.columns["x"][:, 16, 16, 0]
    assert abs(red[:2].astype(int) - 20).max() < 5 and abs(red[2:].astype(int) - 200).max() < 5
    shapes = jax.eval_shape(pictures.cifar_cnn().init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 67_642


@pytest.mark.slow
def test_the_quick_form_runs_and_goes_on(study, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDJAX_CORE_DATA", str(data_dir))
    problem = study.PROBLEMS["fashion"]._replace(sgd=(0.06,))
    monkeypatch.setitem(study.PROBLEMS, "fashion", problem)
    settings = study.Settings(
        quick=True, methods=("FedAvg",), runs=tmp_path / "runs", picture=tmp_path / "a.png", target=0.0
    )
    study.main(settings)
    first = capsys.readouterr().out
    assert re.search(r"\| FedAvg \| 0.06 \| [02] \| [02] \| \d+\.\d\d ± 0\.00 \|", first)
    assert (tmp_path / "a.png").stat().st_size > 1000
    monkeypatch.setattr(fc.Simulator, "run_many", None)  # nothing is left to train
    monkeypatch.setattr(fc.Simulator, "run", None)
    study.main(settings)
    assert capsys.readouterr().out == first
    with pytest.raises(ValueError, match="there is no method FedX"):
        study.main(study.Settings(methods=("FedX",)))
