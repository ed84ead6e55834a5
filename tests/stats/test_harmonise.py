"""ComBat over clients is the pooled algorithm, written plainly, row by row."""

import numpy as np
import pytest

from fedjax_core import Clients, stats

FEATURES = [f"f{g}" for g in range(7)]


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(12)
    site = np.repeat([0, 1, 2], [25, 12, 40])
    age, sex = draw.normal(60, 10, 77), np.array(["F", "M"])[draw.integers(0, 2, 77)]
    found = {"site": site, "age": age, "sex": sex}
    for g, name in enumerate(FEATURES):
        own = draw.normal(0, 1, 3)[site] + draw.uniform(0.5, 2, 3)[site] * draw.normal(size=77)
        found[name] = 100 * g + 0.1 * g * age + (sex == "M") + own
    return found


def pooled(columns, covariates):
    """Johnson, Li and Rabinovic's algorithm on the whole table: [77, 7] harmonised."""
    y, site = np.stack([columns[name] for name in FEATURES], axis=1), columns["site"]
    batch = (site[:, None] == np.arange(3)) * 1.0
    x = np.concatenate([batch, covariates], axis=1)
    b = np.linalg.lstsq(x, y, rcond=None)[0]
    grand = batch.mean(0) @ b[:3]
    variance = ((y - x @ b) ** 2).mean(0)
    fitted = grand + covariates @ b[3:]
    z, even = (y - fitted) / np.sqrt(variance), np.empty_like(y)
    for i in range(3):
        here = z[site == i]
        n, g_hat, d_hat = len(here), here.mean(0), here.var(0, ddof=1)
        t2, g_bar = g_hat.var(ddof=1), g_hat.mean()
        a, beta = (
            (2 * d_hat.var(ddof=1) + d_hat.mean() ** 2) / d_hat.var(ddof=1),
            (d_hat.mean() * d_hat.var(ddof=1) + d_hat.mean() ** 3) / (d_hat.var(ddof=1)),
        )
        g, d = g_hat, d_hat
        for _ in range(500):
            g = (n * t2 * g_hat + d * g_bar) / (n * t2 + d)
            d = (beta + ((here - g) ** 2).sum(0) / 2) / (n / 2 + a - 1)
        even[site == i] = (here - g) / np.sqrt(d) * np.sqrt(variance) + fitted[site == i]
    return even


@pytest.mark.parametrize("keep", ["1", "age + sex"])
def test_it_is_the_pooled_algorithm(columns, keep):
    clients = Clients.from_table(columns, by="site")
    covariates = (
        np.zeros((77, 0))
        if keep == "1"
        else np.stack([columns["age"], (columns["sex"] == "M") * 1.0], axis=1)
    )
    found = stats.combat(clients, FEATURES, keep=keep)
    even = np.stack([found.apply(clients).columns[name] for name in FEATURES], axis=1)
    np.testing.assert_allclose(even, pooled(columns, covariates), rtol=1e-9)
    assert found.rows == 77 and "is farthest from the others" in repr(found)


def test_statistics_see_the_harmonised_features(columns):
    clients = Clients.from_table(columns, by="site")
    found = stats.combat(clients, FEATURES, keep="age")
    at_once, of_rows = (
        stats.glm("f3 ~ age + C(site)", one) for one in (found.source(clients), found.apply(clients))
    )
    assert at_once.coefficients == of_rows.coefficients
    raw = stats.glm("f3 ~ age + C(site)", clients)
    assert abs(at_once.coefficients["C(site)[T.1]"]) < 0.5 * abs(raw.coefficients["C(site)[T.1]"])


@pytest.mark.parametrize(
    ("change", "features", "said"),
    [({}, ["f0"], "two or more"), ({"f0": np.ones(77)}, FEATURES, "'f0' does not vary"), ({"site": np.zeros(77, int)}, FEATURES, "1 site"),
     ({"site": np.r_[np.zeros(76, int), 1]}, FEATURES, "1 has one row"), ({}, ["f0", "sex"], "is text")],
)  # fmt: skip
def test_what_cannot_be_harmonised_says_why(columns, change, features, said):
    with pytest.raises(ValueError, match=said):
        stats.combat(Clients.from_table(columns | change, by="site"), features)
