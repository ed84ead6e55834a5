"""Mixed models of people with several visits: the closed form of balanced data, statsmodels, the whole covariance matrix, and real
sites whose column of persons stays with them."""

import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal

import fedjax_core as fc
from fedjax_core import Clients, stats
from fedjax_core.sites.federation import Federation, Paused
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.stats.newton import NoEstimate
from tests.stats.multisite import assert_named

POLICY = """
site = "{}"
[tasks]
mode = "first-use"
[leaving]
fields = ["weight", "examples", "data", "statistics"]
[statistics]
columns = ["x", "y"]
minimum = {}
"""


@pytest.fixture(scope="module")
def columns():
    """Eight hospitals of 6 to 15 people with 1 to 4 visits."""
    draw = np.random.default_rng(5)
    people = draw.integers(6, 16, 8)
    home = np.repeat(np.arange(8), people)
    visits = draw.integers(1, 5, len(home))
    person = np.repeat(np.arange(len(home)), visits)
    site = home[person]
    x = draw.normal(50, 8, len(person)) + draw.normal(0, 3, len(home))[person]
    y = 3 + 0.2 * x + draw.normal(0, 1.5, 8)[site] + draw.normal(0, 2.0, len(home))[person]
    return {"site": site, "patient": person, "x": x, "y": y + draw.normal(0, 1, len(person))}


def test_balanced_visits_have_the_variances_of_the_analysis_of_variance():
    sites, people, visits = 6, 5, 3
    draw = np.random.default_rng(1)
    y = (
        draw.normal(0, 2, (sites, 1, 1))
        + draw.normal(0, 1.5, (sites, people, 1))
        + draw.normal(size=(sites, people, visits))
    )
    of_people, of_sites = y.mean(2), y.mean((1, 2))
    residual = ((y - of_people[..., None]) ** 2).sum() / (sites * people * (visits - 1))
    between = visits * ((of_people - of_sites[:, None]) ** 2).sum() / (sites * (people - 1))
    whole = visits * people * of_sites.var(ddof=1)
    site, person, _ = np.indices(y.shape)
    table = {
        "site": site.ravel(),
        "patient": person.ravel(),
        "y": y.ravel(),
    }  # patient 0 is another at each site
    fit = stats.lmm("y ~ 1", Clients.from_table(table, by="site"), person="patient")
    assert fit.residual_variance == pytest.approx(residual, rel=1e-7)
    assert fit.person_intercept_variance == pytest.approx((between - residual) / visits, rel=1e-5)
    assert fit.random_intercept_variance == pytest.approx((whole - between) / (visits * people), rel=1e-5)
    assert fit.coefficients["Intercept"] == pytest.approx(y.mean(), abs=1e-12)
    assert fit.standard_errors["Intercept"] == pytest.approx(np.sqrt(whole / y.size), rel=1e-5)


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_it_is_the_fit_of_statsmodels(columns, method):
    mixedlm = pytest.importorskip(
        "statsmodels.formula.api", reason="statsmodels, with which this compares, is not installed"
    ).mixedlm
    frame = pytest.importorskip("pandas").DataFrame(columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of pandas, and of searches that it goes on with
        inner = {"patient": "0 + C(patient)"}
        model = mixedlm("y ~ x", frame, groups="site", re_formula="1", vc_formula=inner)
        pooled = model.fit(reml=method == "reml", method=["lbfgs", "powell", "bfgs", "powell"], gtol=1e-9)
    fit = stats.lmm("y ~ x", Clients.from_table(columns, by="site"), person="patient", method=method)
    assert fit.log_likelihood == pytest.approx(pooled.llf, abs=1e-6)
    assert_named(fit.coefficients, pooled.fe_params.to_dict(), 1e-5)
    assert fit.residual_variance == pytest.approx(pooled.scale, rel=1e-4)
    assert fit.person_intercept_variance == pytest.approx(float(pooled.vcomp[0]), rel=1e-3)
    assert fit.random_intercept_variance == pytest.approx(float(pooled.cov_re.iloc[0, 0]), rel=1e-3)


def test_the_likelihood_is_that_of_the_whole_covariance_matrix_and_largest_there(columns):
    fit = stats.lmm("y ~ x", Clients.from_table(columns, by="site"), person="patient", method="ml")
    mean = fit.coefficients["Intercept"] + fit.coefficients["x"] * columns["x"]
    site, patient = (columns[name][:, None] == columns[name] for name in ("site", "patient"))

    def likelihood(between, of_people, residual):
        covariance = between * site + of_people * patient + residual * np.eye(len(mean))
        return multivariate_normal(mean, covariance).logpdf(columns["y"])

    found = fit.random_intercept_variance, fit.person_intercept_variance, fit.residual_variance
    assert fit.log_likelihood == pytest.approx(likelihood(*found), rel=1e-10)
    for i in range(3):
        for factor in (0.98, 1.02):
            assert (
                likelihood(*(x * factor if i == j else x for j, x in enumerate(found))) < fit.log_likelihood
            )
    assert "between a site's people" in repr(fit) and 0 < fit.icc < 1


def test_people_who_are_all_alike_leave_the_fit_by_site_alone(columns):
    draw = np.random.default_rng(0)
    flat = columns | {"y": columns["x"] * 0.2 + draw.normal(size=len(columns["x"]))}
    flat["y"] = flat["y"] + draw.normal(0, 2, 8)[columns["site"]]
    clients = Clients.from_table(flat, by="site")
    fit, plain = stats.lmm("y ~ x", clients, person="patient"), stats.lmm("y ~ x", clients)
    assert fit.log_likelihood >= plain.log_likelihood - 1e-8
    if fit.person_intercept_variance == 0:
        assert_named(fit.standard_errors, plain.standard_errors, 1e-4)
    alone = columns | {"patient": np.arange(len(columns["x"]))}
    with pytest.raises(NoEstimate, match="every person has one row"):
        stats.lmm("y ~ x", Clients.from_table(alone, by="site"), person="patient")
    lost = columns | {"patient": np.where(columns["patient"] == 3, np.nan, columns["patient"])}
    with pytest.raises(ValueError, match="rows of a site have no 'patient'"):
        stats.lmm("y ~ x", Clients.from_table(lost, by="site"), person="patient")


def federation(columns, folder, minimum=None):
    files = []
    for name in map(str, range(8)):
        rows = columns["site"] == int(name)
        data = {one: columns[one][rows] for one in ("patient", "x", "y")}
        policy = None
        if minimum is not None:
            policy = folder / f"{name}.toml"
            policy.write_text(POLICY.format(f"s{name}", minimum))
        files.append(
            SiteFile(name=f"s{name}", data=data, person="patient", policy=policy, folder=folder / name)
        )
    task = fc.Task(init=lambda key: jnp.zeros(()), loss=lambda params, batch, key: (params - batch["x"]) ** 2)
    composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.1)))
    return Federation(
        composed, files, batch_size=64, epochs=1, transport="in-process", folder=folder / "coordinator"
    )


def test_sites_tell_people_apart_by_their_own_column_which_stays_with_them(columns, tmp_path):
    with federation(columns, tmp_path) as fed:
        fit = stats.lmm("y ~ x", fed, person="patient")
    wanted = stats.lmm("y ~ x", Clients.from_table(columns, by="site"), person="patient")
    assert fit.coefficients == wanted.coefficients and fit.log_likelihood == wanted.log_likelihood
    (tmp_path / "strict").mkdir()
    with federation(columns, tmp_path / "strict", minimum=3) as fed, pytest.raises(Paused, match="declined"):
        stats.lmm("y ~ x", fed, person="patient")  # fewer than three people have four visits somewhere
