"""Statistics over four site processes are those over the same rows as clients, and a site tells none that its
policy does not allow."""

import contextlib
import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import stats
from fedjax_core.sites.audit import show
from fedjax_core.sites.federation import Federation, Paused
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.stats import messages
from fedjax_core.stats.survey import Survey

NAMES = ("charite", "kyoto", "mayo", "oslo")
POLICY = 'site = "{}"\n[tasks]\nmode = "first-use"\n[leaving]\nfields = ["weight", "examples", "data"{}]\n[minimum]\ncell = {}\n'
LISTED = '[statistics]\ncolumns = ["age", "sex", "died", "days", "event", "lab"]\nminimum = {}\n'
LARGE = "lab ~ age + I(age ** 2) + I(age ** 3) + I(age ** 4) + C(sex) * C(died) * C(event) * age + np.exp(age / 99)"


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(2)
    n = 200
    age, sex = draw.normal(60, 10, n), np.array(["F", "M"])[draw.integers(0, 2, n)]
    site = np.array(NAMES)[draw.integers(0, 4, n)]
    eta = -3 + 0.05 * age + 0.5 * (sex == "M")
    return {
        "site": site, "age": age, "sex": sex, "died": (draw.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int),
        "days": np.ceil(draw.exponential(50, n)), "event": draw.integers(0, 2, n), "grade": draw.integers(0, 3, n),
        "lab": eta + draw.normal(size=n) + (site == "oslo"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def composed():
    """A study that learns next to nothing: statistics ask for no model."""
    task = fc.Task(
        init=lambda key: jnp.zeros(()), loss=lambda params, batch, key: (params - batch["age"]) ** 2
    )
    return fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.1)))


def sites(columns, folder=None, fields='"statistics"', cell=0):
    found = []
    for name in NAMES:
        data = {column: x[columns["site"] == name] for column, x in columns.items() if column != "site"}
        found.append(SiteFile(name=name, data=data))
        if folder is not None:
            (folder / f"{name}.toml").write_text(
                POLICY.format(name, f", {fields}" if fields else "", cell)
                + (LISTED.format(cell) if cell else "")
            )
            found[-1] = dataclasses.replace(found[-1], folder=folder / name, policy=folder / f"{name}.toml")
    return found


@contextlib.contextmanager
def federation(composed, files, filled=(), **more):
    prepare = [
        fc.preprocess.OrdinalEncode("sex", categories=("F", "M")),
        *(fc.preprocess.Impute(name) for name in filled),
    ]
    with Federation(
        composed, files, batch_size=64, epochs=1, prepare=prepare, **{"transport": "in-process", **more}
    ) as fed:
        yield fed


def all_of_them(source):
    """A number or more from every statistic there is."""
    fits = [
        stats.glm("died ~ age * sex + C(site)", source, family="binomial", errors="robust"),
        stats.glm("lab ~ age", source, site_effects="fixed"),
        stats.glm("event ~ age", source, family="poisson", offset="log(days)", errors="cluster"),
        stats.cox("days, event ~ age + sex", source, strata="site"),
        stats.cox("days, event ~ age + sex", source, ties="breslow"),
        stats.lmm("lab ~ age + sex", source),
        stats.ordinal("grade ~ age + sex", source),
        stats.glmm("died ~ age", source),
        stats.rubin(
            [stats.glm("dose ~ age", one) for one in stats.impute(source, ["dose", "age"], times=2, rounds=1)]
        ),
        stats.glm("lab ~ days", stats.combat(source, ["lab", "days"], keep="age").source(source)),
    ]
    numbers = {
        f"{i}.{name}": x
        for i, fit in enumerate(fits)
        for name, x in (fit.coefficients | {f"se {n}": e for n, e in fit.standard_errors.items()}).items()
    }
    curve, test = stats.kaplan_meier("days, event ~ 1", source), stats.logrank("days, event ~ sex", source)
    first = stats.table_one(source, ["age", "sex", "died"], by="sex", categories=["died"])
    numbers |= {"median": curve.median, "chi2": test.chi2, **first.smd, **first.p_values}
    numbers |= {f"quantile {q}": x for q, x in stats.quantiles(source, "age").values.items()} | stats.rmst(
        "days, event ~ sex", source, until=40
    ).means
    numbers |= {
        "bins": stats.histogram(source, "age", [40, 60, 80]).counts.tolist(),
        "r": stats.correlation(source, ["age", "lab"])["age", "lab"],
    }
    numbers |= {
        "t": stats.t_test("age ~ sex", source).t,
        "fisher": stats.fisher("died ~ sex", source).p_value,
    }
    numbers |= {"effect": stats.treatment_effect("lab, event ~ age", source).standard_error}
    numbers |= {"pca": stats.pca(source, ["age", "lab", "days"]).variances.tolist()}
    return numbers | {
        "died of 2": stats.cumulative_incidence("days, grade ~ 1", source)["2"].at([20, 50]).tolist()
    }


