"""Many runs in one program are the same runs one by one."""

from functools import cache

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import algorithms, compose, models, uplink
from tests.contracts import assert_norm
from tests.zoo import SIZES, clients, lossy

COHORTS = [np.random.default_rng(r).permutation(len(SIZES))[:7] for r in range(3)]
SETTINGS = {"batch_size": 4, "epochs": 2, "lanes": 3}
TASK = models.logistic(features=3, classes=3)


def build_prox(lr, mu, server_lr):
    return compose(algorithms.fedprox(TASK, mu, optax.sgd(lr, momentum=0.5), server=optax.sgd(server_lr)))


def build_scaffold(lr, seed):
    return compose(algorithms.scaffold(TASK, lr, len(SIZES)))


def build_lossy(lr, bound, tau):
    server = algorithms.fedopt.yogi(lr, tau=tau)
    return compose(
        algorithms.fedavg(TASK, optax.sgd(lr), server), uplink=uplink.chain(uplink.clip(bound), lossy())
    )


BUILDS = {
    "fedprox": (build_prox, {"lr": [0.01, 0.1], "mu": [0, 1], "server_lr": [1, 0.5]}),
    "scaffold": (build_scaffold, {"lr": [0.1, 0.1], "seed": range(2)}),
    "lossy": (build_lossy, {"lr": [0.1, 0.2], "bound": [0.05, 10.0], "tau": [1e-3, 1e-2]}),
}
KEYS = {
    "fedprox": jax.random.key(1),
    "scaffold": jax.random.split(jax.random.key(1), 2),
    "lossy": jax.random.key(1),
}


def new_sweep(name, **settings):
    build, points = BUILDS[name]
    return fc.Sweep(build, points, clients(), **{**SETTINGS, **settings})


@cache
def swept(name):
    """(the sweep, its state after three rounds, their metrics)."""
    sweep = new_sweep(name)
    return (sweep, *sweep.run_many(sweep.init(KEYS[name]), COHORTS))


@cache
def alone(name, j):
    """The same of a simulator of run j only."""
    sim = fc.Simulator(BUILDS[name][0](**swept(name)[0].point(j)), clients(), **SETTINGS)
    return (sim, *sim.run_many(sim.init(KEYS[name].reshape(-1)[min(j, KEYS[name].size - 1)]), COHORTS))


def assert_close(got, expected):
    assert_norm(got.params, expected.params, 1e-6)
    for part in ("server", "uplink", "clients", "round"):
        assert_norm(getattr(got, part), getattr(expected, part), 2e-5)
    assert got.key == expected.key


@pytest.mark.parametrize("j", [0, 1])
@pytest.mark.parametrize("name", BUILDS)
def test_every_run_is_as_by_itself(name, j):
    sweep, state, seen = swept(name)
    _, expected, metrics = alone(name, j)
    assert_close(sweep.result(state, j), expected)
    assert seen["loss"].value.shape == seen["examples"].value.shape == (3, 2)
    for metric in metrics:
        np.testing.assert_allclose(seen[metric].value[:, j], metrics[metric].value, rtol=1e-5)


def test_all_points_and_rounds_are_one_program():
    sweep = new_sweep("fedprox")
    state = sweep.init(KEYS["fedprox"])
    for cohort in COHORTS:
        state, seen = sweep.run(state, cohort)
    assert sweep.traces == 1
    assert seen["loss"].value.shape == (2,)
    for j in range(2):
        assert_close(sweep.result(state, j), alone("fedprox", j)[1])


def test_on_eight_devices():
    sweep = new_sweep("scaffold", lanes=8, mesh=jax.make_mesh((8,), ("lanes",)))
    state, _ = sweep.run_many(sweep.init(KEYS["scaffold"]), COHORTS)
    for j in range(2):
        assert_close(sweep.result(state, j), alone("scaffold", j)[1])


def test_a_run_that_diverges_harms_only_itself():
    points = {"lr": [1e38, 0.1], "seed": [0, 0]}
    sweep = fc.Sweep(build_scaffold, points, clients(), **SETTINGS)
    state, seen = sweep.run_many(sweep.init(KEYS["scaffold"]), COHORTS)
    refused = seen["refused"].value
    assert (refused[:, 0] > 0).any() and refused[:, 1].tolist() == [0, 0, 0]
    assert np.isfinite(state.params["w"]).all()
    assert_close(sweep.result(state, 1), alone("scaffold", 1)[1])


def test_a_result_goes_on_by_itself():
    sweep, end, _ = swept("lossy")
    middle, _ = sweep.run_many(sweep.init(KEYS["lossy"]), COHORTS[:1])
    sim, _, _ = alone("lossy", 1)
    went_on, _ = sim.run_many(sweep.result(middle, -1), COHORTS[1:])
    assert_close(went_on, sweep.result(end, 1))


def test_the_plan_counts_every_run():
    one, two = (
        fc.Sweep(build_scaffold, {"lr": [0.1] * n, "seed": range(n)}, clients(), **SETTINGS).plan(7)
        for n in (1, 2)
    )
    # 4: the number of the round is that of all
    assert (two.state - 4, two.carries) == (
        2 * (one.state - 4),
        2 * one.carries,
    )
    assert two.data == one.data and two.schedule == one.schedule


def test_what_clients_keep_may_lie_on_the_host():
    sweep = new_sweep("scaffold", client_state="host")
    state, _ = sweep.run_many(sweep.init(KEYS["scaffold"]), COHORTS, donate=True)
    assert_close(sweep.result(state, 1), alone("scaffold", 1)[1])


def sweep_of(build, points):
    return fc.Sweep(build, points, clients(), batch_size=4)


def test_points_that_cannot_be_are_refused_with_their_number():
    with pytest.raises(ValueError, match="mu must be at least 0, got -2"):
        sweep_of(build_prox, {"lr": [0.1, 0.1], "mu": [0.5, -2], "server_lr": [1, 1]})
    with pytest.raises(ValueError, match=r"equally many numbers each, .*'lr': \(2,\), 'mu': \(1,\)"):
        sweep_of(build_prox, {"lr": [0.1, 0.1], "mu": [0.5]})
    with pytest.raises(ValueError, match=r"at least one, got shapes \{\}"):
        sweep_of(build_prox, {})
    with pytest.raises(TypeError, match=r"only numbers can be swept, but 'mu' has \['a'\]"):
        sweep_of(build_prox, {"lr": [0.1], "mu": ["a"]})


def test_what_decides_the_program_cannot_be_swept():
    with pytest.raises(ValueError, match=r"build\(\) reads a number of \['bits'\] as it builds"):
        sweep_of(
            lambda bits: compose(
                algorithms.fedavg(TASK, optax.sgd(0.1)), uplink=uplink.quantize(bits=int(bits))
            ),
            {"bits": [4, 8]},
        )
    with pytest.raises(TypeError, match="a sweep's build must return a Round, got Algorithm"):
        sweep_of(lambda lr: algorithms.fedavg(TASK, optax.sgd(lr)), {"lr": [0.1]})


def test_as_many_keys_as_runs():
    with pytest.raises(ValueError, match=r"a sweep of 2 runs begins from one key, .* got keys of \(3,\)"):
        sweep_of(build_scaffold, {"lr": [0.1, 0.1], "seed": [0, 1]}).init(
            jax.random.split(jax.random.key(0), 3)
        )
