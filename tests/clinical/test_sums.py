"""Evaluation from what sites send is the evaluation of all people pooled, by scikit-learn, statsmodels or
plain loops."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score

from fedjax_core.clinical import calibration, concordance, fairness, intervals, ranks
from fedjax_core.clinical.sums import added
from tests.clinical.hospitals import hospital

EDGES = ranks.grid(100)


@pytest.fixture(scope="module")
def sites():
    return [hospital(n, seed) for seed, n in enumerate((1, 40, 333, 90))]


@pytest.fixture(scope="module")
def pooled(sites):
    return np.concatenate([each.outcome for each in sites]), np.concatenate([each.risk for each in sites])


def counted(sites, edges=EDGES):
    return added(ranks.counts(*each, edges) for each in sites)


def test_ranks_on_a_level_for_each_risk_are_scikit_learns(sites, pooled):
    found = counted(sites, ranks.levels(each.risk for each in sites))
    assert ranks.auroc(found, exact=True).value == pytest.approx(roc_auc_score(*pooled), abs=1e-12)
    assert ranks.average_precision(found, exact=True).value == pytest.approx(
        average_precision_score(*pooled), abs=1e-12
    )


@pytest.mark.parametrize("bins", (1, 3, 10, 100))
@pytest.mark.parametrize("digits", (1, 2, 9))
def test_the_pooled_number_lies_within_the_bounds_that_a_grid_states(bins, digits):
    sites = [hospital(n, seed=bins * 10 + n) for n in (5, 20, 60)]
    sites = [each._replace(risk=each.risk.round(digits)) for each in sites]
    outcome, risk = (np.concatenate([getattr(each, name) for each in sites]) for name in ("outcome", "risk"))
    found = counted(sites, ranks.grid(bins))
    for bounded, true in (
        (ranks.auroc(found), roc_auc_score(outcome, risk)),
        (ranks.average_precision(found), average_precision_score(outcome, risk)),
    ):
        assert bounded.low - 1e-12 <= true <= bounded.high + 1e-12


def test_bounds_are_reached_by_people_in_one_bin_in_the_best_and_worst_order():
    outcome, edges = np.array([1, 1, 0, 0, 0]), ranks.grid(1)
    found = ranks.counts(outcome, np.full(5, 0.5), edges)
    best, worst = np.array([0.9, 0.9, 0.1, 0.2, 0.3]), np.array([0.2, 0.1, 0.9, 0.9, 0.8])
    for name, true in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        bounded = getattr(ranks, name)(found)
        assert bounded.high == pytest.approx(true(outcome, best))
        assert bounded.low == pytest.approx(true(outcome, worst))


def test_rates_at_an_edge_are_those_of_the_pooled_confusion_matrix(sites, pooled):
    (tn, fp), (fn, tp) = confusion_matrix(pooled[0], pooled[1] >= 0.3)
    found = ranks.at_threshold(counted(sites), EDGES, 0.3)
    assert [each.value for each in found] == pytest.approx(
        [tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)]
    )
    with pytest.raises(ValueError, match="not an edge"):
        ranks.at_threshold(counted(sites), EDGES, 0.305)


def test_net_benefit_is_its_definition_over_people(sites, pooled):
    found = ranks.decision_curve(counted(sites), EDGES)
    outcome, risk = pooled
    for i in (4, 49, 79):
        t = found.threshold[i]
        gain = np.where(outcome == 1, 1.0, -t / (1 - t))
        assert found.model[i] == pytest.approx((gain * (risk >= t)).mean())
        assert found.everybody[i] == pytest.approx(gain.mean())


def test_delong_is_the_definition_over_pairs_of_people(pooled):
    outcome, risk = pooled[0], pooled[1].round(2)
    wins = np.sign(risk[outcome == 1][:, None] - risk[outcome == 0]) / 2 + 0.5
    by_pairs = wins.mean(axis=1).var(ddof=1) / wins.shape[0] + wins.mean(axis=0).var(ddof=1) / wins.shape[1]
    found = ranks.counts(outcome, risk, ranks.levels([risk]))
    assert intervals.variance(found) == pytest.approx(by_pairs, rel=1e-12)
    assert intervals.delong(found).high - wins.mean() == pytest.approx(1.959964 * np.sqrt(by_pairs), rel=1e-6)


def test_two_models_on_the_same_people_are_compared_as_over_all_pairs(sites, pooled):
    rng = np.random.default_rng(5)
    others = [np.clip(each.risk + rng.normal(0, 0.2, len(each.risk)), 0, 1) for each in sites]
    edges = ranks.levels([each.risk for each in sites] + others)
    counts = [
        counted(sites, edges),
        added(ranks.counts(s.outcome, o, edges) for s, o in zip(sites, others, strict=True)),
    ]
    told = [intervals.placements(each) for each in counts]
    sums = added(
        intervals.paired_sums(s.outcome, np.stack([s.risk, o]), edges, told)
        for s, o in zip(sites, others, strict=True)
    )
    found = intervals.compare(sums)
    ill, well = (np.stack([pooled[1], np.concatenate(others)])[:, pooled[0] == y] for y in (1, 0))
    wins = np.sign(ill[:, :, None] - well[:, None, :]) / 2 + 0.5
    covariance = np.cov(wins.mean(axis=2)) / ill.shape[1] + np.cov(wins.mean(axis=1)) / well.shape[1]
    assert found.auroc == pytest.approx(wins.mean(axis=(1, 2)), abs=1e-12)
    assert found.covariance == pytest.approx(covariance, rel=1e-9)
    assert found.gap().value == pytest.approx(found.auroc[0] - found.auroc[1])


def test_the_bootstrap_of_counts_has_delongs_width(sites):
    found = counted(sites)
    drawn, theory = (
        intervals.bootstrap(found, lambda c: ranks.auroc(c).value, resamples=1000),
        intervals.delong(found),
    )
    assert drawn.high - drawn.low == pytest.approx(theory.high - theory.low, rel=0.1)


def test_a_million_people_take_the_memory_of_the_grid():
    people = ranks.Counts(np.full(1000, 400), np.full(1000, 600))
    tracemalloc.start()
    found = intervals.bootstrap(people, lambda c: ranks.auroc(c).value, resamples=20)
    intervals.delong(people)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 and found.low < 0.5 < found.high  # bytes: one a person would be more


def test_brier_is_scikit_learns_and_its_interval_that_of_a_mean(sites, pooled):
    found = calibration.brier(added(calibration.error_sums(*each) for each in sites))
    assert found.value == pytest.approx(brier_score_loss(*pooled), abs=1e-12)
    square = (pooled[1] - pooled[0]) ** 2
    assert found.high - found.value == pytest.approx(
        1.959964 * square.std(ddof=1) / np.sqrt(len(square)), rel=1e-6
    )


def everywhere(sites, basis):
    return lambda told: added(calibration.recalibration_sums(*each, told, basis) for each in sites)


@pytest.mark.parametrize("basis", (calibration.INTERCEPT, calibration.SLOPE, (-2.0, -1.0, 0.0, 1.0)))
def test_recalibration_is_the_pooled_logistic_regression(sites, pooled, basis):
    sm = pytest.importorskip("statsmodels.api")
    outcome, risk = pooled
    x = np.log(risk / (1 - risk))
    if basis == calibration.INTERCEPT:
        expected = sm.GLM(outcome, np.ones(len(x)), family=sm.families.Binomial(), offset=x).fit(tol=1e-14)
    else:
        columns = np.stack([np.ones_like(x), x], axis=1)
        if basis != calibration.SLOPE:
            columns = calibration._columns(risk, basis)[0]
        expected = sm.GLM(outcome, columns, family=sm.families.Binomial()).fit(tol=1e-14)
    found = calibration.recalibrate(everywhere(sites, basis), basis)
    assert found.coefficients == pytest.approx(expected.params, rel=1e-8)
    assert np.sqrt(np.diag(found.covariance)) == pytest.approx(expected.bse, rel=1e-6)
    assert calibration.recalibrated(risk, found) == pytest.approx(expected.fittedvalues, rel=1e-7)
    distance = calibration.integrated_calibration_index(
        added(calibration.distance_sums(each.risk, found) for each in sites)
    )
    assert distance == pytest.approx(np.abs(expected.fittedvalues - risk).mean(), rel=1e-7)


def test_the_smooth_curve_is_a_straight_line_beyond_the_outer_knots():
    basis = (-1.0, 0.0, 1.0, 2.0)
    x = np.array([3.0, 4.0, 5.0, -4.0, -3.0, -2.0])
    columns = calibration._columns(1 / (1 + np.exp(-x)), basis)[0]
    assert columns[0] - 2 * columns[1] + columns[2] == pytest.approx(0, abs=1e-8)
    assert columns[3] - 2 * columns[4] + columns[5] == pytest.approx(0, abs=1e-8)


def test_the_calibration_curve_and_its_error_are_those_of_pooled_bins(sites, pooled):
    edges = ranks.grid(10)
    sums = added(calibration.bin_sums(*each, edges) for each in sites)
    where = np.minimum((pooled[1] * 10).astype(int), 9)
    bins = [b for b in range(10) if (where == b).any()]
    risk, share, people = calibration.curve(sums)
    assert risk == pytest.approx([pooled[1][where == b].mean() for b in bins])
    assert share == pytest.approx([pooled[0][where == b].mean() for b in bins])
    assert calibration.expected_calibration_error(sums) == pytest.approx(
        people @ np.abs(risk - share) / people.sum()
    )
    assert (calibration.curve(sums, minimum=30)[2] >= 30).all()


def test_a_calibration_that_cannot_be_fitted_says_why():
    outcome, risk = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    for odd in (outcome, np.zeros(4)):
        with pytest.raises(ValueError, match="does not settle"):
            calibration.recalibrate(
                lambda told, odd=odd: calibration.recalibration_sums(odd, risk, told, "slope")
            )


def survivors(n, seed):
    rng = np.random.default_rng(seed)
    risk = rng.random(n).round(2)
    return rng.exponential(np.exp(-2 * risk) * 30).round() + 1, rng.random(n) < 0.6, risk


def c_index(time, event, risk):
    """Harrell's, pair by pair."""
    pairs = right = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j])
    return right / pairs


