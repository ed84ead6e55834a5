"""The heart study's strategies follow the stored trajectories: as plain loops (`golden.py`), and through the
engine."""

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from tests.experiments.golden import (
    STEPS,
    adagrad,
    adam,
    averaging,
    corrected,
    heart_disease,
    read,
    study_of,
    yogi,
)

ROUNDS, SITES, LR = 15, 4, 0.001

__all__ = ["heart_disease"]


@pytest.fixture(scope="module")
def golden(data_dir):
    return read(data_dir / "golden_fl" / "heart_seed42.npz", SITES)


def gradient(w, x, y):
    """Of the mean cross-entropy of a logistic model; w is [14], the intercept last."""
    error = 1 / (1 + np.exp(-(x @ w[:-1] + w[-1]))) - y[:, 0]
    return np.append(x.T @ error, error.sum()) / len(y)


LOOPS = {
    "FedAvg": lambda *given: averaging(*given, lr=LR),
    "FedProx": lambda *given: averaging(*given, lr=LR, mu=0.01),
    "Scaffold": lambda *given: corrected(*given, lr=LR),
    "FedAdam": lambda *given: averaging(*given, lr=0.01, server=adam(0.01)),
    "FedYogi": lambda *given: averaging(*given, lr=0.003162, server=yogi(0.01)),
    "FedAdagrad": lambda *given: averaging(*given, lr=0.003162, server=adagrad(0.316228)),
}


@pytest.mark.parametrize("strategy", LOOPS)
def test_plain_loops_follow_the_stored_weights(golden, strategy):
    path = np.stack(
        [golden["init"], *LOOPS[strategy](study_of(golden, SITES, gradient), golden["order"], ROUNDS)]
    )
    np.testing.assert_allclose(path, golden[f"traj_{strategy}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", LOOPS)
def test_the_engine_follows_the_stored_weights(golden, heart_disease, strategy):
    columns = [
        {"x": golden[f"x_train_{i}"], "y": golden[f"y_train_{i}"][:, 0].astype(np.int32)}
        for i in range(SITES)
    ]
    algorithm = heart_disease.strategies(fc.models.logistic(features=13, classes=1))[strategy]
    sim = fc.Simulator(
        fc.compose(algorithm), fc.Clients.from_list(columns), batch_size=4, steps=STEPS, order=golden["order"]
    )
    state = sim.init(jax.random.key(0), params=heart_disease.unflat(golden["init"]))
    for expected in golden[f"traj_{strategy}"][1:]:
        state, _ = sim.run(state, np.arange(SITES))
        np.testing.assert_allclose(heart_disease.flat(state.params), expected, rtol=0, atol=1e-5)


def test_replay_fails_where_a_weight_is_off(golden, heart_disease, tmp_path, capsys, monkeypatch):
    every = heart_disease.strategies
    monkeypatch.setattr(heart_disease, "strategies", lambda task: {"FedProx": every(task)["FedProx"]})
    short = {name: value for name, value in golden.items() if not name.startswith("traj_")}
    short |= {name: value[:3] for name, value in golden.items() if name.startswith("traj_")}
    np.savez(tmp_path / "good.npz", **short)
    assert heart_disease.replay(tmp_path / "good.npz") == 0
    short["traj_FedProx"] = short["traj_FedProx"] + np.float32(2e-5)
    np.savez(tmp_path / "bad.npz", **short)
    assert heart_disease.replay(tmp_path / "bad.npz") == 1
    assert "NOT within" in capsys.readouterr().out


def test_one_full_batch_step_is_gradient_descent_on_the_union(golden, heart_disease):
    columns = [
        {"x": golden[f"x_train_{i}"], "y": golden[f"y_train_{i}"][:, 0].astype(np.int32)}
        for i in range(SITES)
    ]
    composed = fc.compose(
        fc.algorithms.fedavg(fc.models.logistic(features=13, classes=1), local=optax.sgd(0.5))
    )
    sim = fc.Simulator(composed, fc.Clients.from_list(columns), batch_size=199, epochs=1)
    state, _ = sim.run_many(
        sim.init(jax.random.key(0), params=heart_disease.unflat(golden["init"])), [np.arange(SITES)] * 20
    )
    x, y = (
        np.concatenate([golden[f"{name}_train_{i}"] for i in range(SITES)]).astype(float) for name in "xy"
    )
    w = golden["init"].astype(float)
    for _ in range(20):
        w = w - 0.5 * gradient(w, x, y)
    np.testing.assert_allclose(heart_disease.flat(state.params), w, rtol=0, atol=1e-6)


def test_published_draws_are_the_stored_ones(golden, heart_disease):
    np.testing.assert_array_equal(heart_disease.flamby_draws.first_weights(42, 13), golden["init"])
    order = heart_disease.flamby_draws.federated_orders(
        42, [199, 172, 30, 85], updates=ROUNDS * STEPS, steps=STEPS, batch_size=4
    )
    np.testing.assert_array_equal(order, golden["order"])
