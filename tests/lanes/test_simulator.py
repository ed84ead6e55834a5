import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_core import Clients, Simulator, Task, algorithms, cohorts, compose, models
from fedjax_core.lanes import memory
from tests.quadratic import CLIENTS, TASK
from tests.zoo import clients

COMPOSED = compose(algorithms.fedavg(TASK, optax.sgd(0.1)))


def simulator(**settings):
    return Simulator(COMPOSED, CLIENTS, **{"batch_size": 2, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"epochs": 1, "steps": 1}, "give epochs or steps, not both"),
        ({"lanes": 0}, 'lanes must be "auto" or a whole number of at least 1, got 0'),
        ({"lanes": "many"}, "lanes must be .* got 'many'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        simulator(**settings)


def test_pieces_are_checked():
    with pytest.raises(
        TypeError, match=r"needs a Round, got Algorithm: make one with fc.compose\(algorithm\)"
    ):
        Simulator(algorithms.fedavg(TASK, optax.sgd(0.1)), CLIENTS, batch_size=1)
    with pytest.raises(TypeError, match=r"needs Clients, got list: make them with fc.Clients.from_list"):
        Simulator(COMPOSED, [{"x": np.ones(3)}], batch_size=1)
    with pytest.raises(ValueError, match="mesh must have one axis, for lanes, or a second one"):
        simulator(mesh=jax.make_mesh((2, 2, 2), ("lanes", "model", "more")))


def test_a_loss_that_is_a_scalar_is_refused():
    task = Task(lambda key: jnp.zeros(1), lambda w, batch, key: jnp.mean(jnp.square(batch["x"] - w[0])))
    with pytest.raises(
        ValueError,
        match=r"one floating number an example, shape \(2,\) here, but returned shape \(\).*before any .mean",
    ):
        Simulator(compose(algorithms.fedavg(task, optax.sgd(0.1))), CLIENTS, batch_size=2)


def test_labels_out_of_range_are_refused():
    data = Clients.from_list([{"x": np.ones((2, 3), np.float32), "y": np.array([0, 3])}])
    with pytest.raises(ValueError, match=r"3"):
        Simulator(
            compose(algorithms.fedavg(models.logistic(features=3, classes=3), optax.sgd(0.1))),
            data,
            batch_size=2,
        )


@pytest.mark.parametrize(
    ("cohort", "error", "message"),
    [
        ([0, 3], ValueError, "the cohort names client 3, but the population is clients 0 to 2"),
        ([-1], ValueError, "the cohort names client -1"),
        ([1, 1], ValueError, "client 1 more than once"),
        ([0.0, 1.0], TypeError, "array of integers"),
        ([True, False, True], TypeError, "np.flatnonzero"),
    ],
)
def test_cohorts_are_checked(cohort, error, message):
    sim = simulator()
    with pytest.raises(error, match=message):
        sim.run(sim.init(jax.random.key(0)), cohort)


def test_no_cohorts_is_an_error():
    sim = simulator()
    with pytest.raises(ValueError, match="at least one cohort, got none"):
        sim.run_many(sim.init(jax.random.key(0)), [])


def test_whole_numbers_that_do_not_fit_are_refused():
    data = Clients.from_list([{"x": np.array([1, 2**40])}])
    with pytest.raises(
        ValueError,
        match=r"column 'x' holds a whole number that does not fit 32 bits at client 0 \(id 0\), its row 1",
    ):
        Simulator(COMPOSED, data, batch_size=2)


def test_cohorts_of_any_size_run_the_reserved_program():
    sampler = cohorts.poisson(12, rate=0.4, seed=1)
    sim = Simulator(
        compose(algorithms.fedavg(models.logistic(features=3, classes=3), optax.sgd(0.1))),
        clients(),
        batch_size=4,
    )
    sim.reserve(sampler.max_size)
    state = sim.init(jax.random.key(0))
    sizes = set()
    for round in range(12):
        state, seen = sim.run(state, sampler(round))
        sizes.add(float(seen["clients"]))
    assert len(sizes) > 3 and sim.traces == 1


def test_a_cohort_that_outgrows_its_room_says_so(caplog):
    sim = simulator()
    state, _ = sim.run(sim.init(jax.random.key(0)), [0])
    with caplog.at_level(logging.WARNING, "fedjax_core"):
        sim.run(state, [0, 1, 2])
    assert "a cohort of 3 clients outgrows the 1" in caplog.text and "reserve(3)" in caplog.text
    assert sim.traces == 2


def test_an_empty_cohort_is_a_round_that_changes_nothing():
    sim = simulator()
    before = sim.init(jax.random.key(0))
    after, seen = sim.run(before, [])
    assert (
        float(after.params[0]) == float(before.params[0])
        and int(after.round) == 1
        and float(seen["clients"]) == 0
    )


def test_the_round_of_any_state_is_known():
    """Going back to an older state repeats what it did, though the simulator has since gone on."""
    sim = simulator(batch_size=1)
    start = sim.init(jax.random.key(0))
    one, _ = sim.run(start, [0, 2])
    two, _ = sim.run(one, [0, 2])
    again, _ = sim.run(one, [0, 2])
    assert float(again.params[0]) == float(two.params[0])
    assert int(sim.run(start, [1])[0].round) == 1


def test_a_state_is_not_consumed():
    sim = simulator()
    state = sim.init(jax.random.key(0))
    sim.run(state, [0])
    assert np.isfinite(float(state.params[0]))


def test_a_donated_state_is_used_up_and_what_it_was_made_from_is_not():
    sim = Simulator(
        compose(algorithms.fedavg(models.logistic(features=3, classes=3), optax.sgd(0.1))),
        clients(),
        batch_size=4,
        lanes=2,
    )
    key, params = jax.random.key(0), {"w": jnp.ones((3, 3)), "b": jnp.zeros(3)}
    kept, _ = sim.run(sim.init(key, params), [0, 3])
    state = sim.init(key, params)
    after, _ = sim.run(state, [0, 3], donate=True)
    assert (
        state.params["w"].is_deleted()
        and not params["w"].is_deleted()
        and not jax.random.key_data(key).is_deleted()
    )
    assert all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(after.params), jax.tree.leaves(kept.params), strict=True)
    )
    with pytest.raises(
        ValueError,
        match=r"this state was used up by run\(..., donate=True\): go on from the state that run gave back",
    ):
        sim.run(state, [0, 3])