def test_the_c_index_of_sites_is_the_pooled_one_over_all_pairs():
    sites = [survivors(n, n) for n in (1, 30, 80)]
    days, scores = np.arange(0.0, 400.0), np.append(ranks.grid(100), 1.01)
    found = added(concordance.survival_counts(*each, days, scores) for each in sites)
    pooled = [np.concatenate(each) for each in zip(*sites, strict=True)]
    assert concordance.concordance(found, exact=True).value == pytest.approx(c_index(*pooled), abs=1e-12)


def test_lifelines_has_the_same_c_index_where_it_is_installed():
    lifelines = pytest.importorskip(
        "lifelines.utils", reason="lifelines needs pandas before 3: an environment of its own"
    )
    time, event, risk = survivors(110, 0)
    found = concordance.survival_counts(
        time, event, risk, np.arange(0.0, 400.0), np.append(ranks.grid(100), 1.01)
    )
    expected = lifelines.concordance_index(time, -risk, event)
    assert concordance.concordance(found, exact=True).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("months", (1, 7, 60))
@pytest.mark.parametrize("bins", (2, 20))
def test_the_c_index_lies_within_the_bounds_that_a_grid_states(months, bins):
    people = survivors(60, months + bins)
    found = concordance.survival_counts(*people, np.arange(0.0, 600.0, months), ranks.grid(bins))
    bounded = concordance.concordance(found)
    assert bounded.low <= c_index(*people) <= bounded.high


