"""Mixed logistic and Poisson models over clients are the pooled maximum, by integrals that SciPy computes."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit, gammaln

from fedjax_core import Clients, stats


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(17)
    site = np.repeat(np.arange(8), [9, 2, 14, 7, 30, 5, 11, 1])
    x, own = draw.normal(50, 8, len(site)), draw.normal(0, 1, 8)[site]
    y = (draw.uniform(size=len(site)) < expit(0.08 * (x - 50) + own)) * 1
    return {"site": site, "x": x, "y": y, "visits": draw.poisson(np.exp(0.02 * (x - 50) + 0.5 * own))}


def log_likelihood(columns, outcome, intercept, slope, sd):
    """The pooled one: a plain loop over sites, and an adaptive integral of each."""
    found = 0.0
    for site in np.unique(columns["site"]):
        y, eta = (
            columns[outcome][columns["site"] == site],
            intercept + slope * columns["x"][columns["site"] == site],
        )

        def density(u, y=y, eta=eta):
            m = eta + sd * u
            each = y * m - np.logaddexp(0, m) if outcome == "y" else y * m - np.exp(m) - gammaln(y + 1)
            return np.exp(each.sum() - u**2 / 2) / np.sqrt(2 * np.pi)

        found += np.log(quad(density, -9, 9, epsabs=0, epsrel=1e-10, limit=200)[0])
    return found


@pytest.mark.parametrize(("outcome", "family"), [("y", "binomial"), ("visits", "poisson")])
def test_it_is_the_maximum_of_the_pooled_likelihood_with_its_curvature(columns, outcome, family):
    fit = stats.glmm(f"{outcome} ~ x", Clients.from_table(columns, by="site"), family=family)
    at = np.array([*fit.coefficients.values(), fit.random_intercept_sd])
    assert fit.log_likelihood == pytest.approx(log_likelihood(columns, outcome, *at), rel=1e-10)
    steps, errors = np.diag([0.3, 0.006, 0.1]), [*fit.standard_errors.values(), fit.random_intercept_sd_error]
    ends = {}
    for i, a in enumerate(steps):
        for s in (-1, 1):
            ends[i, s] = log_likelihood(columns, outcome, *(at + s * a / 50))
        assert max(ends[i, 1], ends[i, -1]) <= fit.log_likelihood
        slope = (ends[i, 1] - ends[i, -1]) / (2 / 50)  # by a standard error or so: next to none, of a maximum
        assert abs(slope) < 1e-3
    bend = np.zeros((3, 3))
    for i in range(3):
        for j in range(i + 1):
            a, b = steps[i] / 50, steps[j] / 50
            corners = [
                log_likelihood(columns, outcome, *(at + p * a + q * b))
                for p, q in ((1, 1), (1, -1), (-1, 1), (-1, -1))
            ]
            bend[i, j] = bend[j, i] = -(corners[0] - corners[1] - corners[2] + corners[3]) / (4 * a[i] * b[j])
    np.testing.assert_allclose(errors, np.sqrt(np.diag(np.linalg.inv(bend))), rtol=2e-3)


def test_without_differences_between_sites_it_is_the_plain_fit():
    table = {"site": [0, 0, 1, 1, 2, 2], "y": [0, 1] * 3, "x": [0.0, 0, 1, 1, 2, 2]}
    clients = Clients.from_table(table, by="site")
    fit, plain = stats.glmm("y ~ x", clients), stats.glm("y ~ x", clients, family="binomial")
    assert fit.random_intercept_sd == 0 and fit.sites_p_value == 1 and set(fit.site_effects.values()) == {0.0}
    np.testing.assert_allclose(fit.estimates, plain.estimates, atol=1e-9)
    np.testing.assert_allclose(fit.covariance, plain.covariance, rtol=1e-6)
    assert fit.log_likelihood == pytest.approx(plain.log_likelihood)


def test_more_points_change_nothing(columns):
    clients = Clients.from_table(columns, by="site")
    many, usual = (stats.glmm("y ~ x", clients, points=points) for points in (60, 25))
    np.testing.assert_allclose(many.estimates, usual.estimates, rtol=1e-7)
    assert "sd between sites" in repr(usual) and usual.rows == len(columns["y"])
    assert (
        usual.random_intercept_sd == pytest.approx(many.random_intercept_sd, rel=1e-7)
        and len(usual.site_effects) == 8
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"family": "gaussian"}, "fc.stats.lmm"),
        ({"points": 0}, "between 10 and"),
        ({"family": "binomial"}, "two sites"),
    ],
)
def test_what_is_no_mixed_model_is_refused(more, said):
    with pytest.raises(ValueError, match=said):
        stats.glmm(
            "y ~ x",
            Clients.from_table({"site": [0, 0, 0, 0], "y": [0, 1, 1, 0], "x": [1.0, 2, 3, 4]}, by="site"),
            **more,
        )
