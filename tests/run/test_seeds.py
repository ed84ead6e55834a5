"""Who changes one seed of a run and means all is told so: five runs that differ in `key=` alone would be one
curve."""

import logging

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.run.seeds import warn_of_other_seeds
from tests.run import small

MLP = fc.models.mlp(features=3, hidden=(4,), classes=2)


def simulator(task=None, **settings):
    algorithm = fc.algorithms.fedavg(task or fc.models.logistic(features=3, classes=2), optax.sgd(0.1))
    return fc.Simulator(
        fc.compose(algorithm), small.clients(), **{"batch_size": 4, "epochs": 1, "lanes": 1, **settings}
    )


def said(caplog, key, task=None, cohorts=None, params=None, **settings):
    sim, cohorts = simulator(task, **settings), fc.cohorts.uniform(6, 3) if cohorts is None else cohorts
    with caplog.at_level(logging.WARNING, "fedjax_core"):
        warn_of_other_seeds(sim, cohorts, jax.random.key(key), params)
    return caplog.text


def test_a_key_that_draws_nothing_is_said_with_the_seeds_that_draw(caplog):
    text = said(caplog, 1)
    assert (
        "the order of examples goes by Simulator(seed=0), and cohorts go by uniform(seed=0)" in text
        and "change each seed=" in text
    )


def test_without_cohorts_that_are_drawn_the_shuffles_are_named(caplog):
    assert "Simulator(seed=0). Runs" in said(caplog, 1, cohorts=fc.cohorts.everyone(6))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (0, {}),
        (1, {"seed": 1}),
        (1, {"cohorts": fc.cohorts.uniform(6, 3, seed=1)}),
        (1, {"task": MLP}),  # whose first parameters are drawn by the key
    ],
)
def test_other_runs_are_left_in_peace(caplog, key, change):
    assert said(caplog, key, **change) == ""


def test_given_parameters_are_drawn_by_no_key(caplog):
    assert "change each seed=" in said(caplog, 1, task=MLP, params=MLP.init(jax.random.key(0)))


def test_runs_whose_keys_alone_differ_are_told_or_differ(caplog):
    ends = []
    for key in range(2):
        with caplog.at_level(logging.WARNING, "fedjax_core"):
            history = fc.fit(
                simulator(), 1, fc.cohorts.uniform(6, 3), key=jax.random.key(key), progress=False
            )
        ends.append(np.asarray(history.state.params["w"]))
    assert np.array_equal(*ends) and caplog.text.count("change each seed=") == 1
    other = fc.fit(simulator(seed=1), 1, fc.cohorts.uniform(6, 3, seed=1), progress=False)
    assert not np.array_equal(other.state.params["w"], ends[0])


def test_what_is_looked_at_is_short(tmp_path):
    sim = simulator(lanes="auto")
    history = fc.fit(simulator(), 2, fc.cohorts.everyone(6), progress=False)
    one = history.state
    shown = {repr(x) for x in (sim, sim.round, one, history, sim.plan_of_batches)}
    assert all(len(text) < 300 and "\n" not in text for text in shown)
    assert repr(history) == "History('finished' after 2 rounds, 2 records)"
    assert repr(one) == "State(round=2, a model of 8 numbers in 2 leaves)"
    shown = "6 clients with 26 examples, batch_size=4, epochs=1, seed=0, lanes=auto"
    assert repr(sim) == f"Simulator(Round(fedavg, uplink chain(), aggregator mean), {shown})"
