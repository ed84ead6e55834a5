"""CSV files as hospitals send them (a row at a site, sites without events or with nothing else, gaps, codes as text): regressions
and survival are statsmodels' of the pooled table, and what has no answer says why."""

import csv
import warnings

import numpy as np
import pytest
from scipy.special import expit

from fedjax_core import Clients, stats
from fedjax_core.stats.newton import NoEstimate

pandas = pytest.importorskip("pandas", reason="pandas, with which this compares, is not installed")
sm = pytest.importorskip("statsmodels.api", reason="statsmodels, with which this compares, is not installed")
SEEDS, MISSING = range(3), ("NA", "", "NaN")


def table(seed, rows=150):
    """Ten sites: three of a row, one without events, one without deaths and one of deaths alone."""
    draw = np.random.default_rng([seed, 7])
    site = np.r_[[7, 8, 9], draw.choice(7, rows - 3, p=[0.4, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03])]
    age, sex = draw.normal(60, 12, rows).round(1), draw.choice(["F", "M"], rows).astype(object)
    eta = 0.04 * (age - 60) + 0.5 * (sex == "M") - 0.7 + draw.normal(0, 0.5, 10)[site]
    died, event = (draw.uniform(size=rows) < expit(eta)) * 1, draw.integers(0, 2, rows)
    died[site == 5], died[site == 4], event[site == 6] = 0, 1, 0
    age[draw.uniform(size=rows) < 0.08] = np.nan
    sex[draw.uniform(size=rows) < 0.05] = None
    return pandas.DataFrame(
        {
            "site": [f"s{i}" for i in site], "age": age, "sex": sex, "grade": draw.choice(["1", "2", "3"], rows), "died": died,
            "time": np.ceil(draw.exponential(60 * np.exp(-0.5 * eta))), "event": event, "visits": draw.poisson(np.exp(0.2 + 0.3 * eta)),
            "days": draw.integers(10, 60, rows), "lab": eta + draw.normal(size=rows),
        }
    )  # fmt: skip


@pytest.fixture(params=SEEDS, ids=lambda seed: f"seed {seed}")
def pooled(request, tmp_path):
    """(the pooled table, the same from a file by site)."""
    whole = table(request.param)
    gap = MISSING[request.param]
    rows = [[gap if x is None or x != x else x for x in row] for row in whole.itertuples(index=False)]
    with open(tmp_path / "patients.csv", "w", newline="") as file:
        csv.writer(file).writerows([list(whole.columns), *rows])
    return whole, Clients.from_table(str(tmp_path / "patients.csv"), by="site")


def same(fit, pooled, coefficients, errors):
    names = list(fit.coefficients)
    np.testing.assert_allclose(
        [fit.coefficients[n] for n in names], [pooled.params[n] for n in names], rtol=coefficients
    )
    np.testing.assert_allclose(
        [fit.standard_errors[n] for n in names], [pooled.bse[n] for n in names], rtol=errors
    )


