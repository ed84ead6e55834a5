"""Generalised linear models over clients are the pooled fits: of answers.json, of statsmodels, and where an
answer has a closed form."""

import numpy as np
import pytest

from fedjax_core import stats
from fedjax_core.data import Clients
from tests.stats import multisite
from tests.stats.multisite import assert_named


@pytest.mark.parametrize(
    "name",
    [
        "medpar|logit",
        "medpar|poisson",
        "medpar|negbin1",
        "opt|logit",
        "pda_cola_covid|logit",
        "pda_cola_covid|poisson",
    ],
)
def test_the_answers_of_pooled_tables_are_met(data_dir, name):
    wanted = multisite.answers(data_dir)[name]
    fit = stats.glm(
        wanted["formula"],
        multisite.table(data_dir, name.split("|")[0]),
        family=multisite.FAMILIES[wanted["family"]],
    )
    assert_named(fit.coefficients, wanted["coefficients"], 1e-8, 1e-12)
    assert_named(fit.standard_errors, wanted["standard_errors"], 1e-8)
    assert_named(fit.cluster_standard_errors, wanted["cluster_standard_errors"], 1e-8)
    assert fit.deviance == pytest.approx(wanted["deviance"], rel=1e-10) and fit.rows == wanted["n"]


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(3)
    n = 240
    age, site = draw.normal(60, 12, n), np.array(["a", "b", "c", "d"])[draw.integers(0, 4, n)]
    sex, ward = np.array(["F", "M"])[draw.integers(0, 2, n)], draw.integers(0, 24, n)
    eta = -2 + 0.03 * age + 0.4 * (sex == "M") - 0.3 * (site == "c")
    days = draw.uniform(1, 9, n)
    return {
        "site": site, "age": age, "sex": sex, "days": days, "block": np.char.add(site, ward.astype(str)),
        "died": (draw.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int), 
        "visits": draw.poisson(days * np.exp(0.2 * eta)), "lab": eta + draw.normal(size=n),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("formula", "family", "offset"),
    [
        ("died ~ sex * age + C(site)", "binomial", None),
        ("lab ~ np.log(age) + I(age ** 2) + sex:C(site)", "gaussian", None),
        ("visits ~ age + sex", "poisson", "log(days)"),
        ("visits ~ 0 + sex + age", "negative binomial", "log(days)"),
    ],
)
@pytest.mark.parametrize("errors", ["model", "robust", "cluster"])
def test_it_is_the_fit_of_statsmodels(columns, formula, family, offset, errors):
    smf = pytest.importorskip(
        "statsmodels.formula.api", reason="statsmodels, with which this compares, is not installed"
    )
    sm = pytest.importorskip("statsmodels.api")
    pandas = pytest.importorskip("pandas")
    names = {"binomial": sm.families.Binomial(), "gaussian": sm.families.Gaussian(), "poisson": sm.families.Poisson(),
             "negative binomial": sm.families.NegativeBinomial(alpha=0.7)}  # fmt: skip
    about = {"offset": np.log(columns["days"])} if offset else {}
    how = {
        "model": {},
        "robust": {"cov_type": "HC0"},
        "cluster": {"cov_type": "cluster", "cov_kwds": {"groups": columns["block"]}},
    }[errors]
    pooled = smf.glm(formula, pandas.DataFrame(columns), family=names[family], **about).fit(
        tol=1e-14, maxiter=200, **how
    )
    fit = stats.glm(
        formula,
        Clients.from_table(columns, by="site"),
        family=family,
        offset=offset,
        alpha=0.7,
        errors=errors,
        cluster="block",
    )
    assert_named(fit.coefficients, pooled.params.to_dict(), 1e-8, 1e-10)
    assert_named(fit.standard_errors, pooled.bse.to_dict(), 1e-7)
    assert fit.deviance == pytest.approx(pooled.deviance, rel=1e-10)
    assert fit.log_likelihood == pytest.approx(pooled.llf, rel=1e-10)
    assert fit.dispersion == pytest.approx(pooled.scale, rel=1e-9) and fit.df_residual == pooled.df_resid
    assert_named(fit.p_values, pooled.pvalues.to_dict(), 1e-6, 1e-12)
    low = {name: both[0] for name, both in fit.intervals.items()}
    assert_named(low, pooled.conf_int()[0].to_dict(), 1e-7, 1e-9)


def test_a_logit_of_two_groups_is_the_odds_ratio_of_the_trial():
    treated, control = [1] * 27 + [0] * 268, [1] * 52 + [0] * 255
    y, arm = np.array(treated + control), np.repeat([1, 0], [295, 307])
    fit = stats.glm(
        "y ~ arm",
        Clients.from_table({"y": y, "arm": arm, "site": np.arange(602) % 4}, by="site"),
        family="binomial",
    )
    low, high = np.exp(fit.intervals["arm"])
    odds, error = 27 / 268 / (52 / 255), np.sqrt(1 / 27 + 1 / 268 + 1 / 52 + 1 / 255)
    assert np.exp(fit.coefficients["arm"]) == pytest.approx(odds, rel=1e-12)
    assert (low, high) == pytest.approx(
        (odds * np.exp(-1.959963984540054 * error), odds * np.exp(1.959963984540054 * error)), rel=1e-12
    )
    assert "0.494 (0.301 to 0.811)" in repr(fit)


