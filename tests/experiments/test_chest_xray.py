"""Chest X-rays: how images are dealt to hospitals and what scanners do to them; a round of every method,
slowly."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import chest_xray

        yield chest_xray


@pytest.fixture
def data(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    made = {}
    for name, n in (("train", 200), ("test", 60)):
        made[f"{name}_images"] = draw.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        made[f"{name}_labels"] = (np.arange(n) % 4 > 0).astype(np.uint8)[:, None]
    (tmp_path / "pneumoniamnist").mkdir()
    np.savez(tmp_path / "pneumoniamnist" / "pneumoniamnist.npz", **made)
    monkeypatch.setenv("FEDJAX_CORE_DATA", str(tmp_path))
    return made


def test_every_image_is_of_one_hospital_and_the_centre_scanner_changes_none(study, data):
    train, test = study.read(study.Settings())
    assert train.examples == 200 and test.sizes.tolist() == [10] * 6
    assert sum(int(one["y"].sum()) for one in train) == 150
    shares = [float(one["y"].mean()) for one in train]
    assert shares[3] > 0.85 > shares[0] > shares[2]  # the county's and the city's case mix
    images = data["train_images"].astype(np.float32) / 127.5 - 1
    for x in train[0]["x"]:
        assert np.isclose(images, x, atol=1e-6).all((1, 2)).any()


def test_a_scanner_with_less_contrast_spreads_less_and_keeps_the_range(study):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (20, 28, 28)).astype(np.uint8)
    x = {name: study.scan(images, study.HOSPITALS[name], draw) for name in ("centre", "city", "county")}
    assert x["city"].std() < 0.8 * x["centre"].std() and x["county"].mean() > x["centre"].mean() + 0.2
    assert all(abs(each).max() <= 1 and each.dtype == np.float32 for each in x.values())


@pytest.mark.slow  # six programs of convolutions to compile
def test_every_method_gives_each_hospitals_risks(study, data, tmp_path, capsys):
    assert study.main(study.Settings(rounds=1, figure=tmp_path / "xray.png")) in (0, 1)
    said = capsys.readouterr().out
    assert all(f"| {name} |" in said for name in ("alone", "FedAvg", "SCAFFOLD", "FedBN", "Ditto", "pooled"))
    assert "nan" not in said and (tmp_path / "xray.png").stat().st_size > 10_000
