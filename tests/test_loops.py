"""The plain loops: gradients through rounds, a look at every client, Python inside the steps, and a backend
for `fit`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.loops import Visit
from tests.run.small import SIZES, bits, clients

PLAN = {"batch_size": 4, "epochs": 1}


def scaffold():
    return fc.compose(
        fc.algorithms.scaffold(fc.models.logistic(features=3, classes=2), lr=0.1, population=len(SIZES))
    )


def after_two_rounds(start, rate):
    """The loss on all examples after two rounds with momentum at the server, clients of several steps and
    other clients in each round."""
    task = fc.models.mlp(features=3, hidden=(4,), classes=2)
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(rate), optax.sgd(1.0, momentum=0.9)))
    loops = fc.Loops(composed, clients(), **PLAN)
    state = loops.init(jax.random.key(0), start)
    for cohort in ([0, 3, 4], [1, 3, 5]):
        state, _ = loops.run(state, cohort)
    columns = jax.tree.map(jnp.asarray, loops.clients.columns)
    return task.mean_loss(
        state.params, fc.Batch(columns, jnp.ones(loops.clients.examples)), jax.random.key(0)
    )


def test_gradients_through_rounds_are_finite_differences():
    """By the model that the rounds begin with, in a direction drawn at random, and by the clients' learning
    rate."""
    task = fc.models.mlp(features=3, hidden=(4,), classes=2)
    start, rate, small = task.init(jax.random.key(3)), jnp.float32(0.2), 1e-2
    way = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape), jnp.float32), start
    )
    by_model, by_rate = jax.grad(after_two_rounds, argnums=(0, 1))(start, rate)
    up, down = (jax.tree.map(lambda x, d, s=sign: x + s * small * d, start, way) for sign in (1, -1))
    slope = (after_two_rounds(up, rate) - after_two_rounds(down, rate)) / (2 * small)
    along = sum(jnp.sum(g * d) for g, d in zip(jax.tree.leaves(by_model), jax.tree.leaves(way), strict=True))
    assert abs(float(slope)) > 0.01 and float(along) == pytest.approx(float(slope), rel=2e-3)
    slope = (after_two_rounds(start, rate + small) - after_two_rounds(start, rate - small)) / (2 * small)
    assert abs(float(slope)) > 0.01 and float(by_rate) == pytest.approx(float(slope), rel=2e-3)


def test_each_client_is_shown_and_what_they_bring_is_what_the_round_makes_of_it():
    loops, visits = fc.Loops(scaffold(), clients(), **PLAN), []
    before = loops.init(jax.random.key(0))
    after, metrics = loops.run(before, [5, 2, 3], each=visits.append)  # client 2 has no examples
    assert all(isinstance(visit, Visit) for visit in visits)
    # SCAFFOLD weighs all alike
    assert [(visit.exchange, visit.client, float(visit.weight)) for visit in visits] == [
        (0, 5, 1.0),
        (0, 3, 1.0),
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(visit.update[0] for visit in visits))
    np.testing.assert_allclose(after.params["w"] - before.params["w"], mean["w"], atol=1e-7)
    for visit in visits:
        jax.tree.map(
            lambda all_, mine, i=visit.client: np.testing.assert_array_equal(all_[i], mine),
            after.clients,
            visit.kept,
        )
    assert float(sum(visit.metrics["loss"] for visit in visits)) == pytest.approx(
        float(metrics["loss"]), rel=1e-6
    )


def test_without_jit_python_in_a_step_sees_numbers():
    task, seen = fc.models.logistic(features=3, classes=2), []
    algorithm = fc.algorithms.fedavg(task, optax.sgd(0.1))
    (exchange,) = algorithm.exchanges

    def step(message, carry, batch, key):
        if not isinstance(batch.mask, jax.core.Tracer):  # compose and its checks look at shapes alone
            seen.append(float(batch.mask.sum()))
        return exchange.client.step(message, carry, batch, key)

    looking = algorithm._replace(exchanges=(exchange._replace(client=exchange.client._replace(step=step)),))
    by_python, compiled = (fc.Loops(fc.compose(looking), clients(), jit=jit, **PLAN) for jit in (False, True))
    state, _ = by_python.run(by_python.init(jax.random.key(0)), [0, 3])
    assert seen == [4, 1, 4, 4, 1]
    expected, _ = compiled.run(compiled.init(jax.random.key(0)), [0, 3])
    assert seen == [4, 1, 4, 4, 1]
    np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-6)


def test_fit_takes_them_resumes_them_and_ends_where_lanes_end(tmp_path):
    loops, draw = fc.Loops(scaffold(), clients(), **PLAN), fc.cohorts.uniform(len(SIZES), 4)
    whole = fc.fit(loops, 3, draw, evaluate_every=1)
    fc.fit(loops, 2, draw, tmp_path, evaluate_every=1)
    resumed = fc.fit(loops, 3, draw, tmp_path, evaluate_every=1)
    assert bits(resumed.state) == bits(whole.state) and resumed.records == whole.records
    lanes = fc.fit(fc.Simulator(scaffold(), clients(), lanes=2, **PLAN), 3, draw, evaluate_every=1)
    assert [sorted(record) for record in whole.records] == [sorted(record) for record in lanes.records]
    for mine, theirs in zip(whole.records, lanes.records, strict=True):
        assert {name: mine[name] for name in mine if name != "kind"} == pytest.approx(
            {name: theirs[name] for name in mine if name != "kind"}, rel=1e-5
        )


def test_a_round_in_which_nobody_reports_counts_nobody():
    loops = fc.Loops(scaffold(), clients(), **PLAN)
    state, metrics = loops.run(loops.init(jax.random.key(0)), [2])
    sim = fc.Simulator(scaffold(), clients(), lanes=1, **PLAN)
    expected, found = sim.run(sim.init(jax.random.key(0)), [2])
    assert bits(state) == bits(expected)
    assert fc.metrics.summary(metrics) == {
        name: float(found[name]) for name in ("refused", "clients", "examples")
    }


def test_what_is_refused():
    with pytest.raises(TypeError, match="Loops needs a Round, got Algorithm: make one with"):
        fc.Loops(fc.algorithms.fedavg(fc.models.linear(features=3), optax.sgd(0.1)), clients(), **PLAN)
    loops = fc.Loops(scaffold(), clients(), **PLAN)
    with pytest.raises(ValueError, match="the cohort names client 6"):
        loops.run(loops.init(jax.random.key(0)), [6])
