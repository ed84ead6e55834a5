"""Cox models, survival curves and log-rank tests over clients are those of the pooled rows."""

import numpy as np
import pytest

from fedjax_core import stats
from fedjax_core.data import Clients
from tests.stats import multisite
from tests.stats.multisite import assert_named

FORMULAS = {"bmt": ("t2, d3", "z1 + z2", "group"), "pda_lung2": ("time, status", "age + sexn", "site")}


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_cox_models_of_pooled_tables_are_met(data_dir, name, ties):
    wanted = multisite.answers(data_dir)[f"{name}|cox|{ties}"]
    clients = multisite.table(data_dir, name)
    for strata in ("site", wanted["strata"]):  # each site by itself, and by the times of all
        fit = stats.cox("{} ~ {}".format(*FORMULAS[name]), clients, ties=ties, strata=strata)
        assert_named(fit.coefficients, wanted["coefficients"], 1e-8)
        assert_named(fit.standard_errors, wanted["standard_errors"], 1e-8)
        assert (fit.rows, fit.events) == (wanted["n"], wanted["events"])


@pytest.mark.parametrize("name", FORMULAS)
def test_the_curves_and_tests_of_pooled_tables_are_met(data_dir, name):
    answers, clients = multisite.answers(data_dir), multisite.table(data_dir, name)
    outcome, _, groups = FORMULAS[name]
    wanted = answers[f"{name}|km"]
    curve = stats.kaplan_meier(f"{outcome} ~ 1", clients)
    np.testing.assert_allclose(curve.at(wanted["times"]), wanted["survival"], rtol=1e-12)
    assert curve.median == wanted["median"]
    found, wanted = stats.logrank(f"{outcome} ~ {groups}", clients), answers[f"{name}|logrank"]
    assert (found.chi2, found.p_value, found.df) == pytest.approx(
        (wanted["chi2"], wanted["p"], wanted["df"]), rel=1e-9
    )


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(5)
    n = 160
    age, site, sex = (
        draw.normal(60, 10, n),
        draw.integers(0, 4, n),
        np.array(["F", "M"])[draw.integers(0, 2, n)],
    )
    time = np.ceil(draw.exponential(40 * np.exp(-0.03 * (age - 60) - 0.5 * (sex == "M"))))
    return {
        "site": site,
        "age": age,
        "sex": sex,
        "time": time,
        "event": (draw.uniform(size=n) < 0.7).astype(int),
        "entry": np.maximum(0, time - draw.integers(1, 20, n) + 0.5),
    }


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize(("strata", "entry"), [((), False), (("sex",), False), ((), True)])
def test_it_is_the_fit_of_statsmodels(columns, ties, strata, entry):
    PHReg = pytest.importorskip(
        "statsmodels.duration.api", reason="statsmodels, with which this compares, is not installed"
    ).PHReg
    male = (columns["sex"] == "M") * 1.0
    x = columns["age"][:, None] if strata else np.stack([columns["age"], male], axis=1)
    more = {"strata": male} if strata else {"entry": columns["entry"]} if entry else {}
    pooled = PHReg(columns["time"], x, status=columns["event"], ties=ties, **more).fit(disp=0)
    left = "entry, time, event" if entry else "time, event"
    fit = stats.cox(
        f"{left} ~ age" + ("" if strata else " + I(sex == 'M')"),
        Clients.from_table(columns, by="site"),
        ties=ties,
        strata=strata,
    )
    order = ["age"] if strata else ["age", "I(sex == 'M')[T.True]"]
    np.testing.assert_allclose([fit.coefficients[name] for name in order], pooled.params, rtol=1e-6)
    np.testing.assert_allclose([fit.standard_errors[name] for name in order], pooled.bse, rtol=1e-6)
    assert fit.log_likelihood == pytest.approx(pooled.llf, rel=1e-9)


def test_without_covariates_that_matter_the_baseline_is_nelson_aalen():
    table = {"site": list("aabb"), "time": [1, 2, 3, 4], "event": [1, 1, 0, 1], "x": [1.0, -1.0, 1.0, -1.0]}
    fit = stats.cox("time, event ~ x", Clients.from_table(table, by="site"), ties="breslow")
    times, hazard = fit.baseline[""]
    r = np.exp(fit.coefficients["x"] * np.array(table["x"]))
    np.testing.assert_allclose(hazard, np.cumsum([1 / r.sum(), 1 / r[1:].sum(), 1 / r[3:].sum()]), rtol=1e-10)
    assert times.tolist() == [1, 2, 4]


