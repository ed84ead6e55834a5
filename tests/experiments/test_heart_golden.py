"""The heart study's strategies follow the stored trajectories: as plain loops here, and through the engine.

The loops know nothing of the engine: if both agree with the stored weights, an error would have to be made three times.
"""

from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc

ROUNDS, STEPS, LR = 15, 100, 0.001


@pytest.fixture(scope="module")
def golden(data_dir):
    path = data_dir / "golden_fl" / "heart_seed42.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there: put a copy of the golden trajectories into it")
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import heart_disease

        yield heart_disease


def gradient(w, x, y):
    """Of the mean cross-entropy of a logistic model; w is [14], the intercept last."""
    error = 1 / (1 + np.exp(-(x @ w[:-1] + w[-1]))) - y
    return np.append(x.T @ error, error.sum()) / len(y)


def local_steps(golden, i, w, round, lr, extra=lambda w: 0.0):
    """Client i's hundred updates of one round, from w, in float64."""
    x, y = golden[f"x_train_{i}"].astype(float), golden[f"y_train_{i}"][:, 0].astype(float)
    for slots in golden["order"][i, round * STEPS : (round + 1) * STEPS]:
        rows = slots[slots >= 0]
        w = w - lr * (gradient(w, x[rows], y[rows]) + extra(w))
    return w


def shares(golden):
    sizes = np.array([len(golden[f"y_train_{i}"]) for i in range(4)], float)
    return sizes / sizes.sum()


def averaging(golden, lr=LR, mu=0.0, server=lambda d: d):
    w, path = golden["init"].astype(float), []
    for r in range(ROUNDS):
        ends = [local_steps(golden, i, w, r, lr, lambda y, w=w: mu * (y - w)) for i in range(4)]
        w = w + server(sum(share * (end - w) for share, end in zip(shares(golden), ends, strict=True)))
        path.append(w)
    return path


def adaptive(lr, second, b1=0.9, tau=1e-8):
    state = {"m": np.zeros(14), "v": np.zeros(14)}

    def server(d):
        state["m"] = b1 * state["m"] + (1 - b1) * d
        state["v"] = second(state["v"], d**2)
        return lr * state["m"] / (np.sqrt(state["v"]) + tau)

    return server


def corrected(golden):
    """SCAFFOLD as the benchmark writes it: the correction catches up, at the start of a round, with where the client ended before."""
    w, path = golden["init"].astype(float), []
    corrections, ends = [np.zeros(14)] * 4, [w] * 4
    for r in range(ROUNDS):
        corrections = [c + (w - end) / (LR * STEPS) for c, end in zip(corrections, ends, strict=True)]
        ends = [local_steps(golden, i, w, r, LR, lambda _, c=corrections[i]: -c) for i in range(4)]
        w = sum(share * end for share, end in zip(shares(golden), ends, strict=True))
        path.append(w)
    return path


LOOPS = {
    "FedAvg": averaging,
    "FedProx": lambda golden: averaging(golden, mu=0.01),
    "Scaffold": corrected,
    "FedAdam": lambda golden: averaging(golden, lr=0.01, server=adaptive(0.01, lambda v, s: 0.999 * v + 0.001 * s)),
    "FedYogi": lambda golden: averaging(golden, lr=0.003162, server=adaptive(0.01, lambda v, s: v - 0.001 * s * np.sign(v - s))),
    "FedAdagrad": lambda golden: averaging(golden, lr=0.003162, server=adaptive(0.316228, lambda v, s: v + s)),
}


@pytest.mark.parametrize("strategy", LOOPS)
def test_plain_loops_follow_the_stored_weights(golden, strategy):
    path = np.stack([golden["init"], *LOOPS[strategy](golden)])
    np.testing.assert_allclose(path, golden[f"traj_{strategy}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", LOOPS)
def test_the_engine_follows_the_stored_weights(golden, study, strategy):
    columns = [{"x": golden[f"x_train_{i}"], "y": golden[f"y_train_{i}"][:, 0].astype(np.int32)} for i in range(4)]
    algorithm = study.strategies(fc.models.logistic(features=13, classes=1))[strategy]
    sim = fc.Simulator(fc.compose(algorithm), fc.Clients.from_list(columns), batch_size=4, steps=STEPS, order=golden["order"])
    state = sim.init(jax.random.key(0), params=study.unflat(golden["init"]))
    for expected in golden[f"traj_{strategy}"][1:]:
        state, _ = sim.run(state, np.arange(4))
        np.testing.assert_allclose(study.flat(state.params), expected, rtol=0, atol=1e-5)


def test_replay_fails_where_a_weight_is_off(golden, study, tmp_path, capsys, monkeypatch):
    every = study.strategies
    monkeypatch.setattr(study, "strategies", lambda task: {"FedProx": every(task)["FedProx"]})
    short = {name: value for name, value in golden.items() if not name.startswith("traj_")}
    short |= {name: value[:3] for name, value in golden.items() if name.startswith("traj_")}
    np.savez(tmp_path / "good.npz", **short)
    assert study.replay(tmp_path / "good.npz") == 0
    short["traj_FedProx"] = short["traj_FedProx"] + np.float32(2e-5)
    np.savez(tmp_path / "bad.npz", **short)
    assert study.replay(tmp_path / "bad.npz") == 1
    assert "NOT within" in capsys.readouterr().out


def test_one_full_batch_step_is_gradient_descent_on_the_union(golden, study):
    columns = [{"x": golden[f"x_train_{i}"], "y": golden[f"y_train_{i}"][:, 0].astype(np.int32)} for i in range(4)]
    averaging = fc.compose(fc.algorithms.fedavg(fc.models.logistic(features=13, classes=1), local=optax.sgd(0.5)))
    sim = fc.Simulator(averaging, fc.Clients.from_list(columns), batch_size=199, epochs=1)
    state, _ = sim.run_many(sim.init(jax.random.key(0), params=study.unflat(golden["init"])), [np.arange(4)] * 20)
    x, y = (np.concatenate([golden[f"{name}_train_{i}"] for i in range(4)]).astype(float) for name in "xy")
    w = golden["init"].astype(float)
    for _ in range(20):
        w = w - 0.5 * gradient(w, x, y[:, 0])
    np.testing.assert_allclose(study.flat(state.params), w, rtol=0, atol=1e-6)


def test_published_draws_are_the_stored_ones(golden, study):
    np.testing.assert_array_equal(study.flamby_draws.first_weights(42, 13), golden["init"])
    order = study.flamby_draws.federated_orders(42, [199, 172, 30, 85], updates=ROUNDS * STEPS, steps=STEPS, batch_size=4)
    np.testing.assert_array_equal(order, golden["order"])
