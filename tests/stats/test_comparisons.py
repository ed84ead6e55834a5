"""Tests of two columns over clients are SciPy's of the pooled rows."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fedjax_core import Clients, stats


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(8)
    arm = np.array(list("ct"))[draw.integers(0, 2, 90)]
    x = draw.normal(1e5, 1 + (arm == "t"), 90) + (arm == "t")
    sick, ward = (
        np.array(list("ny"))[(draw.uniform(size=90) < 0.3 + 0.2 * (arm == "t")) * 1],
        np.array(list("pqr"))[draw.integers(0, 3, 90)],
    )
    return {"site": draw.integers(0, 6, 90), "arm": arm, "x": x, "sick": sick, "ward": ward}


@pytest.mark.parametrize("equal", [False, True])
def test_t_tests_are_scipys(columns, equal):
    found = stats.t_test("x ~ arm", Clients.from_table(columns, by="site"), equal_variances=equal)
    wanted = scipy_stats.ttest_ind(*(columns["x"][columns["arm"] == arm] for arm in "ct"), equal_var=equal)
    interval = wanted.confidence_interval(0.95)
    assert (found.t, found.p_value, found.df) == pytest.approx(
        (wanted.statistic, wanted.pvalue, wanted.df), rel=1e-9
    )
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-9)


def counts(columns, of, by):
    rows, groups = (sorted(set(columns[name].tolist())) for name in (of, by))
    return np.array(
        [[((columns[of] == row) & (columns[by] == group)).sum() for group in groups] for row in rows]
    )


def test_chi_square_is_scipys(columns):
    found = stats.chi_square("ward ~ arm", Clients.from_table(columns, by="site"))
    table = counts(columns, "ward", "arm")
    wanted = scipy_stats.chi2_contingency(table, correction=False)
    np.testing.assert_array_equal(found.counts, table)
    assert (found.chi2, found.p_value, found.df) == pytest.approx(
        (wanted.statistic, wanted.pvalue, wanted.dof), rel=1e-9
    )
    assert found.cramers_v == pytest.approx(scipy_stats.contingency.association(table), rel=1e-9)


def test_fishers_exact_test_is_scipys(columns):
    found = stats.fisher("sick ~ arm", Clients.from_table(columns, by="site"))
    table = counts(columns, "sick", "arm")
    odds = scipy_stats.contingency.odds_ratio(table)
    assert found.p_value == pytest.approx(scipy_stats.fisher_exact(table).pvalue, rel=1e-9)
    assert found.odds_ratio == pytest.approx(odds.statistic, rel=1e-9)
    assert found.interval == pytest.approx(
        tuple(odds.confidence_interval(0.95)), rel=1e-9
    ) and "odds ratio" in repr(found)


def test_the_tea_of_fishers_book_has_its_p():
    cups = {"site": [0, 1] * 4, "said": list("mmmmtttt"), "poured": list("mmmtmttt")}
    assert stats.fisher("said ~ poured", Clients.from_table(cups, by="site")).p_value == pytest.approx(
        34 / 70
    )


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda clients: stats.t_test("x ~ ward", clients), "compares two groups"),
        (lambda clients: stats.t_test("ward ~ arm", clients), "is text"),
        (lambda clients: stats.t_test("x ~ arm + ward", clients), "one column on each side"),
        (lambda clients: stats.fisher("sick ~ ward", clients), "use chi_square"),
    ],
)
def test_what_these_tests_are_not_of_is_refused(columns, ask, said):
    with pytest.raises(ValueError, match=said):
        ask(Clients.from_table(columns, by="site"))
