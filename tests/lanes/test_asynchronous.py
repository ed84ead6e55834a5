"""Asynchronous runs: FedBuff by its formula, the synchronous run as a special case, and nothing lost at a
crash."""

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.metrics import summary
from tests.contracts import assert_equal, assert_norm
from tests.zoo import clients, lossy, task

PLAN = {"batch_size": 4, "epochs": 1, "lanes": 2}


def averaging(**how):
    return fc.compose(fc.algorithms.fedavg(task(), local=optax.sgd(0.1), **how))


@pytest.fixture(scope="module")
def population():
    return clients("classes")


def test_with_all_of_the_cohort_and_no_delay_it_is_the_synchronous_run(population):
    composed, cohorts = averaging(server=optax.sgd(0.5, momentum=0.9)), [[0, 1, 3], [3, 4, 1], [0, 3, 4]]
    sync, late = (
        fc.Simulator(composed, population, **PLAN),
        fc.AsynchronousSimulator(composed, population, fc.Buffer(3), **PLAN),
    )
    expected, state = sync.init(jax.random.key(1)), late.init(jax.random.key(1))
    for cohort in cohorts:
        expected, seen = sync.run(expected, cohort)
        state, got = late.run(state, cohort)
    assert_norm(state.server, expected.server, 1e-6)
    assert {**summary(seen), "staleness": 0.0, "stale": 0.0, "ticks": 0.0} == pytest.approx(
        summary(got), rel=1e-5
    )


# (client, version it began from) as they arrive, worked out by hand from the times below: three clients, two
# updates a step.
TIMES = {0: 10, 1: 15, 3: 100}
STEPS = [
    [(0, 0), (1, 0)],
    [(0, 1), (1, 1)],
    [(0, 2), (1, 2)],
    [(0, 3), (1, 3)],
    [(0, 4), (1, 4)],
    [(0, 5), (1, 5)],
    [(3, 0), (0, 6)],
]


def test_updates_are_damped_by_their_age_as_in_the_paper(population):
    composed = averaging()
    sim = fc.AsynchronousSimulator(
        composed, population, fc.Buffer(2), delays=lambda client, version: TIMES[client], **PLAN
    )
    alone = fc.Simulator(composed, population, **PLAN)
    state = sim.init(jax.random.key(1))
    models = [state.params]
    for version, arrivals in enumerate(STEPS):
        total, weight = jax.tree.map(np.zeros_like, models[-1]), 0
        for client, began in arrivals:
            before = alone.init(state.key, models[began])._replace(round=np.int32(began))
            trained = alone.run(before, [client])[0].params
            size, factor = population.sizes[client], 1 / np.sqrt(1 + version - began)
            total = jax.tree.map(
                lambda t, a, b, s=size * factor: t + s * (np.asarray(a) - np.asarray(b)),
                total,
                trained,
                models[began],
            )
            weight += size
        models.append(jax.tree.map(lambda x, t, w=weight: np.asarray(x) + t / w, models[-1], total))
        state, metrics = sim.run(state, [0, 1, 3])
        assert_norm(state.params, models[-1], 1e-6)
    assert summary(metrics)["staleness"] == 3.0 and int(state.clients.now) == 100


def test_what_is_too_old_is_refused_and_its_client_begins_anew(population):
    buffer = fc.Buffer(2, max_staleness=5)
    sim = fc.AsynchronousSimulator(
        averaging(), population, buffer, delays=lambda client, version: TIMES[client], **PLAN
    )
    state = sim.init(jax.random.key(1))
    stale = []
    for _ in range(7):
        state, metrics = sim.run(state, [0, 1, 3])
        stale.append(summary(metrics)["stale"])
    assert stale == [0, 0, 0, 0, 0, 0, 1] and np.asarray(state.clients.flight.started)[3] == 6


def test_who_completes_a_step_begins_from_the_model_that_comes_of_it(population):
    times = {**TIMES, 3: 27}  # after (0, 1) at 25, and before (1, 1) at 30
    sim = fc.AsynchronousSimulator(
        averaging(), population, fc.Buffer(2), delays=lambda client, version: times[client], **PLAN
    )
    state, _ = sim.run_many(sim.init(jax.random.key(1)), [[0, 1, 3]] * 2)
    assert int(state.clients.now) == 27 and np.asarray(state.clients.flight.last)[3] == 0
    state, _ = sim.run(state, [0, 1, 3])
    assert np.asarray(state.clients.flight.last)[3] == 2


def test_a_run_that_was_stopped_goes_on_bit_for_bit(population, tmp_path):
    composed = averaging(server=optax.sgd(1.0, momentum=0.9))

    def fit(rounds, folder):
        sim = fc.AsynchronousSimulator(
            composed, population, fc.Buffer(2), delays=fc.Delays(50, 1.5, seed=3), **PLAN
        )
        keeping = {"run_dir": folder, "checkpoint_every": 2, "evaluate_every": 2, "progress": False}
        return fc.fit(
            sim, rounds, cohorts=fc.cohorts.everyone(len(population)), key=jax.random.key(1), **keeping
        )

    expected = fit(5, tmp_path / "whole")
    fit(3, tmp_path / "parts")
    again = fit(5, tmp_path / "parts")
    assert_equal(again.state, expected.state)
    assert again.records == expected.records and any(r.get("staleness", 0) > 0 for r in expected.records)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: fc.compose(fc.algorithms.scaffold(task(), 0.1, 5)),
            "clients of scaffold keep state between rounds",
        ),
        (lambda: fc.compose(fc.algorithms.mime(task(), optax.sgd(0.1))), "has 2 exchanges"),
        (
            lambda: fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.1)), uplink=lossy()),
            "keeps state at each client",
        ),
        (
            lambda: fc.compose(
                fc.algorithms.fedavg(task(), optax.sgd(0.1), weighting=fc.algorithms.uniform),
                aggregator=fc.aggregators.trimmed_mean(0.1),
            ),
            "of parts does not add",
        ),
    ],
)
def test_what_has_no_meaning_without_rounds_is_refused(population, build, said):
    with pytest.raises(ValueError, match=said):
        fc.AsynchronousSimulator(build(), population, fc.Buffer(2), **PLAN)


def test_a_buffer_that_never_fills_is_refused(population):
    with pytest.raises(ValueError, match="a buffer of 13 updates never fills"):
        fc.AsynchronousSimulator(averaging(), population, fc.Buffer(13), **PLAN)
    sim = fc.AsynchronousSimulator(averaging(), population, fc.Buffer(3), **PLAN)
    with pytest.raises(ValueError, match="version 0 can get only 2 updates and its buffer needs 3"):
        sim.run(sim.init(jax.random.key(0)), [0, 1])
    with pytest.raises(ValueError, match="client 1 is 2 times in the cohort"):
        sim.run(sim.init(jax.random.key(0)), fc.Cohort(np.arange(3), np.array([1, 2, 1])))
    with pytest.raises(ValueError, match=r"damping\(2\) is nan"):
        fc.Buffer(3, damping=lambda staleness: 1.0 if staleness < 2 else float("nan"))