def test_sites_tell_what_clients_tell(composed, columns):
    columns = columns | {"dose": np.where(columns["age"] > 70, np.nan, 2 * columns["age"])}
    with federation(composed, sites(columns), filled=["dose"]) as fed:
        at_sites = all_of_them(fed)
    assert at_sites == all_of_them(fc.Clients.from_table(columns, by="site"))  # to the last bit


def test_a_site_records_what_it_told(composed, columns, tmp_path):
    with federation(composed, sites(columns, tmp_path), folder=tmp_path / "coordinator") as fed:
        stats.lmm("lab ~ age", fed)
    left = [
        entry.about
        for entry in show(tmp_path / "mayo" / "audit")
        if entry.what == "left" and entry.about["kind"] == "statistic"
    ]
    assert [entry["sent.statistics"] for entry in left] == ["survey: lab age", "products: lab age"]
    asked = [entry.about for entry in show(tmp_path / "coordinator" / "audit") if entry.what == "asked"]
    assert [entry["kind"] for entry in asked] == ["describe", "measure", "statistics", "statistics"]


@pytest.mark.slow
def test_processes_tell_what_clients_tell(composed, columns):
    pytest.importorskip("ray", reason="site processes run under Ray, which is not installed")
    columns = columns | {"dose": np.where(columns["age"] > 70, np.nan, 2 * columns["age"])}
    with federation(composed, sites(columns), filled=["dose"], transport="ray", insecure_local=True) as fed:
        at_sites = all_of_them(fed)
    assert at_sites == all_of_them(fc.Clients.from_table(columns, by="site"))  # to the last bit


def test_a_policy_that_does_not_name_statistics_lets_none_leave(composed, columns, tmp_path):
    with (
        federation(composed, sites(columns, tmp_path, fields="")) as fed,
        pytest.raises(Paused, match="does not let 'statistics' leave"),
    ):
        stats.glm("died ~ age", fed, family="binomial")


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda fed: stats.glm("lab ~ I(age > 78)", fed), "people of "),
        (lambda fed: stats.glm(LARGE, fed), " parameters: "),
        (lambda fed: stats.kaplan_meier("days, event ~ 1", fed), "have an event at time"),
        (lambda fed: stats.glm("lab ~ C(days)", fed), "levels of 'days'"),
        (lambda fed: stats.table_one(fed, ["lab"], by="days"), "levels of 'days'"),
    ],
)  # fmt: skip
@pytest.mark.meets("164.502(b)", by="no statistic of fewer rows than `minimum.cell`")
def test_nothing_about_too_few_people_leaves_and_the_reason_stays(composed, columns, tmp_path, ask, why):
    with federation(composed, sites(columns, tmp_path, cell=5)) as fed:
        with pytest.raises(Paused, match="declined, for a reason that is for its staff"):
            ask(fed)
        assert stats.glm("lab ~ age + sex", fed).rows == 200
    refused = [
        entry.about["reason"]
        for name in NAMES
        for entry in show(tmp_path / name / "audit")
        if entry.what == "refused"
    ]
    assert refused and any(why in reason for reason in refused)


def test_a_public_grid_and_strata_by_site_pass_the_same_policy(composed, columns, tmp_path):
    clients = fc.Clients.from_table(columns, by="site")
    with federation(composed, sites(columns, tmp_path, cell=3)) as fed:
        fit, curve = (
            stats.cox("days, event ~ age", fed, strata="site"),
            stats.kaplan_meier("days, event ~ 1", fed, grid=[30, 60]),
        )
    assert fit.coefficients == stats.cox("days, event ~ age", clients, strata="site").coefficients
    np.testing.assert_array_equal(
        curve.survival, stats.kaplan_meier("days, event ~ 1", clients, grid=[30, 60]).survival
    )


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b'{"statistic": "glm"}', b'{"statistic": "survey", "names": ["a"], "levels": [3]}', b'{"statistic": ["survey"]}',
     b'{"statistic": "products", "design": {"names": ["x"], "expressions": [["exec", "x"]]}, "outcome": ["column", "y"], "used": ["y"]}'],
)  # fmt: skip
def test_what_is_no_statistic_is_refused(text):
    with pytest.raises(ValueError):
        messages.decode(text)


def test_a_statistic_is_the_same_at_the_other_end(columns):
    assert messages.decode(messages.encode(Survey(("a",), ()))) == Survey(("a",), ())
    with pytest.raises(TypeError, match="no statistic that sites know"):
        messages.name_of(object())
