"""Proportional odds over clients: the fit of statsmodels, and where the answer has a closed form."""

import warnings

import numpy as np
import pytest

from fedjax_core import Clients, stats


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(2)
    age, sex = draw.normal(60, 10, 300), np.array(["F", "M"])[draw.integers(0, 2, 300)]
    level = np.searchsorted([-1, 0.5, 1.5], 0.05 * (age - 60) + 0.6 * (sex == "M") + draw.logistic(size=300))
    return {"site": draw.integers(0, 5, 300), "age": age, "sex": sex, "level": level}


def test_it_is_the_fit_of_statsmodels(columns):
    ordinal_model = pytest.importorskip(
        "statsmodels.miscmodels.ordinal_model", reason="statsmodels is not installed"
    )
    x = np.stack([(columns["sex"] == "M") * 1.0, columns["age"] / 10], axis=1)
    model = ordinal_model.OrderedModel(columns["level"], x, distr="logit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pooled = model.fit(method="bfgs", disp=0, gtol=1e-9)
    fit = stats.ordinal("level ~ I(age / 10) + sex", Clients.from_table(columns, by="site"))
    wanted = np.concatenate([pooled.params[:2], model.transform_threshold_params(pooled.params)[1:-1]])
    np.testing.assert_allclose(fit.estimates, wanted, rtol=1e-5)
    np.testing.assert_allclose(list(fit.standard_errors.values())[:2], pooled.bse[:2], rtol=1e-4)
    assert (
        fit.log_likelihood == pytest.approx(pooled.llf, rel=1e-9) and fit.log_likelihood >= pooled.llf - 1e-9
    )
    assert (
        fit.names == ("sex[T.M]", "I(age / 10)", "0/1", "1/2", "2/3")
        and fit.rows == sum(fit.levels.values()) == 300
    )


def test_levels_from_the_other_end_turn_every_sign(columns):
    words = np.array(["none", "mild", "bad", "worst"])
    clients = Clients.from_table(columns | {"level": words[columns["level"]]}, by="site")
    up = stats.ordinal("level ~ age", clients, levels=list(words))
    down = stats.ordinal("level ~ age", clients, levels=list(words[::-1]))
    assert up.coefficients["age"] == pytest.approx(-down.coefficients["age"], rel=1e-8)
    assert up.coefficients["none/mild"] == pytest.approx(-down.coefficients["mild/none"], rel=1e-8)
    assert up.standard_errors["age"] == pytest.approx(down.standard_errors["age"], rel=1e-8)


def test_groups_that_are_alike_have_no_effect_and_the_thresholds_are_the_observed_odds():
    table = {
        "site": [0, 1] * 8,
        "y": [0] * 3 + [1] * 2 + [2] * 3 + [0] * 3 + [1] * 2 + [2] * 3,
        "x": [0.0] * 8 + [1.0] * 8,
    }
    fit = stats.ordinal("y ~ x", Clients.from_table(table, by="site"))
    assert fit.coefficients == pytest.approx({"x": 0.0, "0/1": np.log(3 / 5), "1/2": np.log(5 / 3)}, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [({"level": list("abcabc")}, {}, "give levels="), ({}, {"levels": [1, 2, 4]}, "by levels="), ({"level": [0, 1] * 3}, {},
      "use fc.stats.glm"), ({"age": [1.0, 2, 3, 4, 5, 6]}, {}, "grows without end")],
)  # fmt: skip
def test_what_has_no_answer_says_why(change, more, said):
    table = {"site": list("aabbcc"), "level": [1, 1, 2, 2, 3, 3], "age": [3.0, 1, 4, 1, 5, 9]} | change
    with pytest.raises(ValueError, match=said):
        stats.ordinal("level ~ age", Clients.from_table(table, by="site"), **more)
