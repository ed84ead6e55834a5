"""Drift after release: run lengths against the exact ones of a random walk, and sums of sites against all
people."""

import numpy as np
import pytest

from fedjax_core.clinical import calibration, monitoring

RATIO, RISK = 4.0, np.array([1 / 3])  # then each person moves the chart up by log 2, or down by log 2


def exact(steps, up):
    """Mean periods until a walk that is held at 0 has gone `steps` up, from the equations of each place."""
    walk = np.eye(steps)
    for i in range(steps):
        walk[i, max(i - 1, 0)] -= 1 - up
        if i + 1 < steps:
            walk[i, i + 1] -= up
    return np.linalg.solve(walk, np.ones(steps))[0]


def limit(steps):
    return steps * np.log(2) - 1e-9


@pytest.mark.parametrize("truth", (1.0, RATIO))
def test_run_lengths_are_those_of_the_walk(truth):
    up = truth / 3 / (2 / 3 + truth / 3)
    found = monitoring.run_length(limit(4), RISK, ratio=RATIO, truth=truth, runs=3000)
    assert found.mean == pytest.approx(exact(4, up), abs=4 * found.standard_error)
    assert found.standard_error < 0.05 * found.mean


def test_the_limit_has_the_run_length_that_was_asked_for():
    found = monitoring.limit_for(exact(4, 1 / 3) - 10, RISK, ratio=RATIO, runs=1000)
    # just above 3 steps, so that it takes 4: 3 take too few periods
    assert found.limit == pytest.approx(3 * np.log(2), abs=2e-3)
    assert found.run_length.mean == pytest.approx(exact(4, 1 / 3), abs=4 * found.run_length.standard_error)


def test_a_shift_is_seen_long_before_a_false_alarm():
    risks = np.random.default_rng(0).beta(2, 8, 500)
    found = monitoring.limit_for(100, risks, people=20, runs=200)
    late = monitoring.run_length(found.limit, risks, people=20, truth=2.0, runs=200)
    assert found.run_length.mean + 4 * found.run_length.standard_error > 100 and late.mean < 10


def test_a_chart_of_sums_is_the_chart_of_all_people_and_begins_anew_after_an_alarm():
    rng = np.random.default_rng(1)
    risk = rng.random((30, 3, 10)) / 2  # periods, sites, people
    outcome = (rng.random(risk.shape) < np.where(np.arange(30)[:, None, None] < 15, risk, 2 * risk)).astype(
        int
    )
    chart, value, alarms = monitoring.Cusum(3.0), 0.0, []
    for t in range(30):
        chart.add(sum(monitoring.weight_sum(*each) for each in zip(outcome[t], risk[t], strict=True)))
        likelihood = (
            np.where(outcome[t], 2 * risk[t], 1 - risk[t])
            / (1 + risk[t])
            / np.where(outcome[t], risk[t], 1 - risk[t])
        )
        value = max(0.0, value + np.log(likelihood).sum())
        if value >= 3.0:
            alarms, value = [*alarms, t + 1], 0.0
    assert chart.alarms == alarms and alarms and min(alarms) > 15
    assert chart.value == pytest.approx(value)


def test_recalibration_takes_back_a_shift_of_odds():
    rng = np.random.default_rng(2)
    risk = rng.beta(2, 4, 4000)
    true = 3 * risk / (1 - risk + 3 * risk)
    outcome = (rng.random(4000) < true).astype(int)
    found = calibration.recalibrate(
        lambda told: calibration.recalibration_sums(outcome, risk, told, calibration.INTERCEPT),
        calibration.INTERCEPT,
    )
    assert found.interval(0).low < np.log(3) < found.interval(0).high
    assert calibration.recalibrated(risk, found).mean() == pytest.approx(outcome.mean(), abs=1e-9)


def test_psi_is_the_symmetric_divergence_and_finite_of_empty_bins():
    then, now = np.array([10, 30, 60]), np.array([20, 30, 50])
    p, q = then / 100, now / 100
    assert monitoring.population_stability_index(then, now) == pytest.approx(
        sum(q * np.log(q / p)) + sum(p * np.log(p / q))
    )
    assert monitoring.population_stability_index(then, 5 * then) == pytest.approx(0)
    assert 0 < monitoring.population_stability_index(then, np.array([0, 50, 50])) < 10
    with pytest.raises(ValueError, match="same bins"):
        monitoring.population_stability_index(then, now[:2])


@pytest.mark.parametrize("odd", ({"ratio": 1.0}, {"ratio": -1.0}, {"truth": 0.0}, {"people": 0}))
def test_what_no_chart_can_be_made_of_is_refused(odd):
    with pytest.raises(ValueError, match=next(iter(odd))):
        monitoring.run_length(1.0, RISK, **odd)
