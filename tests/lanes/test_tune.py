import logging

import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.lanes import tune
from fedjax_core.work import TRAIN
from fedjax_core.xla import tuning_cache
from tests.zoo import clients


def test_the_climb_goes_on_while_it_gets_better():
    asked = []

    def measure(lanes):
        asked.append(lanes)
        return abs(lanes - 32) + 1.0

    found = tune.climb(8, 1000, measure, budget=60)
    assert tune.best(found) == 32 and asked == [8, 16, 4, 32, 64]


@pytest.mark.parametrize(("begin", "most", "tried"), [(64, 3, [3, 1]), (1, 1, [1]), (8, 8, [8, 4])])
def test_the_climb_stays_within_the_clients_there_are(begin, most, tried):
    assert list(tune.climb(begin, most, lambda lanes: 1 / lanes, budget=60)) == tried


def test_no_candidate_is_begun_that_would_not_end_in_time():
    assert list(tune.climb(8, 100, lambda lanes: float(lanes), budget=-1)) == [8]


def test_of_equals_the_fewest_lanes_are_taken():
    assert tune.best({1: 2.0, 2: 1.005, 4: 1.0, 8: 1.01}) == 2


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_CORE_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning_cache, "_entries", {})
    monkeypatch.setattr(tune, "_BUDGET_SECONDS", 2.0)
    monkeypatch.setattr(tune, "_RUN_SECONDS", 0.002)


def build(lr=0.1, **settings):
    algorithm = fc.algorithms.fedavg(fc.models.logistic(features=3, classes=3), optax.sgd(lr))
    return fc.Simulator(fc.compose(algorithm), clients(), **{"batch_size": 4, **settings})


def test_lanes_are_measured_said_and_remembered(measured, monkeypatch, caplog, tmp_path):
    with caplog.at_level(logging.INFO, "fedjax_core"):
        lanes = build().lanes
    assert 1 <= lanes <= 12 and "lanes in" in caplog.text and "of measuring: {" in caplog.text
    assert len(list((tmp_path / "measured").rglob("*.json"))) == 1

    def never(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(tune, "_time", never)
    assert build().lanes == lanes
    with pytest.raises(AssertionError, match="measured again"):
        assert build(batch_size=2).lanes


def test_lanes_that_a_cohort_leaves_empty_count_as_slower(measured, monkeypatch):
    # the more, the faster, were they full
    monkeypatch.setattr(tune, "_time", lambda composed, examples, steps, lanes, rows, cores: 1 / lanes)
    examples, steps = {"x": np.ones((4, 3), np.float32), "y": np.zeros(4, np.int32)}, np.full(100, 5)
    composed = build().round
    assert tune.choose(composed, examples, steps, 100, fill=lambda lanes: min(1.0, (8 / lanes) ** 2)) == 8
    assert tune.choose(composed, examples, steps, 100) > 8


def test_how_full_lanes_are():
    feed = build()._feed
    assert feed.fill(12, 1) == 1.0
    steps = feed.steps[TRAIN]
    # everyone is in every cohort of 12
    assert feed.fill(12, 12) == pytest.approx(steps.sum() / (12 * steps.max()))
    feed.steps[TRAIN] = np.zeros_like(steps)
    assert feed.fill(12, 4) == 1.0  # nobody has anything to do


def test_a_resumed_run_goes_by_what_was_measured_then(measured, monkeypatch, tmp_path):
    draw = fc.cohorts.uniform(12, size=5, seed=0)
    monkeypatch.setattr(
        tune, "_time", lambda composed, examples, steps, lanes, rows, cores: abs(lanes - 4) + 1.0
    )
    first = build()
    fc.fit(first, 2, draw, tmp_path / "run", progress=False)
    monkeypatch.setattr(
        tune, "_time", lambda composed, examples, steps, lanes, rows, cores: abs(lanes - 1) + 1.0
    )
    monkeypatch.setenv("FEDJAX_CORE_CACHE", str(tmp_path / "another machine's"))
    monkeypatch.setattr(tuning_cache, "_entries", {})
    sim = build()
    assert fc.fit(sim, 4, draw, tmp_path / "run", progress=False).stopped == "finished"
    assert sim.lanes == first.lanes != 1


def test_answers_are_for_one_question_and_survive_bad_files(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(tuning_cache, "_entries", {})
    monkeypatch.setenv("FEDJAX_CORE_CACHE", str(tmp_path))
    tuning_cache.store("a", 1)
    assert tuning_cache.lookup("a") == 1 and tuning_cache.lookup("b") is None
    (file,) = (tmp_path / "measured").rglob("*.json")
    file.write_text("{")
    assert tuning_cache.lookup("a") == 1  # as it was in this process
    tuning_cache._entries.clear()
    assert tuning_cache.lookup("a") is None
    monkeypatch.setenv("FEDJAX_CORE_CACHE", str(file))  # a file where a folder should be
    with caplog.at_level(logging.INFO, "fedjax_core"):
        tuning_cache.store("a", 1)
    assert "not remembered" in caplog.text