def test_subgroups_too_small_are_withheld_and_not_alone():
    def group(ill, well):
        return ranks.Counts(np.array([ill, 0]), np.array([0, well]))

    groups = {"a": group(50, 50), "b": group(40, 40), "c": group(20, 3), "d": group(12, 12)}
    shown = fairness.by_subgroup(groups, ranks.grid(2), 0.5, minimum=10)
    assert {name for name, found in shown.items() if isinstance(found, str)} == {"c", "d"}
    tiny = {"a": group(50, 50), "b": group(40, 40), "c": group(1, 1), "d": group(1, 1)}
    # the total less a and b would tell of two people
    assert set(fairness.releasable(tiny, 10).withheld) == {
        "b",
        "c",
        "d",
    }
    with pytest.raises(ValueError, match="two groups"):
        fairness.gaps(tiny, ranks.grid(2), 0.5, minimum=10)


def test_gaps_are_those_of_people_and_their_intervals_have_the_known_values():
    people = {name: hospital(n, seed=n) for name, n in (("a", 150), ("b", 210), ("c", 90))}
    groups = {name: ranks.counts(*each, EDGES) for name, each in people.items()}
    found = fairness.gaps(groups, EDGES, 0.4)
    rates = {name: (each.risk[each.outcome == 1] >= 0.4).mean() for name, each in people.items()}
    assert found["sensitivity"].gap.value == pytest.approx(max(rates.values()) - min(rates.values()))
    values = {name: ranks.auroc(each).value for name, each in groups.items()}
    high, low = (pick(values, key=values.get) for pick in (max, min))
    assert found["auroc"][:2] == (high, low)
    half = found["auroc"].gap.high - found["auroc"].gap.value
    assert half == pytest.approx(
        1.959964 * np.sqrt(intervals.variance(groups[high]) + intervals.variance(groups[low])), rel=1e-6
    )
    newcombe = fairness._newcombe(56 / 70, 70, 48 / 80, 80)  # Newcombe 1998, table II (a), method 10
    assert (round(newcombe.low, 4), round(newcombe.high, 4)) == (0.0524, 0.3339)


@pytest.mark.parametrize("risk", ([0.2, np.nan], [0.2, 1.2]))
def test_risks_that_are_none_are_refused(risk):
    with pytest.raises(ValueError, match="probability"):
        ranks.counts(np.array([0, 1]), np.array(risk), EDGES)


def test_sites_with_another_grid_are_refused(sites):
    with pytest.raises(ValueError, match="same grid"):
        added([ranks.counts(*sites[0], EDGES), ranks.counts(*sites[1], ranks.grid(10))])
