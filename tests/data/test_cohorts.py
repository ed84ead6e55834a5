"""Cohorts: addressed draws with the frequencies that were asked for."""

import dataclasses
import math
from itertools import permutations

import numpy as np
import pytest

from fedjax_core.data import cohorts

ROUNDS = 4000

EVERY = {
    "uniform": cohorts.uniform(50, size=5, seed=1),
    "uniform, replace": cohorts.uniform(50, size=60, seed=1, replace=True),
    "poisson": cohorts.poisson(50, rate=0.1, seed=1),
    "weighted": cohorts.weighted(np.arange(50), size=5, seed=1),
    "everyone": cohorts.everyone(50),
}


@pytest.mark.parametrize("name", EVERY)
def test_any_round_can_be_drawn_alone(name):
    sampler = EVERY[name]
    drawn = [sampler(r) for r in range(8)]
    again = dataclasses.replace(sampler)(7)
    assert all(
        np.array_equal(a, b) for a, b in zip(np.atleast_2d(again), np.atleast_2d(drawn[7]), strict=True)
    )
    for r in range(8):
        cohort = cohorts.as_cohort(drawn[r], 50)  # distinct and in range
        assert cohort.clients.dtype == np.int32 and len(cohort.clients) <= sampler.max_size
        assert (np.diff(cohort.clients) > 0).all()


@pytest.mark.parametrize("name", [name for name in EVERY if name != "everyone"])
def test_rounds_and_seeds_differ(name):
    sampler = EVERY[name]
    drawn = {str(s(r)) for s in (sampler, dataclasses.replace(sampler, seed=2)) for r in range(3)}
    assert len(drawn) == 6


def frequencies(sampler, population):
    counts = np.zeros(population)
    for r in range(ROUNDS):
        cohort = cohorts.as_cohort(sampler(r), population)
        counts[cohort.clients] += cohort.counts
    return counts / ROUNDS


def assert_chance(found, expected):
    """Each frequency of ROUNDS independent draws within 5 standard deviations."""
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / ROUNDS) + 1e-12).all()


def test_uniform_frequencies():
    assert_chance(frequencies(cohorts.uniform(10, size=3), 10), np.full(10, 0.3))


def test_uniform_pairs_are_equally_likely():
    pairs = np.zeros((4, 4))
    sampler = cohorts.uniform(4, size=2)
    for r in range(ROUNDS):
        pairs[tuple(sampler(r))] += 1 / ROUNDS
    assert_chance(pairs[np.triu_indices(4, 1)], np.full(6, 1 / 6))


def test_uniform_with_replacement_counts_every_draw():
    sampler = cohorts.uniform(4, size=6, replace=True)
    assert sampler.max_size == 4
    assert all(sampler(r).counts.sum() == 6 for r in range(20))
    found = frequencies(sampler, 4)  # the mean count is 6/4, its variance 6 * 1/4 * 3/4
    assert (np.abs(found - 1.5) < 5 * math.sqrt(6 * 3 / 16 / ROUNDS)).all()


def test_poisson_is_a_coin_for_each_client():
    sampler = cohorts.poisson(20, rate=0.2)
    assert_chance(frequencies(sampler, 20), np.full(20, 0.2))
    sizes = np.array([len(sampler(r)) for r in range(ROUNDS)])
    assert np.isclose(sizes.var(), 20 * 0.2 * 0.8, rtol=0.15)  # 0 if the size were fixed
    assert_chance((sizes == 0).mean(), 0.8**20)


def test_poisson_takes_everyone_at_rate_one():
    assert cohorts.poisson(5, rate=1)(3).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("population", "rate"), [(1_000_000, 1e-3), (10_000, 1e-5), (30, 0.5)])
def test_poisson_max_size_is_beyond_8_deviations_and_not_far(population, rate):
    bound = cohorts.poisson(population, rate).max_size
    eight = population * rate + 8 * math.sqrt(population * rate * (1 - rate))
    assert min(population, eight) <= bound <= min(population, eight + 23)


def test_poisson_max_size_holds_for_rare_draws():
    """P(Binomial(10_000, 1e-5) > max_size) < 2e-14, summed exactly."""
    n, p = 10_000, 1e-5
    bound = cohorts.poisson(n, p).max_size
    assert sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(bound + 1, bound + 30)) < 2e-14


def test_weighted_is_successive_sampling():
    """P(i then j) = w_i / W * w_j / (W - w_i), summed over both orders."""
    weights = np.array([1.0, 2.0, 0.0, 5.0])
    expected = np.zeros(4)
    for i, j in permutations(range(4), 2):
        expected[[i, j]] += weights[i] / 8 * weights[j] / (8 - weights[i])
    assert_chance(frequencies(cohorts.weighted(weights, size=2), 4), expected)


def test_settings_compare_and_print():
    assert cohorts.uniform(9, 3) == cohorts.uniform(9, size=3, seed=0) != cohorts.uniform(9, 3, seed=1)
    assert repr(cohorts.uniform(9, 3)) == "uniform(population=9, size=3, seed=0, replace=False)"
    one, same, other = (cohorts.weighted(w, size=1) for w in ([1, 2], [1.0, 2.0], [1, 3]))
    assert one == same != other and hash(one) == hash(same)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cohorts.uniform(5, size=6), "cannot draw 6 different clients from 5"),
        (lambda: cohorts.uniform(5, size=0), "size must be a whole number of at least 1, got 0"),
        (lambda: cohorts.uniform(0, size=1), "population must be a whole number of at least 1, got 0"),
        (lambda: cohorts.uniform(2**31, size=1), r"population must be below 2\*\*31"),
        (lambda: cohorts.uniform(5, 1, seed=2**64), r"seed must be below 2\*\*64"),
        (lambda: cohorts.uniform(5, 1)(-1), "round must be a whole number of at least 0, got -1"),
        (lambda: cohorts.poisson(5, rate=0), "rate must be above 0 and at most 1, got 0"),
        (lambda: cohorts.poisson(5, rate=1.5), "rate must be above 0 and at most 1, got 1.5"),
        (lambda: cohorts.weighted([1, -2, 3], size=1), "client 1 has -2.0"),
        (lambda: cohorts.weighted([1, 2, np.nan], size=1), "client 2 has nan"),
        (
            lambda: cohorts.weighted([0, 2, 0], size=2),
            "cannot draw 2 different clients, for only 1 have a weight above 0",
        ),
        (lambda: cohorts.weighted([[1, 2]], size=1), "one-dimensional"),
    ],
)
def test_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build()
