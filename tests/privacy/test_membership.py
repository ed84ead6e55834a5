"""Attacks on membership are worth what closed forms say they are, and LiRA is the likelihood ratio that it
stands for."""

import numpy as np
import pytest
from scipy.stats import beta, norm

from fedjax_core.privacy.membership import judged, lira, log_odds


@pytest.mark.parametrize(("mu", "area", "share"), [(1.0, 0.7602, 0.0924), (2.0, 0.9214, 0.3721)])
def test_an_attack_on_normal_scores_is_worth_what_the_normal_distribution_says(mu, area, share):
    rng = np.random.default_rng(0)
    found = judged(rng.normal(mu, 1, 40_000), rng.normal(0, 1, 40_000), fpr=0.01)
    assert found.auc == pytest.approx(area, abs=5e-3) and found.tpr == pytest.approx(share, abs=1.5e-2)
    assert found.auc_interval[0] < area < found.auc_interval[1]


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 300 small samples; the threshold of 20 others at 5 % is the second largest, above which a member is
    with Beta(2, 19) chance."""
    rng, here, share = np.random.default_rng(1), 0, 0
    for _ in range(300):
        others = rng.normal(0, 1, 20)
        found = judged(rng.normal(0, 1, 60), others, fpr=0.05)
        here += found.auc_interval[0] <= 0.5 <= found.auc_interval[1]
        truth = norm.sf(np.sort(others)[-2])
        share += found.tpr_interval[0] <= truth <= found.tpr_interval[1]
    assert here >= 270 and share >= 280
    assert judged(np.zeros(5), np.zeros(5)).auc == 0.5 and judged(np.zeros(5), np.zeros(5)).tpr == 0
    assert judged(np.ones(5), np.zeros(5)).tpr_interval == (pytest.approx(beta.ppf(0.025, 5, 1)), 1.0)
    with pytest.raises(ValueError, match="on members and on others: got 0 and 3"):
        judged(np.zeros(0), np.zeros(3))


def test_log_odds_are_those_of_the_right_answer():
    p = np.array([0.1, 0.5, 0.999])
    assert np.allclose(log_odds(-np.log(p)), np.log(p / (1 - p)))
    assert np.isfinite(log_odds(np.array([0.0, 1e9, np.inf]))).all()


def test_lira_is_the_ratio_of_likelihoods_and_beats_the_loss_where_records_differ():
    """Records of log-odds m_i, shifted by 1 for members: the loss sees m_i, the ratio does not."""
    rng = np.random.default_rng(2)
    n, shadows = 2000, 32
    m, member = rng.normal(0, 3, n), np.arange(n) < n // 2
    inside = rng.uniform(size=(shadows, n)) < 0.5

    def losses(c):
        return np.log1p(np.exp(-c))  # whose log-odds are c

    target = losses(m + member + rng.normal(0, 1, n))
    scores = lira(target, losses(m + inside + rng.normal(0, 1, inside.shape)), inside)
    by_ratio, by_loss = (judged(s[member], s[~member]).auc for s in (scores, -target))
    assert by_ratio == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.03) and by_loss < 0.62
    with pytest.raises(ValueError, match="in one shadow model at least"):
        lira(target, losses(np.zeros((2, n))), np.ones((2, n), bool))
