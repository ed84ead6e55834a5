"""Regions and graphs in the place of one server: identities with FedAvg, and the exact course on
quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import algorithms as of
from fedjax_core.algorithms.gossip import metropolis
from tests.quadratic import START2, UNEQUAL, UNEVEN, grad

SGD, LR = optax.sgd(0.1), 0.1
ALL = [[0, 1, 2], [0, 2], [1, 2, 0], [2, 1]]


def steps(i, w, count=3):
    """Where client i ends after so many steps from w."""
    for _ in range(count):
        w = w - LR * grad(i, w)
    return w


def course(regions, every, rounds=ALL):
    """(the model after each round, the last state) of regions that meet every so many rounds."""
    sim = fc.Simulator(
        fc.compose(of.hierarchical(UNEVEN, SGD, regions, every)),
        UNEQUAL,
        batch_size=1,
        epochs=3,
        lanes=1,
        mesh=None,
    )
    state, found = sim.init(jax.random.key(0)), []
    for cohort in rounds:
        state, _ = sim.run(state, cohort)
        found.append(np.asarray(state.params["w"]))
    return found, state


@pytest.mark.proves("hierarchical", by="identity: FedAvg")
@pytest.mark.parametrize(("regions", "every"), [([0, 0, 0], 2), ([1, 0, 1], 1)])
def test_one_region_or_a_mean_of_all_in_every_round_is_fedavg(regions, every):
    x = START2
    for cohort in ALL:
        x = np.mean([steps(i, x) for i in cohort], axis=0)
    np.testing.assert_allclose(course(regions, every)[0][-1], x, atol=1e-5)


@pytest.mark.proves("hierarchical", by="independent implementation: the paper's rounds in NumPy")
def test_regions_go_apart_and_meet_every_second_round():
    """Client 2 is in a region of its own; who reported twice since the last mean counts twice."""
    regions, x, means = [0, 0, 1], START2, []
    for number, cohort in enumerate(ALL):
        if number % 2 == 0:
            apart, weight = {0: x, 1: x}, {0: 0, 1: 0}
        ends = {i: steps(i, apart[regions[i]]) for i in cohort}
        for g in (0, 1):
            here = [i for i in cohort if regions[i] == g]
            if here:
                apart[g] = np.mean([ends[i] for i in here], axis=0)
            weight[g] += len(here)
        if number % 2:
            x = (weight[0] * apart[0] + weight[1] * apart[1]) / (weight[0] + weight[1])
        means.append(x)  # between two means the model is that of the last one
    found, state = course(regions, 2)
    np.testing.assert_allclose(found, means, atol=1e-5)
    assert state.server.weight.tolist() == [0, 0] and not np.allclose(means[1], means[3])


RING = metropolis([(i, (i + 1) % 6) for i in range(6)])
TARGET = np.array([4.0, -1.0, 0.5, 2.0, -3.0, 1.0])


@pytest.fixture(scope="module")
def ring():
    """(models [R, 6] of six clients in a ring, f_i = (w - b_i)^2 / 2, one full-batch step a round, 12 rounds;
    their mean at the end)."""
    task = fc.Task(
        lambda key: np.zeros(1, np.float32) + jax.numpy.zeros(1),
        lambda w, batch, key: 0.5 * jnp.square(w[0] - batch["b"]),
    )
    clients = fc.Clients.from_list([{"b": np.full(1 + i % 2, b, np.float32)} for i, b in enumerate(TARGET)])
    sim = fc.Simulator(fc.compose(of.gossip(task, SGD, RING)), clients, batch_size=2, lanes=1, mesh=None)
    state, models = sim.init(jax.random.key(0)), []
    for _ in range(12):
        state, _ = sim.run(state, np.arange(6))
        models.append(np.asarray(state.server.models, np.float64)[:, 0])
    return np.array(models), float(state.params[0])


@pytest.mark.proves("gossip", by="closed form: every round on quadratics, and the rate of the spectral gap")
def test_models_in_a_ring_take_their_exact_course_and_differ_by_the_spectral_gap(ring):
    """x <- W x - lr (x - b): each eigenvector of W with eigenvalue l goes to its limit by l - lr a round."""
    models, mean = ring
    x = np.zeros(6)
    for found in models:
        x = RING @ x - LR * (x - TARGET)
        np.testing.assert_allclose(found, x, atol=1e-5)
    assert mean == pytest.approx(models[-1].mean(), abs=1e-6)
    # gradient descent
    np.testing.assert_allclose(
        models.mean(axis=1), TARGET.mean() * (1 - (1 - LR) ** np.arange(1, 13)), atol=1e-5
    )
    limit = np.linalg.solve((1 + LR) * np.eye(6) - RING, LR * TARGET)
    values, vectors = np.linalg.eigh(RING)
    assert values[-2] == pytest.approx((1 + 2 * np.cos(np.pi / 3)) / 3)  # and so the gap is 1/3
    # what differs longest between neighbours
    slow = np.linalg.norm((models - limit) @ vectors[:, [-3, -2]], axis=1)
    assert slow[6] / slow[5] == pytest.approx(values[-2] - LR, rel=1e-4)


@pytest.mark.proves("gossip", by="identity: one step among all is FedAvg's")
def test_one_step_among_all_is_that_of_parallel_sgd_and_who_is_absent_mixes_only():
    """On unequal quadratics; in the second round client 1 is absent."""
    algorithm = of.gossip(UNEVEN, SGD, np.full((3, 3), 1 / 3))
    sim = fc.Simulator(fc.compose(algorithm), UNEQUAL, batch_size=1, epochs=1, lanes=1, mesh=None)
    state, _ = sim.run(sim.init(jax.random.key(0)), [0, 1, 2])
    first = np.array([START2 - LR * grad(i, START2) for i in range(3)])
    np.testing.assert_allclose(state.params["w"], first.mean(axis=0), atol=1e-6)
    state, _ = sim.run(state, [2, 0])
    moved = np.array([-LR * grad(0, first[0]), np.zeros(2), -LR * grad(2, first[2])])
    np.testing.assert_allclose(state.server.models["w"], first.mean(axis=0) + moved, atol=1e-6)


def test_mistakes_are_refused():
    with pytest.raises(
        ValueError, match=r"rows and columns of mixing must sum to 1.* one sums to 1.5: make it with"
    ):
        of.gossip(UNEVEN, SGD, [[1.0, 0.5], [0.0, 0.5]])
    with pytest.raises(ValueError, match=r"got shape \(2, 1\)"):
        of.gossip(UNEVEN, SGD, [[1.0], [1.0]])
    with pytest.raises(ValueError, match="pairs of different clients"):
        metropolis([(0, 0)])
    with pytest.raises(ValueError, match=r"none of them left out, got \[0, 2\]"):
        of.hierarchical(UNEVEN, SGD, [0, 2])
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        of.hierarchical(UNEVEN, SGD, [0, 0], 0)
