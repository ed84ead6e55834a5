"""Quantiles over clients are NumPy's of the pooled values, with SciPy's intervals; between public edges they
lie where they are said to."""

import numpy as np
import pytest
from scipy.stats import quantile_test

from fedjax_core import Clients, stats

SHARES = [0, 0.1, 0.25, 0.5, 0.9, 1]


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(4)
    x = draw.normal(0, 3, 301)
    x[::9] = np.nan
    x[5:60:9] = -1e300  # ties, and far away
    return {"site": draw.integers(0, 7, 301), "x": x, "arm": np.array(list("ab"))[draw.integers(0, 2, 301)]}


def test_they_are_numpys_of_the_pooled_values(columns):
    x = columns["x"][np.isfinite(columns["x"])]
    found = stats.quantiles(Clients.from_table(columns, by="site"), "x", SHARES)
    assert list(found.values.values()) == np.quantile(x, SHARES).tolist()  # to the last bit
    assert (found.count, found.missing) == (len(x), 301 - len(x)) and found.bounds[0.5] == (
        found.values[0.5],
    ) * 2
    for share in (0.1, 0.25, 0.5, 0.9):
        assert found.intervals[share] == pytest.approx(
            tuple(quantile_test(x, p=share).confidence_interval(0.95)), rel=1e-15
        )
    assert found.intervals[0][0] == -np.inf and found.intervals[1][1] == np.inf


def test_groups_are_by_themselves(columns):
    found = stats.quantiles(Clients.from_table(columns, by="site"), "x", [0.3, 0.5], by="arm")
    for arm in "ab":
        x = columns["x"][(columns["arm"] == arm) & np.isfinite(columns["x"])]
        assert list(found[arm].values.values()) == np.quantile(x, [0.3, 0.5]).tolist()


def test_public_edges_bound_the_pooled_quantile_and_histograms_are_numpys(columns):
    clients, edges = Clients.from_table(columns, by="site"), np.linspace(-12, 12, 25)
    x = columns["x"][np.isfinite(columns["x"])]
    found = stats.quantiles(clients, "x", [0.25, 0.5, 0.9], edges=edges)
    exact = np.quantile(x, [0.25, 0.5, 0.9])
    for share, value in zip(found.values, exact, strict=True):
        low, high = found.bounds[share]
        assert low <= value <= high <= low + 2.001 and low <= found.values[share] <= high
        low, high = found.intervals[share]
        inner = quantile_test(x, p=share).confidence_interval(0.95)
        assert low <= inner.low and inner.high <= high
    shown = stats.histogram(clients, "x", edges)
    np.testing.assert_array_equal(shown.counts, np.histogram(x, edges)[0])
    np.testing.assert_allclose(shown.density, np.histogram(x, edges, density=True)[0], rtol=1e-12)
    assert (shown.below, shown.above) == ((x < -12).sum(), (x > 12).sum()) and "missing" in repr(
        shown
    ) + repr(found)
    with pytest.raises(ValueError, match="lies outside the edges"):
        stats.quantiles(clients, "x", [0], edges=edges)


@pytest.mark.parametrize(
    ("more", "said"),
    [({"q": [2]}, "between 0 and 1"), ({"edges": [1, 1]}, "that ascend"), ({"q": []}, "shares")],
)
def test_what_is_no_share_or_edge_is_refused(columns, more, said):
    with pytest.raises(ValueError, match=said):
        stats.quantiles(Clients.from_table(columns, by="site"), "x", **more)
