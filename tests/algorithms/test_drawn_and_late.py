"""Clients who are drawn unequally often, or whose models come late: no bias over all cohorts, and FedAsync's
mixing step by step."""

from itertools import product

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import algorithms as of
from tests.quadratic import START2, UNEQUAL, UNEVEN, grad

LR, RATES, SHARES = 0.1, np.array([0.9, 0.2, 0.5]), np.array([0.5, 0.2, 0.3])
PLAN = {"batch_size": 1, "epochs": 3, "lanes": 1, "mesh": None}


def steps(i, w):
    """Where client i ends after three steps from w."""
    for _ in range(3):
        w = w - LR * grad(i, w)
    return w


@pytest.mark.proves("importance", by="closed form: the mean over all cohorts is the step of all clients")
def test_over_all_cohorts_the_mean_is_the_step_of_all_clients():
    """Each of the eight cohorts, by its probability; the empty one, which moves nothing, too."""
    sim = fc.Simulator(fc.compose(of.importance(UNEVEN, optax.sgd(LR), RATES, SHARES)), UNEQUAL, **PLAN)
    before, mean = sim.init(jax.random.key(0)), np.zeros(2)
    sim.reserve(3)
    for here in product([False, True], repeat=3):
        state, _ = sim.run(before, np.flatnonzero(here).astype(np.int32))
        mean += np.prod(np.where(here, RATES, 1 - RATES)) * np.asarray(state.params["w"])
    expected = START2 + sum(share * (steps(i, START2) - START2) for i, share in enumerate(SHARES))
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_each_client_is_drawn_by_its_own_rate_and_the_best_rates_are_those_of_the_paper():
    draws = fc.cohorts.independent(RATES, seed=3)
    often = np.mean([np.isin(np.arange(3), draws(round)) for round in range(2000)], axis=0)
    assert np.all(np.abs(often - RATES) < 4 * np.sqrt(RATES * (1 - RATES) / 2000)) and draws.max_size == 3
    norms = np.random.default_rng(0).lognormal(0, 2, 9)
    best = fc.cohorts.optimal_rates(norms, 4)
    assert best.sum() == pytest.approx(4) and best.max() <= 1
    # stationary: those below 1 in proportion to their norms, the others with larger ones
    share = (best / norms)[best < 1]
    np.testing.assert_allclose(share, share[0], rtol=1e-12)
    assert (norms[best == 1] * share[0] >= 1).all() and (best == 1).any()


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="of one who is never drawn no weight makes up"):
        of.importance(UNEVEN, optax.sgd(LR), [0.5, 0.0])
    with pytest.raises(ValueError, match="2 numbers of at least 0 that sum to 1"):
        of.importance(UNEVEN, optax.sgd(LR), [0.5, 0.5], [0.5, 0.6])
    with pytest.raises(ValueError, match="alpha must be above 0 and at most 1, got 2"):
        of.fedasync(UNEVEN, optax.sgd(LR), 2)
    with pytest.raises(ValueError, match="a probability above 0 and at most 1"):
        fc.cohorts.independent([0.5, 2.0])
    with pytest.raises(ValueError, match="at most 2, the number of clients, got 3"):
        fc.cohorts.optimal_rates([1.0, 2.0], 3)


@pytest.mark.proves("fedasync", by="independent implementation: the paper's steps in NumPy")
def test_models_that_arrive_are_mixed_in_by_their_age():
    """Clients need 10, 15 and 40 ticks; each begins anew from the model that its own arrival made."""
    delays, alpha = {0: 10, 1: 15, 2: 40}, 0.6
    buffer = fc.Buffer(size=1, damping=of.polynomial(0.5))
    composed = fc.compose(of.fedasync(UNEVEN, optax.sgd(LR), alpha))
    sim = fc.AsynchronousSimulator(
        composed, UNEQUAL, buffer, delays=lambda client, version: delays[client], **PLAN
    )
    state, models, late = sim.init(jax.random.key(0)), [START2], []
    at_work = {client: (delays[client], 0) for client in delays}  # (due, version that it began from)
    for version in range(7):
        state, _ = sim.run(state, [0, 1, 2])
        client = min(at_work, key=lambda c: (at_work[c][0], c))
        due, began = at_work[client]
        at_work[client] = (due + delays[client], version + 1)
        late.append(version - began)
        share = alpha * (1 + version - began) ** -0.5
        models.append((1 - share) * models[-1] + share * steps(client, models[began]))
        np.testing.assert_allclose(state.params["w"], models[-1], atol=1e-5)
        assert int(state.clients.now) == due
    assert max(late) >= 4  # client 2 came at last
