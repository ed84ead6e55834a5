"""Weighted effects over clients: plain sums of the pooled rows, statsmodels' errors, and the balance that
overlap weights promise."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit

from fedjax_core import Clients, stats


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(3)
    age, sex = draw.normal(60, 10, 250), draw.integers(0, 2, 250)
    t = (draw.uniform(size=250) < expit(0.06 * (age - 60) + 0.5 * sex)) * 1
    return {
        "site": draw.integers(0, 4, 250),
        "age": age,
        "sex": sex,
        "t": t,
        "y": 2 * t + 0.1 * age + sex + draw.normal(size=250),
    }


@pytest.mark.parametrize("weights", ["ate", "att", "overlap"])
def test_effects_and_errors_are_those_of_the_pooled_equations(columns, weights):
    found = stats.treatment_effect(
        "y, t ~ age + sex", Clients.from_table(columns, by="site"), weights=weights
    )
    t, y = columns["t"], columns["y"]
    x = np.stack([np.ones(250), (columns["age"] - 60) / 10, columns["sex"]], axis=1)

    def equations(theta):
        e = expit(x @ theta[:3])
        w = {
            "ate": t / e + (1 - t) / (1 - e),
            "att": t + (1 - t) * e / (1 - e),
            "overlap": t * (1 - e) + (1 - t) * e,
        }[weights]
        return np.concatenate(
            [
                x * (t - e)[:, None],
                (w * t * (y - theta[3]))[:, None],
                (w * (1 - t) * (y - theta[4]))[:, None],
            ],
            axis=1,
        )

    b = np.array(list(found.propensity.values()))
    theta = np.array([b[0] + 60 * b[1], 10 * b[1], b[2], *found.means])
    assert np.abs(equations(theta).sum(0)).max() < 1e-7  # at their root
    slopes = approx_fprime(theta, lambda at: equations(at).sum(0), 1e-7)
    inside = np.linalg.inv(slopes)
    covariance = inside @ equations(theta).T @ equations(theta) @ inside.T
    wanted = np.sqrt(covariance[3, 3] + covariance[4, 4] - 2 * covariance[3, 4])
    assert found.standard_error == pytest.approx(wanted, rel=1e-5)
    assert found.effect == pytest.approx(found.means[0] - found.means[1]) and abs(found.effect - 2) < abs(
        found.crude - 2
    )
    assert max(map(abs, found.smd_after.values())) < max(found.smd_before.values()) and found.p_value < 0.001
    assert found.interval[0] < 2 < found.interval[1] and "without weights" in repr(found)


def test_overlap_weights_make_the_means_equal(columns):
    found = stats.treatment_effect("y, t ~ age + sex", Clients.from_table(columns, by="site"))
    assert max(map(abs, found.smd_after.values())) < 1e-9 < 0.3 < found.smd_before["age"]
    assert all(a <= b for a, b in zip(found.effective_rows, found.rows, strict=True))


def test_the_effect_of_all_people_is_that_of_statsmodels(columns):
    module = pytest.importorskip(
        "statsmodels.treatment.treatment_effects", reason="statsmodels is not installed"
    )
    api = pytest.importorskip("statsmodels.api")
    x = np.stack([np.ones(250), columns["age"], columns["sex"]], axis=1)
    model = module.TreatmentEffect(
        api.OLS(columns["y"], x), columns["t"], results_select=api.Logit(columns["t"], x).fit(disp=0)
    )
    wanted = model.ipw(return_results=False)
    found = stats.treatment_effect("y, t ~ age + sex", Clients.from_table(columns, by="site"), weights="ate")
    assert found.effect == pytest.approx(float(wanted[0]), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "formula", "said"),
    [({}, "y ~ age", "'outcome, treatment ~ covariates'"), ({"t": np.ones(250)}, "y, t ~ age", "1 in every row"),
     ({"t": np.arange(250) % 3}, "y, t ~ age", "must be 0 or 1")],
)  # fmt: skip
def test_what_has_no_effect_says_why(columns, change, formula, said):
    with pytest.raises(ValueError, match=said):
        stats.treatment_effect(formula, Clients.from_table(columns | change, by="site"))
