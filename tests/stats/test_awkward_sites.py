"""Sites as they come (one row, no event, missing values, text and its codes): weighting, mixed models, ComBat
and imputation are still the pooled computation, written another way."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from fedjax_core import Clients, stats
from fedjax_core.stats.newton import NoEstimate

SEEDS = range(4)


def table(seed, rows=160):
    """Eight sites: two of a row each, one without an event and one without a treated person; values missing
    here and there."""
    draw = np.random.default_rng([seed, 1])
    site = np.r_[np.array([6, 7]), draw.choice(6, rows - 2, p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04])]
    age, sex = draw.normal(60, 12, rows), draw.choice(["F", "M"], rows).astype(object)
    treated = (draw.uniform(size=rows) < expit(0.04 * (age - 60) + 0.4 * (sex == "M"))) * 1
    died = (draw.uniform(size=rows) < expit(0.03 * (age - 60) - 0.4 + draw.normal(0, 0.8, 8)[site])) * 1
    treated[site == 4], died[site == 5] = 0, 0
    lab = 0.1 * age + treated + draw.normal(size=rows) + draw.normal(0, 0.5, 8)[site]
    age[draw.uniform(size=rows) < 0.1] = np.nan
    sex[draw.uniform(size=rows) < 0.05] = None
    return {"site": site, "age": age, "sex": sex, "treated": treated, "died": died, "lab": lab}


def complete(columns, *names):
    """Those rows alone in which all of these are known."""
    known = np.array(
        [all(x is not None and x == x for x in row) for row in zip(*(columns[n] for n in names), strict=True)]
    )
    return {name: x[known] for name, x in columns.items()}


def as_codes(columns):
    """The same, with the text as numbers of the file."""
    coded = [np.nan if one is None else {"F": 1.0, "M": 2.0}[one] for one in columns["sex"]]
    return columns | {"sex": np.array(coded)}


def newton(x, y):
    """The pooled logistic fit."""
    beta = np.zeros(x.shape[1])
    for _ in range(30):
        p = expit(x @ beta)
        beta = beta + np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (y - p))
    return beta


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weights", ("ate", "att", "overlap"))
def test_weighted_effects_are_those_of_the_rows_that_are_complete(seed, weights):
    columns = table(seed)
    used = complete(columns, "age", "sex")
    x = np.stack([np.ones(len(used["age"])), (used["age"] - 60) / 10, used["sex"] == "M"], axis=1).astype(
        float
    )
    t, y = used["treated"], used["lab"]
    e = expit(x @ newton(x, t))
    w = {
        "ate": t / e + (1 - t) / (1 - e),
        "att": t + (1 - t) * e / (1 - e),
        "overlap": t * (1 - e) + (1 - t) * e,
    }[weights]
    expected = np.average(y[t == 1], weights=w[t == 1]) - np.average(y[t == 0], weights=w[t == 0])
    asked = {"weights": weights, "missing": "drop"}
    found = stats.treatment_effect(
        "lab, treated ~ age + sex", Clients.from_table(columns, by="site"), **asked
    )
    coded = stats.treatment_effect(
        "lab, treated ~ age + C(sex)", Clients.from_table(as_codes(columns), by="site"), **asked
    )
    assert found.effect == pytest.approx(expected, rel=1e-8) and found.dropped == len(columns["age"]) - len(t)
    assert (coded.effect, coded.standard_error) == pytest.approx(
        (found.effect, found.standard_error), rel=1e-9
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_where_a_covariate_tells_the_treated_there_is_no_effect(seed):
    columns = table(seed) | {"z": table(seed)["treated"] * 2.0 + np.linspace(0, 1, 160)}
    with pytest.raises(NoEstimate, match=r"separat|tell"):
        stats.treatment_effect("lab, treated ~ z", Clients.from_table(columns, by="site"))


def marginal(theta, x, y, site):
    """Minus the log-likelihood of a random intercept by site: a sum over a fine grid of it, and not
    Gauss-Hermite points."""
    grid = np.linspace(-9, 9, 301)
    prior = np.log(grid[1] - grid[0]) - grid**2 / 2 - np.log(2 * np.pi) / 2
    found = 0.0
    for one in np.unique(site):
        eta = (x[site == one] @ theta[:-1])[:, None] + theta[-1] * grid
        found += np.logaddexp.reduce((y[site == one][:, None] * eta - np.logaddexp(0, eta)).sum(0) + prior)
    return -found


@pytest.mark.parametrize("seed", (0, 1))
def test_a_mixed_model_is_the_maximum_that_another_optimiser_finds(seed):
    columns = table(seed)
    used = complete(columns, "age", "sex")
    x = np.stack([np.ones(len(used["age"])), (used["age"] - 60) / 10, used["sex"] == "M"], axis=1).astype(
        float
    )
    fit = stats.glmm("died ~ age + sex", Clients.from_table(columns, by="site"), missing="drop")
    best = minimize(
        marginal,
        [*newton(x, used["died"]), 0.7],
        args=(x, used["died"], used["site"]),
        method="BFGS",
        options={"gtol": 1e-7},
    )
    a, b, c, sd = best.x
    assert fit.log_likelihood == pytest.approx(-best.fun, abs=1e-7)
    found = [fit.coefficients[name] for name in ("Intercept", "age", "sex[T.M]")]
    np.testing.assert_allclose(found, [a - 6 * b, b / 10, c], atol=2e-5)
    assert fit.random_intercept_sd == pytest.approx(abs(sd), abs=2e-5) and fit.sites == len(
        np.unique(used["site"])
    )


@pytest.mark.parametrize("seed", (0, 1))
def test_a_mixed_model_without_an_estimate_says_so(seed):
    columns = table(seed)
    columns["died"] = (columns["lab"] > np.median(columns["lab"])) * 1
    with pytest.raises(NoEstimate):
        stats.glmm("died ~ lab", Clients.from_table(columns, by="site"))


def harmonised(y, site, covariates):
    """Johnson, Li and Rabinovic's algorithm on a whole table, one site after another."""
    names = np.unique(site)
    batch = (site[:, None] == names) * 1.0
    x = np.concatenate([batch, covariates], axis=1)
    b = np.linalg.lstsq(x, y, rcond=None)[0]
    fitted = batch.mean(0) @ b[: len(names)] + covariates @ b[len(names) :]
    sd = np.sqrt(((y - x @ b) ** 2).mean(0))
    z, even = (y - fitted) / sd, np.empty_like(y)
    for name in names:
        here = z[site == name]
        n, mean, variance = len(here), here.mean(0), here.var(0, ddof=1)
        m, v = variance.mean(), variance.var(ddof=1)
        a, beta = m**2 / v + 2, m**3 / v + m
        g, d = mean, variance
        for _ in range(300):
            g = (n * mean.var(ddof=1) * mean + d * mean.mean()) / (n * mean.var(ddof=1) + d)
            d = (beta + ((here - g) ** 2).sum(0) / 2) / (n / 2 + a - 1)
        even[site == name] = (here - g) / np.sqrt(d) * sd + fitted[site == name]
    return even


