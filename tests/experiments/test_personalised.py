"""The study of personalised methods: how images are dealt, the table's numbers, and its quick form."""

from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_core as fc


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import personalised

        yield personalised


def test_a_row_has_the_mean_and_the_tenth_percentile_of_clients(study):
    values = np.array([np.linspace(0, 1, 11), np.linspace(0, 1, 11) / 2])
    assert study.row("A", values) == "| A | 37.5 ± 12.5 | 7.5 ± 2.5 |"


def test_the_named_layers_are_those_of_the_model(study):
    params = jax.eval_shape(study.task_of().init, jax.random.key(0))
    assert sorted(params) == sorted([*study.BODY, *study.HEAD])
    assert params["Dense_2"]["kernel"].shape == (study.WIDTH, 10)
    built = study.algorithms(study.task_of(), 0.1)
    assert set(built) < set(study.METHODS)
    for algorithm in built.values():
        assert fc.compose(algorithm).algorithm.personal is not None


def test_clients_hold_out_a_quarter_of_their_images(study, data_dir, monkeypatch):
    monkeypatch.setenv("FEDJAX_CORE_DATA", str(data_dir))
    train, test = study.dealt(0, study.Settings(clients=6, examples=400))
    assert train.examples + test.examples == 400 and len(train) == len(test) == 6
    np.testing.assert_allclose(test.sizes / (train.sizes + test.sizes), 0.25, atol=0.07)


@pytest.mark.slow  # two methods to compile
def test_the_quick_form_prints_and_goes_on(study, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDJAX_CORE_DATA", str(data_dir))
    methods = ("FedAvg, global", "FedPer", "kNN-Per")
    settings = study.Settings(quick=True, methods=methods, runs=tmp_path / "runs", picture=tmp_path / "a.png")
    study.main(settings)
    first = capsys.readouterr().out
    assert all(f"| {name} |" in first for name in methods) and (tmp_path / "a.png").stat().st_size > 1000
    monkeypatch.setattr(study, "dealt", None)  # nothing is left to train
    study.main(settings)
    assert capsys.readouterr().out == first
    with pytest.raises(ValueError, match="there is no method FedX"):
        study.main(study.Settings(methods=("FedX",)))
