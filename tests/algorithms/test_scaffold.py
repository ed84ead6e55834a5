import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core import algorithms
from fedjax_core.sites.site_file import SiteFile
from tests.quadratic import CLIENTS, MEANS, START, TASK, simulate


@pytest.mark.proves("scaffold", by="independent implementation: the paper's rounds in NumPy")
def test_rounds_of_the_paper_worked_by_hand():
    """Two rounds, first with clients 0 and 1, then all: option II of algorithm 1, reports counting alike."""
    x, c, own, lr, T = START, 0.0, np.zeros(3), 0.1, 2
    for cohort in ([0, 1], [0, 1, 2]):
        moved, control = [], []
        for i in cohort:
            y = x
            for _ in range(T):
                y -= lr * ((y - MEANS[i]) + c - own[i])
            new = own[i] - c + (x - y) / (T * lr)
            moved.append(y - x)
            control.append(new - own[i])
            own[i] = new
        x += np.mean(moved)
        c += len(cohort) / 3 * np.mean(control)

    from fedjax_core import Simulator, compose
    from tests.quadratic import CLIENTS

    sim = Simulator(compose(algorithms.scaffold(TASK, lr=0.1, population=3)), CLIENTS, batch_size=3, epochs=2)
    import jax

    state = sim.init(jax.random.key(0))
    for cohort in ([0, 1], [0, 1, 2]):
        state, _ = sim.run(state, cohort)
    assert float(state.params[0]) == pytest.approx(x, abs=1e-6)
    assert float(state.server.control[0]) == pytest.approx(c, abs=1e-5)
    assert np.asarray(state.clients.own)[:, 0] == pytest.approx(own, abs=1e-5)


def test_it_removes_the_drift_that_fedavg_keeps():
    """Clients of unequal steepness: FedAvg's fixed point is not the optimum when clients take several steps,
    SCAFFOLD's is."""
    import jax
    import jax.numpy as jnp
    import optax

    from fedjax_core import Clients, Simulator, Task, compose

    task = Task(
        lambda key: jnp.zeros(1), lambda w, batch, key: 0.5 * batch["a"] * jnp.square(batch["x"] - w[0])
    )
    steep, target = np.array([1.0, 5.0]), np.array([0.0, 1.0])
    data = Clients.from_list(
        [
            {"a": np.full(1, a, np.float32), "x": np.full(1, t, np.float32)}
            for a, t in zip(steep, target, strict=True)
        ]
    )
    optimum = (steep * target).sum() / steep.sum()
    ends = {}
    for name, algorithm in {
        "fedavg": algorithms.fedavg(task, optax.sgd(0.1)),
        "scaffold": algorithms.scaffold(task, lr=0.1, population=2),
    }.items():
        sim = Simulator(compose(algorithm), data, batch_size=1, epochs=10)
        state, _ = sim.run_many(sim.init(jax.random.key(0)), [[0, 1]] * 200)
        ends[name] = float(state.params[0])
    assert ends["scaffold"] == pytest.approx(optimum, abs=1e-4)
    assert abs(ends["fedavg"] - optimum) > 0.1


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"population >= 1 and lr > 0 .* got population=0, lr=0.1"):
        algorithms.scaffold(TASK, lr=0.1, population=0)


def test_a_round_is_exact_from_the_stored_controls():
    """At the optimum of every client's corrected problem nothing moves: controls equal to the local gradients
    hold the model still."""
    state = simulate(algorithms.scaffold(TASK, lr=0.1, population=3), rounds=80, epochs=5)
    assert float(state.params[0]) == pytest.approx(MEANS.mean(), abs=1e-4)


def test_another_number_of_clients_than_it_was_made_for_is_refused():
    for population in (2, 4):
        with pytest.raises(
            ValueError,
            match=f"made with population={population}, and there are 3 clients.*Make it with population=3",
        ):
            fc.Simulator(
                fc.compose(algorithms.scaffold(TASK, lr=0.1, population=population)), CLIENTS, batch_size=3
            )
    sites = [SiteFile(name=name, data=CLIENTS[i]) for i, name in enumerate("ab")]
    with pytest.raises(ValueError, match="made with population=3, and there are 2 sites"):
        fc.Federation(
            fc.compose(algorithms.scaffold(TASK, lr=0.1, population=3)),
            sites,
            batch_size=3,
            transport="in-process",
        )
