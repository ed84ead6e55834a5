"""Correlations and principal components over clients are those of SciPy and scikit-learn of the pooled
rows."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from fedjax_core import Clients, stats

NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(6)
    rows = draw.normal(size=(80, 4)) @ draw.normal(size=(4, 4)) + [1e4, 0, 5, -3]
    return {"site": draw.integers(0, 5, 80), **dict(zip(NAMES, rows.T, strict=True))}


def test_correlations_are_scipys(columns):
    found = stats.correlation(Clients.from_table(columns, by="site"), NAMES)
    for a, b in (("a", "b"), ("b", "d")):
        wanted = pearsonr(columns[a], columns[b])
        assert found[a, b] == found[b, a] == pytest.approx(wanted.statistic, rel=1e-9)
        assert found.p_values[a, b] == pytest.approx(wanted.pvalue, rel=1e-8)
        assert found.intervals[a, b] == pytest.approx(tuple(wanted.confidence_interval(0.95)), rel=1e-8)
    assert found.rows == 80 and "correlation of 80 rows" in repr(found)


@pytest.mark.parametrize("scale", [False, True])
def test_components_are_scikit_learns(columns, scale):
    found = stats.pca(Clients.from_table(columns, by="site"), NAMES, 3, scale=scale)
    rows = np.stack([columns[name] for name in NAMES], axis=1)
    # deviations of the sample, as ours
    scaled = StandardScaler().fit_transform(rows) * np.sqrt(79 / 80) if scale else rows
    wanted = PCA(3, svd_solver="full").fit(scaled)
    np.testing.assert_allclose(np.abs(found.components), np.abs(wanted.components_), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.variances, wanted.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(found.shares, wanted.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(
        np.abs(found.scores(rows)), np.abs(wanted.transform(scaled)), rtol=1e-7, atol=1e-8
    )
    assert (found.components.max(axis=1) == np.abs(found.components).max(axis=1)).all()


def test_the_errors_of_variances_are_those_of_normal_rows():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(100, 400, 2)) * [2, 1]
    tables = [{"site": [0] * 200 + [1] * 200, "a": a, "b": b} for a, b in rows.transpose(0, 2, 1)]
    found = [stats.pca(Clients.from_table(table, by="site"), ["a", "b"], 1, scale=False) for table in tables]
    spread = np.std([one.variances[0] for one in found])
    assert spread == pytest.approx(np.mean([one.standard_errors[0] for one in found]), rel=0.25)
    held = np.mean([low[0] < 4 < high[0] for low, high in (one.intervals for one in found)])
    assert 0.9 < held <= 1


def test_a_column_that_is_the_same_everywhere_is_refused(columns):
    clients = Clients.from_table(columns | {"a": np.full(80, 7.0)}, by="site")
    for ask in (stats.correlation, stats.pca):
        with pytest.raises(ValueError, match="'a' is the same in every row"):
            ask(clients, NAMES)
    with pytest.raises(ValueError, match="two columns or more"):
        stats.correlation(clients, ["b"])
