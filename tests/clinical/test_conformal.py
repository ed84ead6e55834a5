"""The promise of conformal thresholds from counts: the pooled rank, the coverage that it gives, and the trap
of averaged quantiles."""

from math import ceil, inf

import numpy as np
import pytest

from fedjax_core.clinical import conformal


def visits(scores):
    return lambda edges: sum(conformal.score_counts(each, edges) for each in scores)


def test_the_threshold_is_the_bin_of_the_pooled_rank_and_visits_find_the_very_score():
    rng = np.random.default_rng(0)
    scores = [rng.random(n) ** 2 for n in (1, 30, 200)]
    for alpha in (0.05, 0.1, 0.5):
        true = np.sort(np.concatenate(scores))[ceil(232 * (1 - alpha) - 1e-9) - 1]
        once = conformal.threshold(visits(scores), alpha=alpha, low=0.0, high=1.0, bins=50)
        assert once.below < true <= once.value and once.value - once.below == pytest.approx(1 / 50)
        often = conformal.threshold(visits(scores), alpha=alpha, low=0.0, high=1.0, bins=50, visits=9)
        assert often.value == pytest.approx(true, abs=1e-14)


def test_a_new_person_is_covered_as_often_as_promised():
    rng = np.random.default_rng(1)
    runs, n = 4000, 37
    held, new = rng.random((runs, n)), rng.random(runs)
    found = [
        conformal.threshold(visits([row[:20], row[20:]]), alpha=0.1, low=0.0, high=1.0, bins=10_000)
        for row in held
    ]
    assert found[0].promised == 35 / 38
    covered = np.mean([x <= one.value for x, one in zip(new, found, strict=True)])
    assert covered == pytest.approx(35 / 38, abs=4 * np.sqrt(0.921 * 0.079 / runs))  # 4 standard errors


def skewed(rng):
    """A large site of easy people, and a small one of hard people."""
    return [rng.random(900), 1 + rng.random(300)]


def test_averaged_quantiles_of_skewed_sites_miss_too_many_and_the_pooled_rank_does_not():
    rng = np.random.default_rng(2)
    pooled, averaged = [], []
    for _ in range(40):
        held, new = skewed(rng), np.concatenate(skewed(rng))
        trap = np.mean([np.quantile(each, 0.9) for each in held])
        averaged.append((new <= trap).mean())
        pooled.append((new <= conformal.threshold(visits(held), alpha=0.1, low=0.0, high=2.0).value).mean())
    assert np.mean(averaged) < 0.87  # 0.85: the mean of 0.9 and 1.9 has all easy people and 0.4 of the hard
    assert np.mean(pooled) == pytest.approx(0.9, abs=0.01)
    held = skewed(rng)
    by_site = conformal.coverage(held, conformal.threshold(visits(held), alpha=0.1, low=0.0, high=2.0))
    assert by_site[0] == 1.0 and by_site[1] < 0.7  # the promise is not for each site


def test_groups_have_the_promise_each_by_its_own_rank():
    rng = np.random.default_rng(3)

    def everybody():
        return {"easy": [rng.random(100), rng.random(200)], "hard": [2 * rng.random(50), 2 * rng.random(30)]}

    covered = {"easy": [], "hard": []}
    for _ in range(100):
        held, new = everybody(), everybody()
        found = conformal.thresholds(
            lambda edges, held=held: {group: visits(scores)(edges) for group, scores in held.items()},
            alpha=0.2,
            low=0.0,
            high=2.0,
        )
        for group, scores in new.items():
            covered[group].append((np.concatenate(scores) <= found[group].value).mean())
    assert {group: np.mean(each) for group, each in covered.items()} == pytest.approx(
        {"easy": 0.8, "hard": 0.8}, abs=0.02
    )


def test_too_few_people_for_the_rank_have_everything_in_the_set():
    assert conformal.threshold(visits([np.zeros(8)]), alpha=0.1, low=0.0, high=1.0).value == inf
    assert conformal.threshold(visits([np.full(9, 0.5)]), alpha=0.1, low=0.0, high=1.0).value == 0.5
    assert conformal.threshold(visits([np.zeros(0)]), alpha=0.1, low=0.0, high=1.0).promised == 1.0


def test_sets_have_the_classes_whose_score_is_small_enough():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    found = conformal.Threshold(0.7, 0.6, 9, 9, 0.9)
    assert conformal.sets(probabilities, found).tolist() == [[True, False, False], [True, True, False]]
    assert conformal.class_scores(probabilities, [0, 1]).tolist() == pytest.approx([0.3, 0.65])
    low, high = conformal.intervals([1.0], found)
    assert (low[0], high[0]) == pytest.approx((0.3, 1.7))


def test_scores_that_are_none_or_off_the_grid_are_refused():
    with pytest.raises(ValueError, match="not a number"):
        conformal.score_counts(np.array([np.nan]), np.linspace(0, 1, 3))
    with pytest.raises(ValueError, match="give a higher one"):
        conformal.threshold(visits([np.full(99, 3.0)]), alpha=0.1, low=0.0, high=1.0)