def test_a_number_is_no_key():
    for seed, said in ((0, "0"), (jax.random.PRNGKey(0), r"Array\(\[0, 0\], dtype=uint32\)")):
        with pytest.raises(
            TypeError, match=rf"key= must be one typed key, such as jax\.random\.key\(0\), got {said}"
        ):
            simulator(lanes=1).init(seed)


def test_a_gradient_through_a_round_is_refused_with_the_way_to_have_it():
    sim = simulator(lanes=1)

    def loss(scale):
        state, _ = sim.run(
            sim.init(jax.random.key(0), jax.tree.map(lambda x: x * scale, TASK.init(jax.random.key(0)))), [0]
        )
        return sum(jnp.sum(x) for x in jax.tree.leaves(state.params))

    for wanted in (jax.grad(loss), jax.jit(loss)):
        with pytest.raises(
            TypeError, match=r"cannot be part of another or have its gradient taken.* through fc\.Loops"
        ):
            wanted(1.0)


def test_a_run_that_cannot_fit_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(memory, "device_bytes", lambda: 2000)
    sim = Simulator(
        compose(algorithms.scaffold(models.mlp(features=3, hidden=(4,), classes=3), 0.1, 12)),
        clients(),
        batch_size=4,
        lanes=3,
    )
    with pytest.raises(
        ValueError,
        match=r"(?s)needs at least .* MB on each device.*Most of it is state: client_state=.host. keeps the rows",
    ):
        sim.run(sim.init(jax.random.key(0)), [0, 1])


def test_the_plan_counts_what_is_there():
    sim = Simulator(
        compose(algorithms.scaffold(models.mlp(features=3, hidden=(4,), classes=3), 0.1, 12)),
        clients(),
        batch_size=4,
        lanes=3,
    )
    plan = sim.plan(9)
    state = sim.init(jax.random.key(0))
    held = jax.tree.leaves(state._replace(key=()))
    assert plan.state == sum(x.nbytes for x in held)
    assert plan.data == sum(x.nbytes for x in jax.tree.leaves(clients().columns)) and plan.lanes == 3
    # the model and the control variate
    assert plan.carries == 3 * 2 * sum(x.nbytes for x in jax.tree.leaves(state.params))
    assert 0.3 < plan.fill <= 1 and "lanes of" in str(plan)
    with pytest.raises(ValueError, match="cohort_size must be from 1 to 12"):
        sim.plan(13)


def test_a_balanced_population_fills_its_lanes():
    data = clients(sizes=(8,) * 12)
    sim = Simulator(
        compose(algorithms.fedavg(models.logistic(features=3, classes=3), optax.sgd(0.1))),
        data,
        batch_size=4,
        lanes=4,
    )
    assert sim.plan(12).fill == 1.0
