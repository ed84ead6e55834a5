"""Cumulative incidences and restricted means over clients: those of statsmodels, of plain loops, and where
they have a closed form."""

import numpy as np
import pytest

from fedjax_core import Clients, stats


@pytest.fixture(scope="module")
def columns():
    draw = np.random.default_rng(9)
    time, cause = np.ceil(draw.exponential(30, 140)), draw.integers(0, 3, 140)
    return {
        "site": draw.integers(0, 5, 140),
        "time": time,
        "cause": cause,
        "arm": np.array(list("ab"))[draw.integers(0, 2, 140)],
    }


def test_they_are_those_of_statsmodels(columns):
    CumIncidenceRight = pytest.importorskip(
        "statsmodels.duration.survfunc", reason="statsmodels is not installed"
    ).CumIncidenceRight
    found = stats.cumulative_incidence("time, cause ~ 1", Clients.from_table(columns, by="site"))
    with np.errstate(all="ignore"):  # it divides by those whom the last event leaves
        wanted = CumIncidenceRight(columns["time"], columns["cause"])
    at = wanted.times
    for k in (1, 2):
        one = found[str(k)]
        np.testing.assert_allclose(one.at(at), wanted.cinc[k - 1], rtol=1e-9, atol=1e-12)
        errors = np.append(0, one.standard_errors)[np.searchsorted(one.times, at, side="right")]
        # of which it leaves out the ties
        np.testing.assert_allclose(errors[:-3], wanted.cinc_se[k - 1][:-3], rtol=0.02)


def test_they_sum_to_what_kaplan_meier_says_of_any_cause(columns):
    clients = Clients.from_table(columns | {"any": (columns["cause"] > 0) * 1}, by="site")
    both = stats.cumulative_incidence("time, cause ~ arm", clients)
    curves = stats.kaplan_meier("time, any ~ arm", clients)
    for arm in "ab":
        np.testing.assert_allclose(
            1 - both[arm]["1"].incidence - both[arm]["2"].incidence, curves[arm].survival, rtol=0, atol=1e-12
        )


def test_of_one_cause_they_are_kaplan_meiers_with_greenwoods_errors(columns):
    clients = Clients.from_table(columns | {"any": (columns["cause"] > 0) * 1}, by="site")
    one, curve = (
        stats.cumulative_incidence("time, any ~ 1", clients)["1"],
        stats.kaplan_meier("time, any ~ 1", clients),
    )
    np.testing.assert_allclose(one.incidence, 1 - curve.survival, atol=1e-12)
    np.testing.assert_allclose(one.standard_errors[:-1], curve.standard_errors[:-1], rtol=1e-9)
    low, high = one.intervals
    np.testing.assert_allclose((1 - high[:-1], 1 - low[:-1]), np.array(curve.intervals)[:, :-1], rtol=1e-9)


def test_without_censoring_they_are_shares_with_binomial_errors():
    draw = np.random.default_rng(1)
    time, cause = draw.permutation(np.arange(1, 61)), np.array(["stroke", "death"])[draw.integers(0, 2, 60)]
    clients = Clients.from_table(
        {"site": draw.integers(0, 3, 60), "time": time, "cause": np.append(cause[:-1], "none")}, by="site"
    )
    curves = stats.cumulative_incidence("time, cause ~ 1", clients, censored="none")
    last = time[-1]  # the only one who is censored
    for at in (1, 10, int(last) - 1):
        share = ((time <= at) & (cause == "stroke")).mean()
        place = np.searchsorted(curves["stroke"].times, at, side="right") - 1
        assert curves["stroke"].at([at])[0] == pytest.approx(share)
        assert curves["stroke"].standard_errors[place] == pytest.approx(
            np.sqrt(share * (1 - share) / 60), rel=1e-9, abs=1e-12
        )
    with pytest.raises(ValueError, match="name the value that is no event"):
        stats.cumulative_incidence("time, cause ~ 1", clients)


def test_restricted_means_are_capped_means_where_nobody_is_censored(columns):
    clients = Clients.from_table(columns | {"died": np.ones(140, int)}, by="site")
    found = stats.rmst("time, died ~ arm", clients, until=40)
    capped = {arm: np.minimum(columns["time"][columns["arm"] == arm], 40) for arm in "ab"}
    for arm in "ab":
        assert found.means[arm] == pytest.approx(capped[arm].mean())
        assert found.standard_errors[arm] == pytest.approx(capped[arm].std() / np.sqrt(len(capped[arm])))
    error = np.hypot(*(x.std() / np.sqrt(len(x)) for x in capped.values()))
    low, high = found.difference_intervals["b"]
    assert (high - low) / 2 == pytest.approx(1.959963984540054 * error)
    assert (
        found.differences["b"]
        == pytest.approx(capped["b"].mean() - capped["a"].mean())
        == pytest.approx((low + high) / 2)
    )
    ratio, low, high = found.ratios["b"]
    assert (
        low < ratio < high
        and ratio == pytest.approx(capped["b"].mean() / capped["a"].mean())
        and 0 < found.p_values["b"] <= 1
    )


def test_a_mean_up_to_a_time_that_nobody_is_followed_to_is_refused(columns):
    clients = Clients.from_table(columns | {"died": (columns["time"] < 20) * 1}, by="site")
    with pytest.raises(ValueError, match="followed to 1000"):
        stats.rmst("time, died ~ 1", clients, until=1000)
    with pytest.raises(ValueError, match="grid= ends at 30"):
        stats.rmst("time, died ~ 1", clients, until=40, grid=[10, 30])
