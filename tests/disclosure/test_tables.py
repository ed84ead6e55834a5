"""What is hidden in a table cannot be calculated from what is shown: by linear programming, and by going
through all tables there are."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from fedjax_core.disclosure import OutputPolicy, protect
from fedjax_core.disclosure.tables import crosstab_sums

SHAPES = ((7,), (2, 2), (3, 4), (5, 6), (2, 3, 2))


def table(shape, seed):
    """Cells of few people among cells of many, and empty ones."""
    rng = np.random.default_rng(seed)
    return rng.negative_binomial(0.6, 0.04, int(np.prod(shape)))


def reach(sums, found, i):
    """(least, most) that a reader can tell of sum i."""
    shown = ~np.isnan(found.values)
    rows, ends = [sums[shown], -sums[shown]], [found.high[shown], -found.low[shown]]
    values = []
    for sign in (1, -1):
        best = linprog(sign * sums[i], A_ub=np.concatenate(rows), b_ub=np.concatenate(ends), method="highs")
        values.append(np.inf * -sign if best.status == 3 else sign * best.fun)  # 3: without a bound
    return values[0], values[1]


@pytest.mark.parametrize("way", ("suppress", "round"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_small_sum_can_be_told_to_less_than_the_minimum(shape, way):
    sums = crosstab_sums(shape)
    for seed in range(5):
        for policy in (
            OutputPolicy(minimum=5, tables=way),
            OutputPolicy(minimum=10, tables=way, zeros=False),
        ):
            counts = table(shape, seed)
            found = protect(counts, sums, policy)
            shown = ~np.isnan(found.values)
            true = sums @ counts
            assert not (shown & (true > 0) & (true < policy.minimum)).any()
            assert (found.values[shown & (true > 0)] >= policy.minimum).all()
            assert policy.zeros or not (shown & (true == 0)).any()
            assert ((found.low <= true) & (true <= found.high))[shown].all()
            for i in np.flatnonzero(found.primary):
                low, high = reach(sums, found, i)
                assert low <= true[i] <= high + 1e-7 and high - low >= policy.minimum - 1e-6


def test_the_reader_of_a_small_table_who_tries_all_tables_is_left_with_as_many():
    policy, sums = OutputPolicy(minimum=3), crosstab_sums((2, 2))
    every = np.array(list(itertools.product(range(12), repeat=4)))
    told = every @ sums.T
    for counts in np.random.default_rng(0).choice((0, 1, 2, 4, 7), (40, 4)):
        found = protect(counts, sums, policy)
        shown = ~np.isnan(found.values)
        agree = told[(told[:, shown] == found.values[shown]).all(axis=1)]
        assert found.primary.any() or not found.secondary.any()
        assert (np.ptp(agree[:, found.primary], axis=0) >= 3).all()


def test_one_small_cell_takes_a_rectangle_and_no_margin():
    counts = np.array([[20, 2, 30], [25, 40, 11], [30, 31, 32]])
    found = protect(counts.ravel(), crosstab_sums((3, 3)), OutputPolicy(minimum=5))
    assert found.primary.sum() == 1 and found.secondary.sum() == 3
    assert not np.isnan(found.values[9:]).any()


def test_hiding_the_small_cell_alone_would_give_it_away():
    counts, sums = np.array([20, 2, 30, 25, 40, 11]), crosstab_sums((2, 3))
    found = protect(counts, sums, OutputPolicy(minimum=5))
    naive = found._replace(
        **{name: np.where(found.primary, np.nan, sums @ counts) for name in ("values", "low", "high")}
    )
    assert reach(sums, naive, 1) == pytest.approx((2, 2))


def test_rounding_shows_multiples_of_the_base_next_to_the_truth():
    counts = np.array([23, 18, 30, 25, 40, 11])
    found = protect(counts, crosstab_sums((2, 3)), OutputPolicy(minimum=5, tables="round"))
    assert found.values.tolist() == [25, 20, 30, 25, 40, 10, 50, 60, 40, 70, 75, 145]
    assert not found.primary.any()


def test_a_policy_that_refuses_shows_nothing_of_a_table_with_a_small_cell():
    sums = crosstab_sums((2, 2))
    policy = OutputPolicy(minimum=5, tables="refuse")
    assert np.isnan(protect(np.array([9, 9, 9, 1]), sums, policy).values).all()
    assert not np.isnan(protect(np.array([9, 9, 9, 9]), sums, policy).values).any()


def test_the_sums_of_a_table_are_its_cells_and_margins():
    counts = np.arange(24).reshape(2, 3, 4)
    margins = [
        counts,
        counts.sum(0),
        counts.sum(1),
        counts.sum(2),
        counts.sum((0, 1)),
        counts.sum((0, 2)),
        counts.sum((1, 2)),
        counts.sum(),
    ]
    assert (crosstab_sums((2, 3, 4)) @ counts.ravel()).tolist() == np.concatenate(
        [np.ravel(m) for m in margins]
    ).tolist()


def test_what_are_no_counts_is_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        protect(np.array([1.5, 2.0]), crosstab_sums((2,)), OutputPolicy())
