"""Noise that clients add together: whole numbers of the right moments, sums that secure aggregation gives, an
epsilon from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedjax_core as fc
from fedjax_core import privacy, tree
from fedjax_core.privacy.skellam import _draw, _rounded, _thresholds, divergence, longest
from fedjax_core.uplink.base import alone

KEY = jax.random.key(0)


@pytest.mark.parametrize("variance", [0.5, 9.0, 4000.0])
def test_draws_are_skellam(variance):
    """By moments (mean 0, variance mu, excess 1 / mu) and by the distribution of the difference of two
    Poisson variables."""
    x = np.asarray(jax.jit(lambda k: _draw(_thresholds(variance), k, (400_000,)))(KEY), np.float64)
    assert (x == np.rint(x)).all() and abs(x.mean()) < 5 * np.sqrt(variance / len(x))
    assert x.var() == pytest.approx(variance, rel=5 * np.sqrt((2 + 1 / variance) / len(x)))
    assert abs(stats.kurtosis(x) - 1 / variance) < 0.05
    edges = np.unique(stats.skellam.ppf(np.linspace(0.02, 0.98, 25), variance / 2, variance / 2))
    expected = np.diff(np.concatenate([[0], stats.skellam.cdf(edges, variance / 2, variance / 2), [1]]))
    found = np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1)
    assert stats.chisquare(found, expected * len(x)).pvalue > 1e-4


def test_the_divergence_is_above_the_true_one_and_near_it():
    """Of whole numbers one apart, by the sum over all values."""
    for variance in (4.0, 25.0, 400.0):
        k = np.arange(-3000, 3001)
        p, q = (stats.skellam.logpmf(k - at, variance / 2, variance / 2) for at in (1, 0))
        for order in (2, 5, 12):
            here = np.isfinite(p) & np.isfinite(q)
            exact = np.log(np.sum(np.exp(order * p[here] + (1 - order) * q[here]))) / (order - 1)
            bound = divergence(order, 1.0, 1, variance)
            assert exact <= bound * (1 + 1e-9) and bound < exact * (1 + 8 / variance)


def test_fine_steps_cost_what_gaussian_noise_does_and_coarse_ones_more():
    of = {"clients": 8, "parameters": 100, "rounds": 5, "clip": 1.0, "noise": 6.0, "delta": 1e-5}
    gaussian = privacy.epsilon(6.0, rounds=5, delta=1e-5, sampling="everyone", accountant="rdp")
    fine, usual, coarse = (privacy.distributed(**of, bits=bits).epsilon() for bits in (22, 16, 9))
    assert (
        gaussian <= fine * (1 + 1e-3) and fine < usual < coarse and fine == pytest.approx(gaussian, rel=5e-3)
    )
    found = privacy.distributed(**{**of, "noise": None}, epsilon=2.0)
    assert 2 - 1e-3 <= found.epsilon() <= 2 and found.epsilon(1) < found.epsilon(2)


def test_rounding_keeps_to_its_norm_and_has_no_bias():
    x = jnp.asarray(np.random.default_rng(0).normal(size=50).astype(np.float32))
    x = x * (40.3 / float(tree.norm(x)))
    most = longest(40.3, 1.0, 50)
    found = jax.jit(jax.vmap(lambda key: _rounded(x, most, key)))(jax.random.split(KEY, 4000))
    drawn, flat = np.asarray(found), np.asarray(x)
    assert (
        (drawn == np.rint(drawn)).all()
        and (np.abs(drawn - flat) < 1).all()
        and np.linalg.norm(drawn, axis=1).max() <= most
    )
    assert np.abs(drawn.mean(axis=0) - flat).max() < 6 * 0.5 / np.sqrt(4000)
    short = jax.jit(lambda key: _rounded(x, 40.3, key))(KEY)  # a bound that hardly a draw keeps
    assert float(tree.norm(short)) <= 40.3


def test_a_round_in_lanes_gives_the_sum_of_whole_numbers_and_all_of_the_noise():
    """A model that nobody trains moves by the noise alone: multiples of step / clients, of variance (noise
    clip / clients)^2."""
    task = fc.models.linear(features=5000)
    rows = [{"x": np.zeros((2, 5000), np.float32), "y": np.zeros(2, np.float32)} for _ in range(4)]
    private = privacy.distributed(clients=4, parameters=5001, rounds=3, clip=0.5, noise=3.0, delta=1e-5)
    algorithm = fc.algorithms.fedavg(task, optax.sgd(0.0), weighting=fc.algorithms.uniform)
    composed = fc.compose(algorithm, uplink=private.uplink, aggregator=private.aggregator)
    simulator = fc.Simulator(composed, fc.Clients.from_list(rows), batch_size=2, lanes=2)
    start = simulator.init(KEY)
    after, seen = simulator.run(start, private.cohorts(0))
    moved = np.concatenate(
        [
            np.ravel(np.subtract(a, b))
            for a, b in zip(*map(jax.tree.leaves, (after.params, start.params)), strict=True)
        ]
    )
    whole = moved * 4 / private.step
    assert np.abs(whole - np.rint(whole)).max() < 1e-2 and "loss" not in seen
    assert moved.std() == pytest.approx(3.0 * 0.5 / 4, rel=0.04) and abs(moved.mean()) < 0.03


def test_a_client_sends_its_share_of_the_noise_more_where_some_may_drop_out():
    private = privacy.distributed(
        clients=10, parameters=20_000, rounds=1, clip=1.0, noise=2.0, delta=1e-5, dropped=5
    )
    stage = privacy.skellam(1.0, private.local, private.step, 20_000, 100.0)
    sent, _ = jax.jit(lambda u: stage.encode((), (), u, alone(KEY)))(jnp.zeros(20_000))
    assert private.local == pytest.approx(2.0 / np.sqrt(5)) and np.std(sent) == pytest.approx(
        private.local, rel=0.02
    )
    assert private.uplink.promises.noise == pytest.approx(private.local) and private.uplink.hides


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dropped": 4}, "dropped=4 is how many of the 4 clients"),
        ({"bits": 30}, "bits=30 is of a number on the wire"),
        ({"epsilon": 1.0}, "give epsilon="),
        ({"noise": 0.0}, "noise= must be above 0"),
        ({"clip": {"w": 1.0}}, "clip= is one norm here"),
    ],
)
def test_settings_that_make_no_sense(settings, said):
    with pytest.raises(ValueError, match=said):
        privacy.distributed(
            **{"clients": 4, "parameters": 3, "rounds": 1, "clip": 1.0, "noise": 1.0, **settings}
        )


def test_another_model_and_weights_by_examples_are_refused():
    private = privacy.distributed(clients=4, parameters=7, rounds=1, clip=1.0, noise=1.0)
    algorithm = fc.algorithms.fedavg(
        fc.models.linear(features=2), optax.sgd(0.1), weighting=fc.algorithms.uniform
    )
    with pytest.raises(
        ValueError, match="the update has 3 numbers, and the account is of 7: give parameters=3"
    ):
        fc.compose(algorithm, uplink=private.uplink, aggregator=private.aggregator)
    weighed = fc.algorithms.fedavg(fc.models.linear(features=2), optax.sgd(0.1))
    private = privacy.distributed(clients=4, parameters=3, rounds=1, clip=1.0, noise=1.0)
    with pytest.raises(ValueError, match="weighs its reports by a client's examples"):
        fc.compose(weighed, uplink=private.uplink, aggregator=private.aggregator)
