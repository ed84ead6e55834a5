"""Numbers that go by the rounds of the run, and what is said where a schedule does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.site_file import SiteFile

# The loss falls by w for each example: a step moves w by the learning rate.
TASK = fc.Task(lambda key: jnp.zeros(1), lambda w, batch, key: -batch["x"] @ w)
DATA = [{"x": np.ones((4, 1), np.float32)} for _ in range(2)]
CLIENTS = fc.Clients.from_list(DATA)
DECAY = optax.exponential_decay(0.1, transition_steps=1, decay_rate=0.5)


def steps(sim, cohorts=((0, 1), (0, 1), (0, 1))):
    state, found = sim.init(jax.random.key(0)), [0.0]
    for cohort in cohorts:
        state, _ = sim.run(state, np.array(cohort, int))
        found.append(float(jnp.ravel(state.params)[0]))
    return np.diff(found)


def simulator(algorithm, **settings):
    return fc.Simulator(fc.compose(algorithm), CLIENTS, batch_size=4, lanes=1, **settings)


def test_a_learning_rate_goes_by_rounds():
    assert np.allclose(
        steps(simulator(fc.algorithms.fedavg(TASK, lambda round: optax.sgd(0.1 * 0.5**round)))),
        [0.1, 0.05, 0.025],
    )
    assert np.allclose(
        steps(simulator(fc.algorithms.fedprox(TASK, 0.0, lambda round: optax.sgd(DECAY(round))))),
        [0.1, 0.05, 0.025],
    )


SCHEDULES = {
    "the server's step": (
        lambda: fc.algorithms.fedavg(TASK, optax.sgd(0.1), lambda round: optax.sgd(0.5**round)),
        [0.1, 0.05, 0.025],
    ),
    "an optax schedule": (lambda: fc.algorithms.scaffold(TASK, DECAY, 2), [0.1, 0.05, 0.025]),
    "by its name": (
        lambda: fc.algorithms.scaffold(TASK, population=2, server_lr=DECAY, lr=1.0),
        [0.1, 0.05, 0.025],
    ),
    "two of them": (
        lambda: fc.algorithms.mime(TASK, lambda round: optax.sgd(DECAY(round)), lambda round: 1.0 + round),
        [0.1, 0.1, 0.075],
    ),
    "the task": (
        lambda: fc.algorithms.fedavg(lambda round: scaled(0.5**round), optax.sgd(0.1)),
        [0.1, 0.05, 0.025],
    ),
    "a choice of several": (
        lambda: fc.algorithms.ifca(TASK, 1, lambda round: optax.sgd(DECAY(round))),
        [0.1, 0.05, 0.025],
    ),
}


def scaled(factor):
    return TASK._replace(loss=lambda w, batch, key: factor * TASK.loss(w, batch, key))


@pytest.mark.parametrize("name", SCHEDULES)
def test_so_does_any_number_that_is_a_function_of_the_round(name):
    algorithm, expected = SCHEDULES[name]
    assert np.allclose(steps(simulator(algorithm())), expected)


def test_a_pull_that_grows_by_rounds_is_that_of_a_plain_loop():
    task = fc.Task(lambda key: jnp.zeros(1), lambda w, batch, key: jnp.square(w[0] - batch["x"][:, 0]) / 2)
    algorithm = fc.algorithms.fedprox(task, optax.linear_schedule(0.0, 2.0, 2), optax.sgd(0.1))
    x, moved = 0.0, []
    for mu in (0.0, 1.0, 2.0):
        y = x
        for _ in range(3):
            y -= 0.1 * ((y - 1) + mu * (y - x))
        moved.append(y - x)
        x = y
    sim = fc.Simulator(fc.compose(algorithm), CLIENTS, batch_size=4, epochs=3, lanes=1)
    assert np.allclose(steps(sim), moved)


def test_any_number_of_any_algorithm_goes_by_rounds_and_at_sites():
    algorithm = fc.algorithms.by_round(lambda round: fc.algorithms.scaffold(TASK, DECAY(round), 2))
    sites = [SiteFile(name=name, data=columns) for name, columns in zip("ab", DATA, strict=True)]
    with fc.Federation(fc.compose(algorithm), sites, batch_size=4, transport="in-process") as fed:
        assert np.allclose(steps(fed), steps(simulator(algorithm)))


def test_an_empty_round_does_not_count():
    found = steps(
        simulator(fc.algorithms.fedavg(TASK, lambda round: optax.sgd(DECAY(round)))),
        cohorts=((0,), (), (0, 1)),
    )
    assert np.allclose(found, [0.1, 0.0, 0.05])


SCHEDULED = {
    "sgd": lambda: fc.algorithms.fedavg(TASK, optax.sgd(DECAY)),
    "a chain": lambda: fc.algorithms.fedavg(TASK, optax.chain(optax.clip(1.0), optax.adamw(DECAY))),
    "fedprox": lambda: fc.algorithms.fedprox(TASK, 0.1, optax.sgd(DECAY)),
    "ifca": lambda: fc.algorithms.ifca(TASK, 2, optax.sgd(DECAY)),
    "injected": lambda: fc.algorithms.fedavg(TASK, optax.inject_hyperparams(optax.sgd)(learning_rate=DECAY)),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_that_begins_anew_in_every_round_is_told(name, caplog):
    SCHEDULED[name]()
    assert [
        "begins anew at every client and in every round" in record.message for record in caplog.records
    ] == [True]


def test_nothing_is_told_where_there_is_none(caplog):
    fc.algorithms.fedavg(TASK, optax.adam(0.1), optax.sgd(DECAY))  # the server's counts rounds
    fc.algorithms.fedprox(TASK, 0.1, lambda round: optax.sgd(DECAY(round)))
    two = TASK._replace(init=lambda key: {"a": jnp.zeros(1), "b": jnp.zeros(1)})
    fc.algorithms.fedavg(
        two, optax.multi_transform({1: optax.sgd(0.1), 2: optax.set_to_zero()}, {"a": 1, "b": 2})
    )
    assert not caplog.records


def test_what_is_no_optimiser_is_refused():
    with pytest.raises(TypeError, match=r"local= must be an optax optimiser .*, got float 0.1"):
        fc.algorithms.fedavg(TASK, lambda round: 0.1)
    with pytest.raises(TypeError, match=r"server= must be an optax optimiser .*, got float 0.1"):
        fc.algorithms.fedavg(TASK, optax.sgd(0.1), lambda round: 0.1)
    with pytest.raises(TypeError, match="multiple values for argument 'task'"):
        fc.algorithms.fedavg(TASK, task=TASK, local=lambda round: optax.sgd(0.1))
    with pytest.raises(TypeError, match="by_round's build must return an Algorithm, got Task"):
        fc.algorithms.by_round(lambda round: TASK)


@pytest.mark.parametrize(
    "local",
    [
        optax.sgd,
        optax.adam,
        functools.partial(optax.sgd, momentum=0.9),
        lambda learning_rate: optax.sgd(learning_rate),
    ],
)
def test_an_optimiser_that_was_not_made_does_not_take_rounds_for_learning_rates(local):
    for build in (fc.algorithms.fedavg, lambda task, local: fc.algorithms.fedprox(task, 0.1, local)):
        with pytest.raises(
            TypeError, match=r"makes an optimiser of a learning rate: write local=optax.sgd\(0.1\)"
        ):
            build(TASK, local)
    with pytest.raises(
        TypeError, match=r"server=\w+ makes an optimiser of a learning rate: write server=optax.sgd\(0.1\)"
    ):
        fc.algorithms.fedprox(TASK, 0.1, optax.sgd(0.1), server=optax.adam)