def test_a_public_grid_rounds_times_up_and_tells_none(columns):
    grid = range(10, 210, 10)
    rounded = np.where(columns["time"] <= 200, np.ceil(columns["time"] / 10) * 10, 999)
    event = np.where(columns["time"] <= 200, columns["event"], 0)
    clients, same = (
        Clients.from_table(columns, by="site"),
        Clients.from_table(columns | {"time": rounded, "event": event}, by="site"),
    )
    on_grid, exact = (
        stats.kaplan_meier("time, event ~ 1", clients, grid=grid),
        stats.kaplan_meier("time, event ~ 1", same),
    )
    np.testing.assert_allclose(on_grid.at(grid), exact.at(grid), rtol=1e-12)
    for strata in ((), "sex"):
        coarse, known = (
            stats.cox("time, event ~ age", one, strata=strata, grid=g)
            for one, g in ((clients, grid), (same, None))
        )
        np.testing.assert_allclose(coarse.estimates, known.estimates, rtol=1e-9)


def test_a_curve_without_censoring_is_the_share_that_lives_and_its_mean():
    curve = stats.kaplan_meier(
        "time, event ~ 1",
        Clients.from_table({"site": [0, 0, 1, 1], "time": [1, 2, 3, 4], "event": [1] * 4}, by="site"),
    )
    assert curve.survival.tolist() == [0.75, 0.5, 0.25, 0.0] and curve.median == 2
    # binomial
    np.testing.assert_allclose(curve.standard_errors[:3] ** 2, [0.75 * 0.25 / 4, 0.25 / 4, 0.75 * 0.25 / 4])
    mean, error = curve.rmst(3.5)
    capped = np.minimum([1, 2, 3, 4], 3.5)
    assert mean == pytest.approx(capped.mean()) and error == pytest.approx(capped.std() / 2)


def test_curves_by_groups_are_curves_of_the_groups(columns):
    both = stats.kaplan_meier("time, event ~ sex", Clients.from_table(columns, by="site"))
    male = {name: x[columns["sex"] == "M"] for name, x in columns.items()}
    alone = stats.kaplan_meier("time, event ~ 1", Clients.from_table(male, by="site"))
    np.testing.assert_array_equal(both["M"].survival, alone.survival)
    assert "median" in repr(alone)


@pytest.mark.parametrize(
    ("change", "formula", "said"),
    [
        ({"event": [0] * 6}, "time, event ~ age", "there is no event at any site"),
        ({"event": [0, 0, 2, 0, 0, 1]}, "time, event ~ age", "an event is 0 or 1, and is not in 1 rows"),
        ({"time": [-1, 2, 3, 4, 5, 6]}, "time, event ~ age", "a time is below 0"),
        ({}, "time ~ age", "'time, event ~ ...'"),
        ({}, "time, event ~ 1", "has no covariate"),
        ({"age": [6.0, 5, 4, 3, 2, 1]}, "time, event ~ age", "'age' grows without end"),
    ],
)
def test_what_has_no_answer_says_why(change, formula, said):
    table = {
        "site": list("aabbcc"),
        "time": [1, 2, 3, 4, 5, 6],
        "event": [1, 1, 1, 1, 1, 1],
        "age": [3, 1, 4, 1, 5, 9],
    } | change
    with pytest.raises(ValueError, match=said):
        stats.cox(formula, Clients.from_table(table, by="site"))


def test_sites_without_events_add_nothing_where_sites_are_strata(columns):
    calm = {name: x[columns["event"] == 0][:5] for name, x in columns.items()} | {"site": np.full(5, 9)}
    both = {name: np.concatenate([columns[name], calm[name]]) for name in columns}
    fits = [
        stats.cox("time, event ~ age + sex", Clients.from_table(one, by="site"), strata="site")
        for one in (columns, both)
    ]
    np.testing.assert_allclose(fits[0].estimates, fits[1].estimates, rtol=1e-9)
    assert fits[1].baseline is None and "strata site" in repr(fits[1])


def time_varying(x, time, event, g, ties):
    """The log partial likelihood of coefficients beta + theta g(t): a plain loop over times, of [beta,
    theta]."""

    def log_likelihood(at):
        found, p = 0.0, x.shape[1]
        for t in np.unique(time[event == 1]):
            eta = x @ (at[:p] + at[p:] * g(t))
            dead, risk = (time == t) & (event == 1), np.exp(eta[time >= t]).sum()
            found += eta[dead].sum()
            for k in range(dead.sum()):
                found -= np.log(risk - (k / dead.sum() * np.exp(eta[dead]).sum() if ties == "efron" else 0))
        return found

    return log_likelihood