@pytest.mark.parametrize(
    ("formula", "family", "pooled_family", "errors"),
    [
        ("died ~ age + sex + C(grade)", "binomial", lambda f: f.Binomial(), "model"),
        ("died ~ age + sex", "binomial", lambda f: f.Binomial(), "robust"),
        ("died ~ age + sex", "binomial", lambda f: f.Binomial(), "cluster"),
        ("lab ~ age * sex", "gaussian", lambda f: f.Gaussian(), "model"),
        ("visits ~ age + sex", "poisson", lambda f: f.Poisson(), "model"),
        ("visits ~ age + sex", "negative binomial", lambda f: f.NegativeBinomial(alpha=1.0), "model"),
    ],
)
def test_regressions_are_those_of_the_pooled_table(pooled, formula, family, pooled_family, errors):
    whole, clients = pooled
    rows = whole.dropna(subset=["age", "sex"])
    offset = {"offset": "log(days)"} if family == "poisson" else {}
    fit = stats.glm(formula, clients, family=family, errors=errors, missing="drop", **offset)
    theirs = {"offset": np.log(rows.days)} if offset else {}
    how = {
        "model": {},
        "robust": {"cov_type": "HC0"},
        "cluster": {"cov_type": "cluster", "cov_kwds": {"groups": rows.site}},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of pandas
        model = sm.GLM.from_formula(formula, rows, family=pooled_family(sm.families), **theirs)
        result = model.fit(tol=1e-14, maxiter=200, **how[errors])
    same(fit, result, 1e-7, 1e-7)
    assert fit.log_likelihood == pytest.approx(result.llf, rel=1e-9) and fit.rows == len(rows)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("strata", [(), "site"])
def test_hazards_are_those_of_the_pooled_table(pooled, ties, strata):
    whole, clients = pooled
    rows = whole.dropna(subset=["age", "sex"])
    fit = stats.cox("time, event ~ age + sex", clients, ties=ties, strata=strata, missing="drop")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {"strata": rows.site.to_numpy()} if strata else {}
        result = sm.PHReg.from_formula(
            "time ~ age + sex", rows, status=rows.event.to_numpy(), ties=ties, **theirs
        ).fit()
    np.testing.assert_allclose(list(fit.coefficients.values()), result.params, rtol=1e-5)
    np.testing.assert_allclose(list(fit.standard_errors.values()), result.bse, rtol=1e-5)


def test_curves_and_tests_are_those_of_the_pooled_table(pooled):
    whole, clients = pooled
    curve = sm.SurvfuncRight(whole.time, whole.event)
    np.testing.assert_allclose(
        stats.kaplan_meier("time, event ~ 1", clients).at(curve.surv_times), curve.surv_prob, rtol=1e-9
    )
    chi2, _ = sm.duration.survdiff(whole.time, whole.event, whole.grade)
    assert stats.logrank("time, event ~ grade", clients).chi2 == pytest.approx(chi2, rel=1e-9)


def test_effects_of_sites_that_have_one_outcome_alone_have_no_estimate(pooled):
    with pytest.raises(
        NoEstimate, match=r"C\(site\)\[T\.s\d\]' grows without end.*strata or a random intercept"
    ):
        stats.glm("died ~ age", pooled[1], family="binomial", site_effects="fixed", missing="drop")


BASE = {
    "site": list("aabbcc"),
    "age": [1.0, 2, 3, 4, 5, 6],
    "time": [6.0, 5, 4, 3, 2, 1],
    "event": [1, 1, 1, 1, 1, 1],
    "died": [0] * 6,
}


@pytest.mark.parametrize(
    ("change", "ask", "why"),
    [
        ({}, lambda c: stats.glm("died ~ age", c, family="binomial"), "'died' is 0 in every row"),
        ({"died": [1] * 6}, lambda c: stats.glm("died ~ age", c, family="binomial"), "'died' is 1 in every row"),
        ({}, lambda c: stats.glm("died ~ age", c, family="poisson"), "'died' is 0 in every row"),
        ({}, lambda c: stats.glmm("died ~ age", c), "'died' is 0 in every row"),
        ({}, lambda c: stats.cox("time, event ~ age", c), "'age' grows without end"),
        ({"event": list("ynynyn")}, lambda c: stats.cox("time, event ~ age", c), r"'event' is text, 'n', 'y': .*I\(event == 'y'\)"),
        ({"site": list("abcdef"), "died": [1, 3, 2, 5, 4, 6]}, lambda c: stats.lmm("died ~ age", c), "every site has one row"),
    ],
)  # fmt: skip
def test_what_has_no_answer_says_why(change, ask, why):
    with pytest.raises(ValueError, match=why):
        ask(Clients.from_table(BASE | change, by="site"))


def test_events_of_truth_values_are_events_and_a_line_through_all_points_has_no_doubt():
    draw = np.random.default_rng(0)
    columns = {
        "site": list("aabbcc") * 5,
        "age": draw.normal(size=30),
        "time": draw.exponential(size=30),
        "event": draw.integers(0, 2, 30),
    }
    wanted = stats.cox("time, event ~ age", Clients.from_table(columns, by="site"))
    truths = Clients.from_table(columns | {"event": columns["event"] == 1}, by="site")
    assert stats.cox("time, event ~ age", truths).coefficients == wanted.coefficients
    assert stats.kaplan_meier("time, event ~ 1", truths).events.sum() == columns["event"].sum()
    exact = stats.glm("y ~ age", Clients.from_table(columns | {"y": 2 * columns["age"] + 1}, by="site"))
    assert (
        exact.coefficients["age"] == pytest.approx(2, rel=1e-9)
        and exact.p_values["age"] < 1e-9
        and "age" in repr(exact)
    )
