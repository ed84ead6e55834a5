"""FLamby's TCGA-BRCA strategies follow the stored weights for two rounds, as plain loops and through the
engine.

Steps of 0.1 on ages in years make later rounds depend on the last digits of earlier ones.
"""

from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from tests.experiments.golden import STEPS, adagrad, adam, averaging, corrected, read, study_of, yogi

ROUNDS, SITES, FEATURES, BATCH = 2, 6, 39, 8


@pytest.fixture(scope="module")
def golden(data_dir):
    return read(data_dir / "golden_fl" / "tcga_seed42.npz", SITES)


def gradient(w, x, y):
    """Of the mean Cox loss; w is [40], the intercept last, and y [n, 2] event and time.

    The benchmark sorts by time, latest first and the tied in their order: at risk with one are it and those
    before it."""
    latest = np.argsort(-y[:, 1], kind="stable")
    x, event = x[latest], y[latest, 0]
    scores, by_score = x @ w[:-1] + w[-1], np.zeros(len(x))
    for i in np.flatnonzero(event):
        risk = np.exp(scores[: i + 1] - scores[: i + 1].max())
        by_score[: i + 1] += risk / risk.sum()
        by_score[i] -= 1
    return np.append(x.T @ by_score, by_score.sum()) / len(x)


LOOPS = {
    "FedAvg": lambda *given: averaging(*given, lr=0.1),
    "FedProx": lambda *given: averaging(*given, lr=0.1, mu=0.1),
    "Scaffold": lambda *given: corrected(*given, lr=0.01),
    "FedAdam": lambda *given: averaging(*given, lr=0.01, server=adam(0.1)),
    "FedYogi": lambda *given: averaging(*given, lr=0.01, server=yogi(0.1)),
    "FedAdagrad": lambda *given: averaging(*given, lr=0.01, server=adagrad(1.0)),
}


def strategies(task):
    """The same with the engine's own pieces."""
    fedavg, fedopt, sgd = fc.algorithms.fedavg, fc.algorithms.fedopt, optax.sgd
    return {
        "FedAvg": fedavg(task, local=sgd(0.1)),
        "FedProx": fc.algorithms.fedprox(task, mu=0.1, local=sgd(0.1)),
        "Scaffold": fc.algorithms.scaffold(
            task, lr=0.01, population=SITES, weighting=fc.algorithms.by_examples
        ),
        "FedAdam": fedavg(task, local=sgd(0.01), server=fedopt.adam(0.1)),
        "FedYogi": fedavg(task, local=sgd(0.01), server=fedopt.yogi(0.1)),
        "FedAdagrad": fedavg(task, local=sgd(0.01), server=fedopt.adagrad(1.0)),
    }


def assert_close(got, expected):
    """The 39 weights to 1e-4 of their norm.

    The intercept cancels in the loss: rounding alone moves it, which an adaptive server makes large.
    """
    got, expected = np.asarray(got)[..., :FEATURES], np.asarray(expected)[..., :FEATURES]
    assert (np.linalg.norm(got - expected, axis=-1) <= 1e-4 * np.linalg.norm(expected, axis=-1)).all()


@pytest.mark.parametrize("strategy", LOOPS)
def test_plain_loops_follow_the_stored_weights(golden, strategy):
    path = LOOPS[strategy](study_of(golden, SITES, gradient), golden[f"order_{strategy}"], ROUNDS)
    assert_close(path, golden[f"traj_{strategy}"][1 : ROUNDS + 1])


@pytest.mark.parametrize("strategy", LOOPS)
def test_the_engine_follows_the_stored_weights(golden, strategy):
    columns = [
        {
            "x": golden[f"x_train_{i}"],
            "event": golden[f"y_train_{i}"][:, 0],
            "time": golden[f"y_train_{i}"][:, 1],
        }
        for i in range(SITES)
    ]
    composed, order = fc.compose(strategies(fc.models.cox(FEATURES))[strategy]), golden[f"order_{strategy}"]
    sim = fc.Simulator(composed, fc.Clients.from_list(columns), batch_size=BATCH, steps=STEPS, order=order)
    state = sim.init(
        jax.random.key(0), params={"w": golden["init"][:FEATURES], "b": golden["init"][FEATURES]}
    )
    for expected in golden[f"traj_{strategy}"][1 : ROUNDS + 1]:
        state, _ = sim.run(state, np.arange(SITES))
        assert_close(state.params["w"], expected)


def test_the_orders_of_the_published_runs_come_of_their_seed(golden):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import flamby_draws
    sizes = [len(golden[f"x_train_{i}"]) for i in range(SITES)]
    np.testing.assert_allclose(flamby_draws.first_weights(42, FEATURES), golden["init"], atol=2e-8)
    orders = flamby_draws.survival_orders(42, sizes, rounds=5, steps=STEPS, batch_size=BATCH, epochs=30)
    for strategy in LOOPS:
        np.testing.assert_array_equal(orders[strategy][0], golden[f"order_{strategy}"])
    # so that the model that is published is the first one, untrained
    assert orders["Cyclic"][1] == [
        0,
        1,
        1,
        1,
        1,
        1,
    ]
