"""What leaving sites out says of a new hospital: by loops, and by a thousand simulated federations."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fedjax_core.clinical import intervals, ranks, validation
from fedjax_core.clinical.validation import Judged
from fedjax_core.stats.meta import meta


@pytest.mark.parametrize("spread", (0.2, 0.5))
def test_the_prediction_interval_holds_a_new_hospital_as_often_as_it_says(spread):
    rng, held = np.random.default_rng(0), []
    for _ in range(1000):
        true = rng.normal(1.2, spread, 12)
        errors = rng.uniform(0.1, 0.25, 12)
        seen = rng.normal(true, errors)
        found = validation.pooled(
            {str(i): Judged(*each) for i, each in enumerate(zip(seen, errors, strict=True))}, method="dl"
        )
        low, high = found.prediction_interval
        held.append(low <= rng.normal(1.2, spread) <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.1)  # measured 0.892 and 0.935


def test_each_site_is_judged_by_a_model_that_never_saw_it():
    rng = np.random.default_rng(1)
    data = {}
    for site, n in (("a", 80), ("b", 120), ("c", 150), ("d", 60)):
        x = rng.normal(size=(n, 3))
        data[site] = (x, (rng.random(n) < expit(x @ [1.0, -0.5, 0.2] + rng.normal(0, 0.3))).astype(int))

    def fit(names):
        return LogisticRegression().fit(*(np.concatenate([data[name][i] for name in names]) for i in (0, 1)))

    def judge(model, site):
        x, y = data[site]
        risk = model.predict_proba(x)[:, 1]
        counts = ranks.counts(y, risk, ranks.levels([risk]))
        return Judged(ranks.auroc(counts, exact=True).value, np.sqrt(intervals.variance(counts)))

    found = validation.leave_one_out(list(data), fit, judge, scale="logit")
    values, variances = [], []
    for site, (x, y) in data.items():
        risk = fit([name for name in data if name != site]).predict_proba(x)[:, 1]
        value = roc_auc_score(y, risk)
        error = np.sqrt(intervals.variance(ranks.counts(y, risk, ranks.levels([risk]))))
        assert found.left_out[site].value == pytest.approx(value)
        values.append(logit(value))
        variances.append((error / (value * (1 - value))) ** 2)
    expected = meta(values, variances, "reml", hksj=True)
    assert found.estimate == pytest.approx(expit(expected.estimate))
    assert found.prediction_interval == pytest.approx(tuple(expit(expected.prediction_interval)))
    own = {name: fit([name]) for name in data}
    matrix = validation.cross_site(own, list(data), lambda model, site: judge(model, site).value)
    assert matrix[1, 2] == pytest.approx(
        roc_auc_score(data["c"][1], own["b"].predict_proba(data["c"][0])[:, 1])
    )
    assert matrix.shape == (4, 4)


def test_a_site_that_cannot_tell_is_left_out_of_the_mean_and_named():
    good = {"a": Judged(0.8, 0.05), "b": Judged(0.7, 0.05), "c": Judged(0.75, 0.02)}
    odd = {"none": Judged(np.nan, np.nan), "one": Judged(1.0, 0.01), "point": Judged(0.7, 0.0)}
    found = validation.pooled({**good, **odd}, scale="logit")
    assert set(found.without) == set(odd)
    assert found.estimate == validation.pooled(good, scale="logit").estimate
    with pytest.raises(ValueError, match="fewer than two"):
        validation.pooled({"a": good["a"], **odd}, scale="logit")
    with pytest.raises(ValueError, match="names of their own"):
        validation.leave_one_out(["a", "a"], list, lambda model, site: good["a"])
