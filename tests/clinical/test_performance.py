import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score

from fedjax_core.clinical import performance
from fedjax_core.data.clients import Clients
from fedjax_core.task import Task
from tests.clinical.hospitals import NOBODY, hospital


def test_metrics_equal_scikit_learn(patients):
    found = performance.assess(*patients)
    assert found["auroc"].value == pytest.approx(roc_auc_score(*patients))
    assert found["accuracy"].value == pytest.approx(accuracy_score(patients.outcome, patients.risk > 0.5))
    assert found["brier"].value == pytest.approx(brier_score_loss(*patients))


def test_intervals_are_the_middle_of_the_same_metrics_on_drawn_patients(patients):
    draws = np.random.default_rng(7).multinomial(60, np.full(60, 1 / 60), size=300)
    sets = [np.repeat(np.arange(60), counts) for counts in draws]
    for name, metric in {
        "auroc": roc_auc_score,
        "brier": brier_score_loss,
        "calibration": lambda outcome, risk: (
            performance.assess(outcome, risk, resamples=1)["calibration"].value
        ),
    }.items():
        expected = np.percentile(
            [metric(patients.outcome[rows], patients.risk[rows]) for rows in sets], [2.5, 97.5]
        )
        found = performance.assess(*patients, resamples=300, seed=7)[name]
        np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-9)


def test_calibration_error_by_hand():
    # Bin 0.2-0.3: two patients, mean risk 0.25, none ill. Bin 0.9-1.0: three, mean risk 0.95, two ill.
    outcome, risk = np.array([0, 0, 1, 1, 0]), np.array([0.22, 0.28, 0.95, 0.9, 1.0])
    assert performance.assess(outcome, risk)["calibration"].value == pytest.approx(
        2 / 5 * 0.25 + 3 / 5 * abs(0.95 - 2 / 3)
    )


def test_one_outcome_has_no_auroc_and_a_reason():
    found = performance.assess(np.ones(5), np.array([0.4, 0.6, 0.7, 0.8, 0.9]))
    assert str(found["auroc"]) == "-" and "same outcome" in found["auroc"].note
    assert found["accuracy"].value == pytest.approx(4 / 5)


def test_a_perfect_model_on_few_patients_is_not_certain():
    found = performance.assess(np.repeat([0, 1], 7), np.repeat([0.1, 0.9], 7))
    # Wilson's bound, in closed form at 1
    assert found["accuracy"].low == pytest.approx(14 / (14 + 1.959964**2), abs=1e-6)
    assert str(found["accuracy"]) == "1.000 (0.785-1.000)*" and "Wilson" in found["accuracy"].note
    low = found["auroc"].low  # Newcombe: 1 - low is 1.96 deviations, with the variance taken at low
    variance = low * (1 - low) * (1 + 6 * ((1 - low) / (2 - low) + low / (1 + low))) / 49
    assert 0.6 < low < 1 and found["auroc"].high == 1
    assert (1 - low) / np.sqrt(variance) == pytest.approx(1.959964, abs=1e-6)
    reversed_model = performance.assess(np.repeat([0, 1], 7), np.repeat([0.9, 0.1], 7))
    assert reversed_model["auroc"].value == 0 and reversed_model["auroc"].high == pytest.approx(1 - low)


def test_the_interval_holds_the_value(patients):
    for estimate in performance.assess(patients.outcome[:20], patients.risk[:20]).values():
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize(
    ("outcome", "risk", "message"),
    [
        ([0, 1], [0.5], "same n patients"),
        ([0, 2], [0.5, 0.5], "outcome must be 0 or 1"),
        ([0, 1], [0.5, 3.0], "sigmoid"),
        ([0, 1], [0.5, np.nan], "sigmoid"),
    ],
)
def test_bad_input_is_named(outcome, risk, message):
    with pytest.raises(ValueError, match=message):
        performance.assess(np.array(outcome), np.array(risk))


def test_predictions_are_the_sigmoid_of_the_tasks_logits():
    task = Task(
        init=lambda key: jnp.ones(2),
        loss=lambda w, batch, key: batch["x"] @ w,
        predict=lambda w, batch: batch["x"] @ w,
    )
    x = np.array([[0.5, 1.0], [-2.0, 1.0], [0.0, 0.0]], np.float32)
    y = np.array([1, 0, 1], np.int32)
    clients = Clients.from_arrays({"x": x, "y": y}, offsets=[0, 1, 3], ids=["a", "b"])
    found = performance.predictions(task, jnp.ones(2), clients)
    assert list(found) == ["a", "b"]
    np.testing.assert_allclose(
        np.concatenate([each.risk for each in found.values()]), 1 / (1 + np.exp([-1.5, 1.0, 0.0])), rtol=1e-6
    )
    assert [each.outcome.tolist() for each in found.values()] == [[1], [0, 1]]
    with pytest.raises(ValueError, match="one logit"):
        performance.predictions(task._replace(predict=lambda w, batch: batch["x"]), jnp.ones(2), clients)