@pytest.mark.parametrize(
    ("ties", "transform"), [("efron", "identity"), ("breslow", "log"), ("efron", "rank")]
)
def test_proportional_hazards_are_tested_by_the_score_of_the_likelihood_with_time(columns, ties, transform):
    some = {name: x[:60] for name, x in columns.items()}
    fit = stats.cox(
        "time, event ~ age + sex", Clients.from_table(some, by="site"), ties=ties, schoenfeld=transform
    )
    x, dead = (
        np.stack([(some["sex"] == "M") * 1.0, (some["age"] - 60) / 10], axis=1),
        some["time"][some["event"] == 1],
    )
    middle, spread = dead.mean(), dead.std()
    g = {
        "identity": lambda t: (t - middle) / spread,
        "log": lambda t: np.log(t / middle),
        "rank": lambda t: ((dead < t).sum() + ((dead == t).sum() + 1) / 2) / len(dead) - 0.5,
    }[transform]
    at, step = (
        np.array([fit.coefficients["sex[T.M]"], 10 * fit.coefficients["age"], 0.0, 0.0]),
        1e-3 * np.eye(4),
    )
    log_likelihood = time_varying(x, some["time"], some["event"], g, ties)
    score = np.array([(log_likelihood(at + d) - log_likelihood(at - d)) / 2e-3 for d in step])
    information = -np.array(
        [
            [
                sum(p * q * log_likelihood(at + p * a + q * b) for p in (1, -1) for q in (1, -1)) / 4e-6
                for a in step
            ]
            for b in step
        ]
    )
    assert fit.schoenfeld.global_chi2 == pytest.approx(score @ np.linalg.solve(information, score), rel=1e-3)
    for j, name in enumerate(("sex[T.M]", "age")):
        kept = [0, 1, 2 + j]
        one = score[kept] @ np.linalg.solve(information[np.ix_(kept, kept)], score[kept])
        assert fit.schoenfeld.chi2[name] == pytest.approx(one, rel=1e-3, abs=1e-6)
    assert 0 < fit.schoenfeld.global_p < 1 and set(fit.schoenfeld.p_values) == {"age", "sex[T.M]"}


def test_sites_as_strata_test_proportional_hazards_without_telling_times(columns):
    clients = Clients.from_table({name: x for name, x in columns.items()}, by="site")
    same = Clients.from_table(columns | {"stratum": columns["site"], "site": np.zeros(160, int)}, by="site")
    told, kept = (
        stats.cox("time, event ~ age", same, strata="stratum", schoenfeld="log"),
        stats.cox("time, event ~ age", clients, strata="site", schoenfeld="log"),
    )
    assert kept.baseline is None and kept.schoenfeld.global_chi2 == pytest.approx(
        told.schoenfeld.global_chi2, rel=1e-9
    )
    with pytest.raises(ValueError, match='take "log"'):
        stats.cox("time, event ~ age", clients, strata="site", schoenfeld="rank")


def test_hazards_that_cross_are_found():
    draw = np.random.default_rng(0)
    arm = np.arange(300) % 2
    # first none of one arm, then all of them
    time = np.where(arm == 1, draw.uniform(4, 6, 300), draw.exponential(6, 300))
    table = {"site": draw.integers(0, 3, 300), "time": time, "event": np.ones(300, int), "arm": arm}
    fit = stats.cox(
        "time, event ~ arm", Clients.from_table(table, by="site"), strata="site", schoenfeld="log"
    )
    assert fit.schoenfeld.global_p < 1e-6 and fit.schoenfeld.chi2["arm"] == pytest.approx(
        fit.schoenfeld.global_chi2
    )


def test_the_baseline_hazard_is_that_of_statsmodels(columns):
    PHReg = pytest.importorskip(
        "statsmodels.duration.api", reason="statsmodels, with which this compares, is not installed"
    ).PHReg
    pooled = PHReg(
        columns["time"], columns["age"][:, None] - 60, status=columns["event"], ties="breslow"
    ).fit(disp=0)
    fit = stats.cox("time, event ~ I(age - 60)", Clients.from_table(columns, by="site"), ties="breslow")
    times, hazard = fit.baseline[""]
    at, wanted, _ = pooled.baseline_cumulative_hazard[0]
    np.testing.assert_array_equal(at, times)
    # it tells the hazard just before each time
    np.testing.assert_allclose(hazard[:-1], wanted[1:], rtol=1e-6)