def test_sites_and_their_order_change_nothing(columns):
    one = stats.glm(
        "died ~ age", Clients.from_table(columns | {"all": np.zeros(240, int)}, by="all"), family="binomial"
    )
    many = stats.glm("died ~ age", Clients.from_table(columns, by="block"), family="binomial")
    np.testing.assert_allclose(one.estimates, many.estimates, rtol=1e-12)
    np.testing.assert_allclose(one.covariance, many.covariance, rtol=1e-10)


def test_fixed_effects_of_sites_are_their_categories(columns):
    clients = Clients.from_table(columns, by="site")
    fixed = stats.glm("lab ~ age", clients, site_effects="fixed")
    assert (
        fixed.coefficients == stats.glm("lab ~ age + C(site)", clients).coefficients
        and "C(site)[T.d]" in fixed.coefficients
    )


def test_far_from_zero_a_column_is_as_exact(columns):
    clients = Clients.from_table(columns | {"year": 2.0e6 + columns["age"]}, by="site")
    near, far = stats.glm("lab ~ age", clients), stats.glm("lab ~ year", clients)
    assert far.coefficients["year"] == pytest.approx(near.coefficients["age"], rel=1e-8)
    assert far.standard_errors["year"] == pytest.approx(near.standard_errors["age"], rel=1e-8)


@pytest.mark.parametrize(
    ("change", "formula", "family", "said"),
    [
        ({"died": [0, 1, 0, 1, 1, 1]}, "died ~ C(site)", "binomial", r"C\(site\)\[T.c\]' grows without end: it separates"),
        ({"died": [0, 0, 0, 1, 1, 1]}, "died ~ age", "binomial", "'age' grows without end"),
        ({"died": [0, 2, 0, 0, 0, 0]}, "died ~ age + C(site)", "poisson", "grows without end"),
        ({"age": [1.0, None, 3, 4, 5, 6]}, "died ~ age", "gaussian", "'age' in 1 rows, of 6 rows.*missing='drop'.*5 rows"),
        ({"age": [1, 1, 1, 1, 1, 1]}, "died ~ age", "gaussian", "'age' is the same in every row"),
        ({"more": [2, 4, 6, 8, 10, 12]}, "died ~ age + more", "gaussian", "'age', 'more' depend on one another"),
        ({"died": [0, 1, 2, 1, 1, 1]}, "died ~ age", "binomial", "must be 0 or 1, and is not in 1 rows"),
        ({"died": ["no", "yes"] * 3}, "died ~ age", "binomial", r"I\(died == 'yes'\) ~"),
        ({"sex": ["F"] * 6}, "died ~ sex", "gaussian", "'sex' has one level alone"),
        ({}, "died ~ np.log(age - 1)", "gaussian", "is not finite in 1 rows"),
        ({}, "died ~ height", "gaussian", "there is no column 'height'"),
        ({}, "died ~ open('x')", "gaussian", "is not understood"),
        ({}, "died, age ~ 1", "gaussian", "one outcome"),
        ({}, "died", "gaussian", "is no formula"),
        ({}, "died ~ (age", "gaussian", "is no formula"),
    ],
)  # fmt: skip
def test_what_has_no_answer_says_why_and_the_way_out(change, formula, family, said):
    table = {"site": list("aabbcc"), "age": [1, 2, 3, 4, 5, 6], "died": [0, 1, 0, 1, 0, 1]} | change
    with pytest.raises(ValueError, match=said):
        stats.glm(formula, Clients.from_table(table, by="site"), family=family)


def test_rows_with_missing_values_are_dropped_where_that_is_asked(columns):
    age = np.where(np.arange(240) % 7 == 0, np.nan, columns["age"])
    clients = Clients.from_table(columns | {"age": age}, by="site")
    kept = {name: x[np.isfinite(age)] for name, x in columns.items()}
    fit, same = (
        stats.glm("lab ~ age", clients, missing="drop"),
        stats.glm("lab ~ age", Clients.from_table(kept, by="site")),
    )
    assert (
        fit.coefficients == same.coefficients
        and fit.dropped == 35
        and "35 with missing values left out" in repr(fit)
    )


def test_a_site_with_one_patient_and_one_without_events_count(columns):
    lonely = columns | {"place": np.where(np.arange(240) == 5, "z", columns["site"])}
    calm = lonely | {"place": np.where(columns["died"] == 0, lonely["place"], "events")}
    pooled = stats.glm("died ~ age", Clients.from_table(columns, by="site"), family="binomial")
    for table in (lonely, calm):
        fit = stats.glm("died ~ age", Clients.from_table(table, by="place"), family="binomial")
        assert_named(fit.coefficients, pooled.coefficients, 1e-11)


def test_text_that_is_a_truth_value_may_be_the_outcome(columns):
    table = columns | {"dead": columns["died"] == 1}
    fit = stats.glm("dead ~ age", Clients.from_table(table, by="site"), family="binomial")
    assert (
        fit.coefficients
        == stats.glm("died ~ age", Clients.from_table(columns, by="site"), family="binomial").coefficients
    )
