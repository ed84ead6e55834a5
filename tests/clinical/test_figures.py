import numpy as np
import pytest
from matplotlib.axes import Axes

from fedjax_core import History
from fedjax_core.clinical import figures, performance
from tests.clinical.hospitals import NOBODY


def test_figures_are_written(patients, tmp_path):
    results = {
        "FedAvg": performance.by_hospital(
            {"north": patients, "south": performance.Predictions(np.ones(3, int), np.full(3, 0.7))}
        )
    }
    made = [
        figures.convergence(
            {"FedAvg": [0.7, 0.5]}, tmp_path / "new" / "convergence.png", ylabel="loss", level={"pooled": 0.4}
        ),
        figures.hospitals(results, "auroc", tmp_path / "hospitals.png"),
        figures.calibration({"FedAvg": patients}, tmp_path / "calibration.png"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_figures_of_what_is_awkward(tmp_path):
    perfect = performance.assess(np.repeat([0, 1], 7), np.repeat([0.1, 0.9], 7), resamples=50)
    none = performance.assess(np.ones(8), np.full(8, 0.7), resamples=50)
    figures.hospitals(
        {"FedAvg": {"a": perfect, "b": none}, "local": {"a": none}}, "auroc", tmp_path / "a.png"
    )
    figures.hospitals({"FedAvg": {"b": none}}, "auroc", tmp_path / "b.png")
    figures.convergence({"FedAvg": [1.0, np.nan, np.inf, 0.5], "none": []}, tmp_path / "c.png", ylabel="loss")
    figures.calibration(
        {"FedAvg": performance.Predictions(np.ones(80, int), np.linspace(0, 1, 80)), "no": NOBODY},
        tmp_path / "d.png",
    )
    many = {f"h{i}": none for i in range(101)}
    for bad, message in (({"FedAvg": many}, "at most 100 hospitals, got 101"), ({}, "at least one method")):
        with pytest.raises(ValueError, match=message):
            figures.hospitals(bad, "auroc", tmp_path / "e.png")
    with pytest.raises(ValueError, match="no metric 'auc': a report has auroc"):
        figures.hospitals({"FedAvg": {"a": perfect}}, "auc", tmp_path / "e.png")


def test_curves_lie_over_the_rounds_that_they_are_of(tmp_path, monkeypatch):
    drawn, plot = [], Axes.plot

    def noting(axes, x, y, **how):
        drawn.append((how["label"], list(x), list(y)))
        return plot(axes, x, y, **how)

    monkeypatch.setattr(Axes, "plot", noting)
    records = [{"round": round, "kind": "eval", "loss": 1 / (1 + round)} for round in (0, 5, 10)]
    curve = History(None, records, None, "finished", {}).curve("loss")
    figures.convergence({"every fifth": curve, "each": [0.5, 0.4]}, tmp_path / "c.png", ylabel="loss")
    assert drawn == [("every fifth", [0, 5, 10], [1, 1 / 6, 1 / 11]), ("each", [1, 2], [0.5, 0.4])]


def test_a_method_looks_alike_in_every_figure_and_unlike_others():
    names = [f"method {i}" for i in range(20)]
    looks = [figures.look(name) for name in names]
    assert len(set(looks)) == 20 and [figures.look(name) for name in reversed(names)] == looks[::-1]