def test_calibration_curve_by_hand():
    risk, share, count = performance.calibration_curve(
        performance.Predictions(np.array([1, 0, 0, 1]), np.array([0.9, 0.1, 0.2, 0.7])), groups=2
    )
    np.testing.assert_allclose((risk, share, count), [(0.15, 0.8), (0.0, 1.0), (2, 2)])


def test_wilson_in_closed_form():
    low, high = performance.wilson(np.array([0.0, 1.0]), np.array([10, 10]))
    np.testing.assert_allclose(
        (low, high), [(0, 10 / (10 + 1.959964**2)), (1.959964**2 / (10 + 1.959964**2), 1)], atol=1e-12
    )


def test_a_hospital_without_patients_or_without_numbers_is_a_row_with_its_reason():
    lost = hospital(8)._replace(risk=np.r_[np.full(7, 0.5), np.nan])
    found = performance.by_hospital({"north": hospital(50), "tiny": NOBODY, "lost": lost}, resamples=50)
    assert all(str(one) == "-" and one.note == "no patients" for one in found["tiny"].values())
    assert all(str(one) == "-" and "risks that are not numbers" in one.note for one in found["lost"].values())
    everybody, alone = found[performance.ALL], performance.assess(*hospital(50), resamples=50)
    assert {name: one[:3] for name, one in everybody.items()} == {
        name: one[:3] for name, one in alone.items()
    }
    assert all(one.note.startswith("without lost") and str(one).endswith("*") for one in everybody.values())
    with pytest.raises(ValueError, match="none has the name 'all hospitals'"):
        performance.by_hospital({performance.ALL: hospital(5), "x": hospital(5)})


def test_drawn_sets_are_looked_at_a_few_at_a_time_with_the_same_numbers(patients, monkeypatch):
    whole = performance.assess(*patients, resamples=100)
    monkeypatch.setattr(performance, "_DRAWN_BYTES", 7 * 8 * len(patients.risk))
    for name, one in performance.assess(*patients, resamples=100).items():
        np.testing.assert_allclose(one[:3], whole[name][:3], rtol=1e-12)


def test_no_interval_is_a_point():
    for n in (3, 7, 10, 14, 33):
        for risk in (0.8, 0.1, 0.3, 0.37):
            for one in performance.assess(np.ones(n), np.full(n, risk), resamples=100).values():
                assert np.isnan(one.low) or one.high - one.low > 1e-3


def test_a_saturated_model_has_risks_of_0_and_1():
    task = Task(
        init=lambda key: jnp.ones(1),
        loss=lambda w, batch, key: batch["x"] @ w,
        predict=lambda w, batch: batch["x"] @ w,
    )
    clients = Clients.from_list(
        [{"x": np.array([[-3e3], [3e3]], np.float32), "y": np.array([True, False])}], ids=["a"]
    )
    found = performance.predictions(task, jnp.ones(1), clients)["a"]
    assert (
        found.risk.tolist() == [0.0, 1.0]
        and performance.assess(*found, resamples=20)["accuracy"].value == 0.0
    )


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_the_calibration_curve_does_not_depend_on_the_order_of_patients(patients, groups):
    order = np.random.default_rng(0).permutation(60)
    again = performance.Predictions(patients.outcome[order], patients.risk[order])
    for one, other in zip(
        performance.calibration_curve(patients, groups),
        performance.calibration_curve(again, groups),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    risk, _, count = performance.calibration_curve(patients, groups)
    assert count.sum() == 60 and (np.diff(risk) > 0).all()
    assert [len(part) for part in performance.calibration_curve(NOBODY, groups)] == [0, 0, 0]
    distinct = performance.Predictions(np.arange(60) % 2, np.linspace(0, 1, 60))
    assert np.ptp(performance.calibration_curve(distinct, groups)[2]) <= 1


def test_wilson_holds_its_share_and_is_scipys():
    count = np.arange(1, 3000)
    for share in (0.0, 0.3, 1.0):
        low, high = performance.wilson(np.full(len(count), share), count)
        assert ((low >= 0) & (low <= share) & (share <= high) & (high <= 1)).all()
    expected = [stats.binomtest(k, 37).proportion_ci(method="wilson") for k in range(38)]
    np.testing.assert_allclose(
        performance.wilson(np.arange(38) / 37, np.full(38, 37)), np.transpose(expected), atol=1e-7
    )
