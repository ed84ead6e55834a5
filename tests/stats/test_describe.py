"""Table 1 over clients is that of the pooled rows: moments of NumPy, tests of SciPy, differences by their
formulas."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fedjax_core import Clients, stats


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(1)
    arm, ward = (
        np.array(list("abc"))[draw.integers(0, 3, 300)],
        np.array(list("pqr"))[draw.integers(0, 3, 300)],
    )
    return {
        "site": draw.integers(0, 5, 300),
        "arm": arm,
        "ward": ward,
        "age": draw.normal(1e6, 2, 300) + (arm == "b"),
    }


def test_it_is_the_table_of_the_pooled_rows(columns):
    found = stats.table_one(Clients.from_table(columns, by="site"), ["age", "ward"], by="arm")
    ages = [columns["age"][columns["arm"] == arm] for arm in "abc"]
    counts = np.array(
        [[((columns["arm"] == arm) & (columns["ward"] == ward)).sum() for ward in "pqr"] for arm in "abc"]
    )
    assert list(found.means["age"].values()) == pytest.approx([x.mean() for x in ages], rel=1e-12)
    assert list(found.deviations["age"].values()) == pytest.approx([x.std(ddof=1) for x in ages], rel=1e-9)
    assert [list(of.values()) for of in found.levels["ward"].values()] == counts.T.tolist()
    assert found.p_values["ward"] == pytest.approx(
        scipy_stats.chi2_contingency(counts, correction=False).pvalue, rel=1e-9
    )
    pairs = [(ages[a], ages[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    gaps = [abs(x.mean() - y.mean()) / np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2) for x, y in pairs]
    assert found.smd["age"] == pytest.approx(max(gaps), rel=1e-9)


def test_two_groups_are_compared_by_welchs_t(columns):
    two = {name: x[columns["arm"] != "c"] for name, x in columns.items()}
    found = stats.table_one(Clients.from_table(two, by="site"), ["age"], by="arm")
    wanted = scipy_stats.ttest_ind(
        two["age"][two["arm"] == "a"], two["age"][two["arm"] == "b"], equal_var=False
    ).pvalue
    assert found.p_values["age"] == pytest.approx(wanted, rel=1e-8)


def test_a_category_of_two_levels_differs_as_a_share_does_and_missing_values_are_left_out():
    table = {
        "site": [0, 0, 0, 1, 1, 1, 1, 1],
        "arm": list("aaaabbbb"),
        "sick": list("nyyynnny"),
        "x": [1.0, None, 3, 5, 2, 2, None, 2],
    }
    found = stats.table_one(Clients.from_table(table, by="site"), ["sick", "x"], by="arm")
    assert found.smd["sick"] == pytest.approx(0.5 / np.sqrt(0.75 * 0.25))
    # the second group has no spread
    assert found.p_values["x"] == pytest.approx(2 * scipy_stats.t.sf(1 / np.sqrt(4 / 3), 2))
    assert (
        found.counts["x"] == {"a": 3, "b": 3}
        and found.means["x"] == {"a": 3.0, "b": 2.0}
        and "sick, n (%)" in repr(found)
    )
