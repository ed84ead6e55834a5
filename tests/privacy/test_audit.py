"""Audits are never above what is told, have the power that is known of them, and catch each fault that is
planted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

import fedjax_core as fc
from fedjax_core import privacy
from fedjax_core.privacy import audit, canaries
from fedjax_core.uplink.base import alone

DELTA, NUMBER = 1e-5, 2000


def scores(mean, seed, number=NUMBER):
    rng = np.random.default_rng(seed)
    return rng.normal(mean, 1, number), rng.normal(0, 1, number)


@pytest.mark.parametrize(("mean", "area", "rate"), [(1.0, 0.7602, 0.0924), (2.0, 0.9214, 0.3721)])
def test_areas_and_rates_of_normal_scores(mean, area, rate):
    assert norm.cdf(mean / np.sqrt(2)) == pytest.approx(area, abs=1e-4) and norm.cdf(
        mean - norm.ppf(0.99)
    ) == pytest.approx(rate, abs=1e-4)
    found = scores(mean, 0, 100_000)
    assert audit.auc(*found) == pytest.approx(area, abs=0.005) and audit.tpr_at(*found) == pytest.approx(
        rate, abs=0.015
    )
    best = max(np.mean(found[0] > t) + np.mean(found[1] <= t) for t in np.linspace(-1, 3, 41)) / 2
    assert best == pytest.approx(norm.cdf(mean / 2), abs=0.005)  # 0.6915 and 0.8413


def test_the_area_counts_equal_scores_by_half():
    assert audit.auc([1.0, 2.0], [1.0, 0.0]) == 0.875 and audit.auc([1, 1], [1, 1]) == 0.5


@pytest.mark.parametrize("bound", [audit.epsilon_of_scores, audit.epsilon_one_run])
def test_bounds_are_none_where_nothing_is_told_and_never_above_the_truth(bound):
    """Of 40 draws, each wrong one time in twenty at most, no more than six are wrong, and by little."""
    nothing = [bound(*scores(0.0, seed, 1000), DELTA) for seed in range(40)]
    assert np.sum(np.array(nothing) > 0) <= 6 and max(nothing) < 0.2
    for mean, truth in ((1.0, 4.37718), (2.0, 9.99726)):
        found = [bound(*scores(mean, seed), DELTA) for seed in range(10)]
        assert max(found) <= truth and np.mean(found) >= 0.85 * POWER[bound, mean]


# What is seen on average with 2000 scores of each kind.
POWER = {
    (audit.epsilon_of_scores, 1.0): 1.72,
    (audit.epsilon_of_scores, 2.0): 2.99,
    (audit.epsilon_one_run, 1.0): 1.22,
    (audit.epsilon_one_run, 2.0): 2.43,
}


def test_between_two_normals_it_is_the_gaussian_mechanism_and_its_quadrature():
    for mean, truth in ((1.0, 4.37718), (2.0, 9.99726)):
        assert audit.epsilon_between(0, 1, mean, 1, DELTA) == pytest.approx(truth, abs=1e-4)
    x = np.linspace(-30, 30, 600_001)
    for other, spread in ((1.0, 1.2), (0.3, 0.8), (0.0, 1.5)):
        found = audit.epsilon_between(0, 1, other, spread, 1e-3)
        p, q = norm.pdf(x), norm.pdf(x, other, spread)
        above = [np.trapezoid(np.maximum(a - np.exp(found) * b, 0), x) for a, b in ((p, q), (q, p))]
        assert max(above) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("noise", "fixed", "fitted"),
    [
        (4.22468, (1.00, 0.14), (1.35, 0.31)),
        (1.54386, (3.01, 0.17), (3.39, 0.34)),
        (0.54109, (10.02, 0.21), (10.68, 0.63)),
    ],
)
def test_one_shot_estimates_what_is_true(noise, fixed, fitted):
    """100 runs with 1000 canaries, whose cosines times sqrt(d) are N(1 / noise, 1) where d is far larger."""
    cosines = np.random.default_rng(0).normal(1 / noise, 1, (100, 1000))
    means, spreads = cosines.mean(axis=1), cosines.std(axis=1, ddof=1)
    for spread, (mean, deviation) in ((np.ones(100), fixed), (spreads, fitted)):
        found = [audit.epsilon_between(0, 1, max(m, 0), s, 1e-6) for m, s in zip(means, spread, strict=True)]
        assert np.mean(found) == pytest.approx(mean, abs=4 * deviation / 10) and np.std(
            found
        ) == pytest.approx(deviation, rel=0.3)


K, D, CLAIMED_NOISE = 500, 3000, 4.0


def run(stage, rounds=2, size=1e6, weight=1.0, take=lambda round: slice(None)):
    """(the canaries' directions, the way of the model in each round) of rounds in which these canaries
    report."""
    known = canaries.directions(K, np.zeros(D, np.float32))
    shape = jax.ShapeDtypeStruct((D,), jnp.float32)
    state, here, ways = stage.init(shape), jnp.ones(1, bool), []

    def send(update, key):
        return stage.expand(
            state, stage.encode(state, (), update, alone(key)._replace(weight=jnp.float32(weight)))[0], shape
        )

    sending = jax.jit(jax.vmap(send))
    for round in range(rounds):
        rows = jnp.asarray(size * known[take(round)])
        total = jnp.sum(sending(rows, jax.random.split(jax.random.key(7), len(rows))), axis=0)
        secret = jax.random.key(100 + round)
        info = fc.uplink.Info(jnp.float32(K), jnp.float32(K), jax.random.key(5), secret, here, here)
        value, state = stage.finish(state, total, info, jax.random.key(6))
        ways.append(np.asarray(value, np.float64))
    return known, ways


def honest(**settings):
    return privacy.gaussian(1.0, CLAIMED_NOISE, cohort=1, **settings)


CLAIMED = privacy.epsilon(CLAIMED_NOISE, rounds=2, delta=DELTA, sampling="everyone")
FAULTS = {
    "noise forgotten": lambda: honest()._replace(finish=lambda state, value, info, key: (value, state)),
    "noise divided by 10": lambda: honest()._replace(
        finish=privacy.gaussian(1.0, CLAIMED_NOISE / 10, 1).finish
    ),
    "clip skipped": lambda: honest()._replace(
        encode=lambda state, own, update, sender: (update, own), expand=lambda state, message, shapes: message
    ),
    "weight cap removed": lambda: honest()._replace(
        encode=lambda state, own, update, sender: (
            update * (sender.weight / 10.0) / jnp.linalg.norm(update),
            own,
        ),
        expand=lambda state, message, shapes: message,
    ),
}


def test_of_an_honest_mechanism_the_estimate_is_about_what_is_claimed():
    known, ways = run(honest())
    found = audit.one_shot(known, sum(ways), DELTA)
    assert 0.6 * CLAIMED < found.epsilon < 1.15 * CLAIMED
    others = canaries.directions(2 * K, np.zeros(D, np.float32))[K:]  # who sent nothing
    assert audit.one_shot(others, sum(ways), DELTA).epsilon < 0.3
    absent = others @ sum(ways) / np.linalg.norm(sum(ways))
    assert audit.epsilon_of_scores(found.cosines, absent, DELTA) <= CLAIMED


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault):
    known, ways = run(FAULTS[fault](), size=20.0 if fault == "clip skipped" else 1e6, weight=1000.0)
    assert audit.one_shot(known, sum(ways), DELTA).epsilon > 2 * CLAIMED


def test_noise_that_is_used_again_is_caught_between_rounds():
    """Canaries of the first half are in even rounds: what two rounds differ by has noise in it only where
    that was drawn anew."""

    def half(round):
        return slice(0, K // 2) if round % 2 == 0 else slice(K // 2, K)

    def between(stage):
        known, (first, second) = run(stage, take=half)
        return audit.one_shot(known[: K // 2], first - second, DELTA).epsilon

    def again(state, value, info, key):
        return honest().finish(state, value, info._replace(secret=jax.random.key(0)), key)

    assert between(honest()) < 1.15 * CLAIMED < 3 * CLAIMED < between(honest()._replace(finish=again))


def test_a_sampler_that_draws_more_than_its_account_counts_is_caught():
    claimed = privacy.epsilon(CLAIMED_NOISE, 0.05, 2, DELTA)
    known, ways = run(honest())  # all are in every round
    assert audit.one_shot(known, sum(ways), DELTA).epsilon > 5 * claimed


@pytest.mark.slow
def test_canaries_beside_a_run():
    """Ten ordinary clients and forty canaries in one round of all: the estimate is that of the mechanism, and
    clients are none."""
    features, many = 1000, 50
    data = fc.Clients.from_list(
        [{"x": np.zeros((1, features), np.float32), "y": np.zeros(1, np.float32)}] * many
    )
    made = privacy.client_level(population=many, cohort=many, rounds=1, clip=1.0, noise=0.5, delta=DELTA)
    algorithm = canaries.planted(fc.algorithms.fedavg(fc.models.linear(features), optax.sgd(0.1)))
    sim = fc.Simulator(
        fc.compose(algorithm, uplink=made.uplink, aggregator=made.aggregator),
        data,
        batch_size=1,
        lanes=2,
        mesh=None,
    )
    start = canaries.marked(sim.init(jax.random.key(0)), range(10, many))
    after, _ = sim.run(start, made.cohorts(0))
    way, before = (jax.flatten_util.ravel_pytree(x.params)[0] for x in (after, start))
    found = audit.one_shot(canaries.directions(many, start.params), np.asarray(way - before), DELTA)
    seen, unseen = found.cosines[:40].mean(), found.cosines[40:].mean()
    expected = 1 / np.sqrt(features * 0.25 + 40)  # 1 / (sqrt(d) sqrt(noise^2 + k / d))
    assert seen == pytest.approx(expected, abs=4 / np.sqrt(40 * features)) and abs(unseen) < 5 / np.sqrt(
        10 * features
    )
    with pytest.raises(TypeError, match="compose planted"):
        canaries.marked(
            sim.round.init(jax.random.key(0), 3)._replace(
                clients=sim.round.init(jax.random.key(0), 3).clients._replace(own=())
            ),
            [0],
        )
