"""Reports add up to what a plain loop over them makes, whether a program adds several or each is added as it
comes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.coordinator import server
from fedjax_core.sites.coordinator.reports import Aggregation
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.uplink.base import alone

TASK = fc.models.linear(features=3)
MANY = server.TOGETHER * 2 + 3


def added(composed, reports, factors):
    """(the model before, the model that comes of these (update, weight)); the second, fourth, ... count
    twice, each times its factor."""
    state = composed.init(jax.random.key(0), 1)
    sums = Aggregation(composed, 0, state.uplink[0], len(reports))
    for place, ((update, weight), factor) in enumerate(zip(reports, factors, strict=True)):
        sums.add(
            SimpleNamespace(sender="charite", fields={}),
            (update, weight),
            place,
            times=1 + place % 2,
            factor=factor,
        )
    concluded = sums.conclude(state, "round 0", Rules(), lambda *about: None, np.zeros(2, np.uint32))
    # as where a step is run again
    again = sums.conclude(state, "round 0", Rules(), lambda *about: None, np.zeros(2, np.uint32))
    jax.tree.map(np.testing.assert_array_equal, again.params, concluded.params)
    return state.params, concluded.params


@pytest.fixture(params=["together", "each"])
def how(request, monkeypatch):
    if request.param == "each":
        monkeypatch.setattr(server, "SMALL_BYTES", 0)
    server.server_half.cache_clear()
    yield request.param
    server.server_half.cache_clear()


def reports_of(count):
    rng = np.random.default_rng(count)
    shapes = jax.eval_shape(TASK.init, jax.random.key(0))
    return [
        (jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes), float(rng.integers(1, 9)))
        for _ in range(count)
    ]


def counted(reports):
    return [weight * (1 + i % 2) for i, (_, weight) in enumerate(reports)]


@pytest.mark.parametrize("count", [1, server.TOGETHER, server.TOGETHER + 1, MANY])
def test_the_mean_is_that_of_a_plain_loop(count, how):
    composed, reports = fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1))), reports_of(count)
    assert server.server_half(composed).small == [how == "together"]
    # so that they cannot all wait together
    factors = [[None, np.float32(0.5), np.float32(0.25)][i % 3] for i in range(count)]
    before, found = added(composed, reports, factors)

    def expected(was, *updates):
        damped = [
            u.astype(np.float64) * (1 if f is None else f) for u, f in zip(updates, factors, strict=True)
        ]
        return was + np.average(damped, axis=0, weights=counted(reports))

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
        found,
        jax.tree.map(expected, before, *[u for u, _ in reports]),
    )


def test_an_aggregator_that_keeps_all_reports_gets_each_at_its_place(how):
    algorithm = fc.algorithms.fedavg(TASK, optax.sgd(0.1), weighting=fc.algorithms.uniform)
    composed = fc.compose(algorithm, aggregator=fc.aggregators.trimmed_mean(0.2))
    reports = [(update, 1.0) for update, _ in reports_of(MANY)]
    before, found = added(composed, reports, [None] * MANY)
    cut = int(0.2 * MANY)
    middle = jax.tree.map(
        lambda was, *updates: was + np.sort(updates, axis=0)[cut:-cut].mean(0),
        before,
        *[u for u, _ in reports],
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, middle)


def test_quantised_reports_are_expanded_as_they_are_added(how):
    composed = fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1)), uplink=fc.uplink.quantize(bits=8))
    state = composed.init(jax.random.key(0), 1)
    reports = []
    for i, (update, weight) in enumerate(reports_of(5)):
        sent, _ = composed.uplink.encode(state.uplink[0], (), update, alone(jax.random.key(i)))
        reports.append((jax.tree.map(np.asarray, sent), weight))
    before, found = added(composed, reports, [None] * 5)
    expanded = [
        composed.receive(0, state.uplink[0], sent, jnp.float32(weight))[0] for sent, weight in reports
    ]

    def expected(was, *updates):
        return was + np.average(np.stack(updates), axis=0, weights=counted(reports))

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
        found,
        jax.tree.map(expected, before, *expanded),
    )


def test_a_metric_that_one_site_tells_as_a_sum_and_others_as_a_mean_ends_nothing():
    composed = fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1)))
    state, recorded = composed.init(jax.random.key(0), 1), []
    sums = Aggregation(composed, 0, state.uplink[0], 4)
    told = (
        {"loss": 1.0, "loss.weight": 2.0},
        {"loss": 7e300},
        {"loss": 3.0, "loss.weight": 2.0},
        {"loss": 5.0, "loss.weight": None},
    )
    for place, (report, fields) in enumerate(zip(reports_of(4), told, strict=True)):
        sums.add(SimpleNamespace(sender=f"site {place}", fields={"examples": 2, **fields}), report, place)
    sums.conclude(state, "round 0", Rules(), lambda *about: recorded.append(about), np.zeros(2, np.uint32))
    assert (float(sums.metrics["loss"].total), float(sums.metrics["loss"].weight)) == (4.0, 4.0)
    assert [(who, what, about["metric"]) for who, what, about in recorded] == [
        ("site 1", "set aside", "loss")
    ]
