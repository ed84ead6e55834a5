"""Imputed values are draws of the pooled regression, and Rubin's rules are his."""

import numpy as np
import pytest

from fedjax_core import Clients, stats
from fedjax_core.stats.imputation import Fill, Filled
from fedjax_core.stats.messages import decode, encode
from fedjax_core.stats.survey import Survey


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(21)
    x = draw.normal(0, 1, 400)
    y = 1 + 2 * x + draw.normal(0, 0.5, 400)
    sex = np.array(["F", "M"])[(draw.uniform(size=400) < 1 / (1 + np.exp(-2 * x))) * 1].astype(object)
    y[(x > 0.3) & (draw.uniform(size=400) < 0.8)] = np.nan  # more are missing where x is large
    sex[::7] = None
    return {"site": draw.integers(0, 4, 400), "x": x, "y": y, "sex": sex}


@pytest.fixture(scope="module")
def imputed(columns):
    return stats.impute(Clients.from_table(columns, by="site"), ["y", "x", "sex"], times=4, rounds=2, seed=5)


def test_what_is_missing_by_what_is_seen_is_made_good(columns, imputed):
    found = stats.rubin([stats.glm("y ~ 1", one) for one in imputed])
    seen = np.nanmean(columns["y"])
    assert abs(found.coefficients["Intercept"] - 1) < 0.2 < 0.5 < abs(seen - 1)
    assert 0.01 < found.missing_information["Intercept"] < 0.5
    share = stats.rubin([stats.glm("I(sex == 'M') ~ x", one, family="binomial") for one in imputed])
    assert abs(share.coefficients["x"] - 2) < 3 * share.standard_errors[
        "x"
    ] and "missing information" in repr(share)


def test_draws_are_around_the_pooled_regression(columns):
    two = {name: x for name, x in columns.items() if name != "sex"}
    many = stats.impute(Clients.from_table(two, by="site"), ["y", "x"], times=30, rounds=1)
    there = np.isfinite(columns["y"])
    x = np.stack([np.ones(there.sum()), columns["x"][there]], axis=1)
    b, rss = np.linalg.lstsq(x, columns["y"][there], rcond=None)[:2]
    drawn = np.array([one.fills[-1].beta for one in many])  # Intercept, x
    errors = np.sqrt(rss[0] / (len(x) - 2) * np.diag(np.linalg.inv(x.T @ x)))
    np.testing.assert_allclose(drawn.mean(0), b, atol=4 * errors.max() / np.sqrt(30))
    np.testing.assert_allclose(drawn.std(0), errors, rtol=0.4)
    np.testing.assert_allclose(
        np.mean([one.fills[-1].sd for one in many]), np.sqrt(rss[0] / (len(x) - 2)), rtol=0.05
    )


def test_known_values_stay_and_the_same_are_drawn_again(imputed):
    twice = [stats.glm("y ~ x", imputed[0]).coefficients for _ in range(2)]
    assert twice[0] == twice[1] != stats.glm("y ~ x", imputed[1]).coefficients
    assert (
        stats.quantiles(imputed[0], "y").missing == 0 and stats.quantiles(imputed[0].source, "y").missing > 50
    )


def test_rubins_rules_are_his():
    class Fit:
        names, covariance = ("a",), np.array([[4.0]])

        def __init__(self, q):
            self.estimates = np.array([q])

    found = stats.rubin([Fit(1.0), Fit(2.0), Fit(6.0)])
    between, total = 7.0, 4 + 4 / 3 * 7.0
    assert found.coefficients == {"a": 3.0} and found.standard_errors["a"] == pytest.approx(np.sqrt(total))
    # (M - 1) (1 + W / ((1 + 1/M) B))^2
    assert found.df["a"] == pytest.approx(2 * (1 + 4 / (4 / 3 * between)) ** 2)
    assert stats.rubin([Fit(1.0), Fit(2.0), Fit(6.0)], df_complete=10).df["a"] < found.df["a"]
    with pytest.raises(ValueError, match="two or more fits"):
        stats.rubin([Fit(1.0)])


def test_a_statistic_of_filled_rows_is_the_same_at_the_other_end(imputed):
    filled = Filled(imputed[0].fills, "", Survey(("y",), ()))
    assert decode(encode(filled)) == filled
    deep = filled
    for _ in range(9):
        deep = Filled((), "", deep)
    with pytest.raises(ValueError, match="says no statistic"):
        decode(encode(deep))
    with pytest.raises(ValueError, match="a fill has"):
        Fill("y", ("a",), imputed[0].fills[0].design, (1.0,), 0.0, (1,))


@pytest.mark.parametrize(
    ("change", "names", "more", "said"),
    [({"y": np.zeros(400), "sex": np.full(400, "F")}, ["y", "x"], {}, "no value is missing"), ({}, ["y"], {}, "alone says nothing"),
     ({}, ["y", "x"], {"times": 1}, "2 or more"), ({"sex": np.array(["a", "b", "c", ""] * 100)}, ["sex", "x"], {}, "has 3 levels")],
)  # fmt: skip
def test_what_cannot_be_imputed_says_why(columns, change, names, more, said):
    with pytest.raises(ValueError, match=said):
        stats.impute(Clients.from_table(columns | change, by="site"), names, **more)
