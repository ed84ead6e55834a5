import re

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.checks import at_least


@pytest.mark.parametrize("value", [-1, 1.0, True, np.bool_(True), "1", None])
def test_whole_numbers_only(value):
    with pytest.raises(ValueError, match=r"clients must be a whole number of at least 0, got"):
        at_least(0, rounds=3, clients=value)


@pytest.mark.parametrize("value", [2, np.int32(2), np.array(5)])
def test_any_kind_of_whole_number(value):
    at_least(2, clients=value)


X, Y = np.eye(4, 3, dtype=np.float32), np.zeros(4, np.float32)
CLIENTS = fc.Clients.from_list([{"x": X, "y": Y}, {"x": X, "y": Y}], features={"x": ["a", "b", "c"]})
TASK = fc.models.linear(features=3)
SGD, LOOPS = optax.sgd(0.1), fc.Loops


def fedavg(local=SGD, task=TASK, **more):
    return fc.algorithms.fedavg(task, local, **more)


def simulator(algorithm=None, **plan):
    return fc.Simulator(fc.compose(algorithm or fedavg()), CLIENTS, batch_size=2, **plan)


def trained(**more):
    return fc.fit(simulator(), rounds=1, cohorts=more.pop("cohorts", [[0, 1]]), progress=False, **more)


def masked():
    return fc.compose(fedavg(), uplink=fc.uplink.chain(fc.uplink.clip(0.5), fc.uplink.secure(bound=0.5)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fedavg(weighting=lambda: 1.0),
            r"weighting= must be a function (seen), and the one given takes ()",
        ),
        (
            lambda: fedavg(gradient=lambda x: x),
            "gradient= must be a function (task, params, batch, key), and the",
        ),
        (lambda: fedavg(lambda: SGD), "local= must be a function (round)"),
        (
            lambda: fc.algorithms.fedavg(TASK, lr=0.1),
            "fedavg(task, local, server, weighting, gradient): there is no argument 'lr'",
        ),
        (lambda: fc.algorithms.fedavg(TASK), "gradient): missing a required argument: 'local'"),
        (lambda: simulator(steps=lambda round: 1), "steps= must be a function (round, positions)"),
        (
            lambda: fc.compose(fedavg(task=TASK._replace(loss=lambda params, batch: 0.0))),
            "loss= must be a function (params, batch, key)",
        ),
        (lambda: trained(cohorts=lambda: [0]), "cohorts= must be a function (round)"),
        (
            lambda: trained(each_round=lambda round: 1),
            "each_round= must be a function (round, state, metrics)",
        ),
        (lambda: LOOPS(fc.compose(fedavg()), CLIENTS, batch_size=2, lanes=4), "there is no argument 'lanes'"),
        (lambda: simulator().init(np.random.default_rng(0)), "key= must be one typed key, such as"),
        (lambda: simulator().init(0), "key= must be one typed key, such as jax.random.key(0), got 0"),
        (
            lambda: fc.evaluate(TASK, TASK.init(jax.random.key(0)), {"x": X, "y": Y}),
            "clients= must be fc.Clients, got dict",
        ),
        (masked, "aggregator=fc.aggregators.total()"),
    ],
)
def test_what_is_given_in_the_place_of_something_else_is_named(call, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        call()


def test_features_in_another_order_are_not_evaluated():
    sim = simulator()
    state = sim.init(jax.random.key(0))
    shuffled = CLIENTS.arranged({"x": ["c", "a", "b"]})
    with pytest.raises(
        ValueError, match=r"in the order 'c', 'a', 'b', and the model was trained on 'a', 'b', 'c'"
    ):
        sim.evaluate(state, shuffled)
    with pytest.raises(ValueError, match="order"):
        trained(evaluate=shuffled, evaluate_every=1)
    right, same = sim.evaluate(state, CLIENTS), sim.evaluate(state, shuffled.arranged(CLIENTS.features))
    assert right.pooled == same.pooled
    other = fc.Clients.from_list([{"x": X, "y": Y}], features={"x": ["a", "b", "d"]})
    with pytest.raises(ValueError, match=r"of the clients to evaluate, column 'x' has no feature 'c'"):
        sim.evaluate(state, other)


def test_a_formula_s_error_has_no_colours_of_a_terminal():
    with pytest.raises(ValueError, match="is no formula") as error:
        fc.stats.glm("y ~ (a", fc.Clients.from_list([{"y": Y, "a": Y}]))
    assert "\x1b" not in str(error.value)