@pytest.mark.parametrize("seed", SEEDS)
def test_harmonised_features_are_the_pooled_ones_with_sites_of_two_rows(seed):
    draw = np.random.default_rng([seed, 2])
    site = np.repeat(np.arange(5), [2, 2, 30, 9, 40])
    columns = {"site": site, "sex": draw.choice(["F", "M"], len(site)).astype(object)}
    columns["sex"][draw.choice(len(site), 4, replace=False)] = None
    names = [f"f{i}" for i in range(4)]
    for i, name in enumerate(names):
        columns[name] = (
            10 * i + draw.normal(0, 1, 5)[site] + draw.uniform(0.5, 2, 5)[site] * draw.normal(size=len(site))
        )
    columns["sex"][:4] = ["F", "M", "M", "F"]  # no site is left with a single row
    used = complete(columns, "sex")
    expected = harmonised(
        np.stack([used[name] for name in names], axis=1), used["site"], (used["sex"] == "M")[:, None] * 1.0
    )
    found = stats.combat(Clients.from_table(columns, by="site"), names, keep="sex", missing="drop")
    even = found.apply(Clients.from_table(used, by="site")).columns
    order = np.argsort(used["site"], kind="stable")
    np.testing.assert_allclose(np.stack([even[name] for name in names], axis=1), expected[order], rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_drawn_coefficients_are_of_the_pooled_posterior_however_rows_are_spread(seed):
    """Their distance from the pooled fit, by its covariance, is that of the normal numbers which were
    drawn."""
    columns = table(seed)
    columns["sex"] = np.where(columns["sex"] == None, "F", columns["sex"])  # noqa: E711
    there = np.isfinite(columns["age"])
    x = np.stack([np.ones(there.sum()), columns["sex"][there] == "M", columns["lab"][there]], axis=1).astype(
        float
    )
    b, (rss,) = np.linalg.lstsq(x, columns["age"][there], rcond=None)[:2]
    found = []
    for site in (columns["site"], np.random.default_rng(seed).integers(0, 3, len(there))):
        (one, _) = stats.impute(
            Clients.from_table(columns | {"site": site}, by="site"),
            ["age", "sex", "lab"],
            times=2,
            rounds=1,
            seed=seed,
        )
        found.append(one.fills[-1])
        draw = np.random.default_rng((seed, 0, 1))
        variance = rss / draw.chisquare(len(x) - 3)
        away = np.array(found[-1].beta) - b
        assert away @ (x.T @ x / variance) @ away == pytest.approx((draw.normal(size=3) ** 2).sum(), rel=1e-7)
        assert found[-1].sd == pytest.approx(np.sqrt(variance), rel=1e-9)
    np.testing.assert_allclose(found[0].beta, found[1].beta, rtol=1e-7)
