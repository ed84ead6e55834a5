"""Contribution scores: games solved on paper, and rounds whose coalitions are run again."""

import math

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.contribution import leave_one_out, of_round, shapley
from tests.run.small import clients

OWN = np.array([0.5, -1.0, 2.0, 0.25])


def linear(coalitions):
    """Each client is worth its own term."""
    return coalitions @ OWN


def gloves(coalitions):
    """A pair of gloves is worth 1: clients 0 and 1 have a left one each, client 2 the right one."""
    return (coalitions[:, 0] | coalitions[:, 1]) & coalitions[:, 2]


def product(coalitions):
    """Two clients are worth something only together, beside what each is by itself."""
    return coalitions @ np.arange(5.0) + 6.0 * (coalitions[:, 0] & coalitions[:, 3])


def test_shapley_values_of_games_solved_on_paper():
    np.testing.assert_allclose(shapley(linear, 4).score, OWN, atol=1e-12)
    np.testing.assert_allclose(shapley(gloves, 3).score, [1 / 6, 1 / 6, 2 / 3], atol=1e-12)
    np.testing.assert_allclose(shapley(product, 5).score, [3, 1, 2, 6, 4], atol=1e-12)
    np.testing.assert_allclose(leave_one_out(product, 5), [6, 1, 2, 9, 4], atol=1e-12)
    assert leave_one_out(gloves, 3).tolist() == [0, 0, 1]


def test_random_orders_give_shapley_values_within_their_standard_error_and_add_up():
    exact = shapley(product, 5).score
    found = shapley(product, 5, permutations=400, seed=1)
    # Client 0 adds 6 where 3 is before it, so half of the time: its values have a standard deviation of 3.
    np.testing.assert_allclose(found.standard_error, np.array([3, 0, 0, 3, 0]) / math.sqrt(400), rtol=0.01)
    assert np.all(np.abs(found.score - exact) <= 3 * found.standard_error + 1e-12)
    assert found.score.sum() == pytest.approx(float(product(np.ones((1, 5), bool))[0]))
    np.testing.assert_allclose(shapley(linear, 4, permutations=2).score, OWN, atol=1e-12)
    assert np.array_equal(
        shapley(product, 5, permutations=9, seed=1).score, shapley(product, 5, permutations=9, seed=1).score
    )


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match=r"13 clients need 2\^13 models.*permutations=200"):
        shapley(linear, 13)
    with pytest.raises(ValueError, match="at least 2"):
        shapley(linear, 4, permutations=1)
    with pytest.raises(ValueError, match=r"coalition \[0, 1\] is not a finite number"):
        shapley(lambda c: np.where(c.all(axis=1), np.nan, 0.0), 2)
    with pytest.raises(ValueError, match=r"of 4 coalitions must be so many numbers, got shape \(\)"):
        shapley(lambda c: 1.0, 2)


@pytest.fixture(scope="module")
def round_shown():
    """(the round's pieces, the state before it, what clients brought): reports are added up, so that each has
    a term of its own."""
    task = fc.models.logistic(features=3, classes=2)
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1)), aggregator=fc.aggregators.total())
    sim = fc.Simulator(composed, clients(), batch_size=9, epochs=1, lanes=1)
    before = sim.init(jax.random.key(0))
    return composed, before, sim.inspect(before, [5, 2, 3, 0], ("update", "weight"))[2][0]


def test_of_a_sum_of_reports_and_a_linear_utility_a_client_is_worth_its_own_term(round_shown):
    composed, before, visits = round_shown
    direction = np.random.default_rng(3).normal(size=(3, 2)).astype(np.float32)
    value = of_round(composed, before, visits, lambda params: (direction * params["w"]).sum())
    own = np.einsum("ij,kij->k", direction, visits.update["w"])
    assert own[1] == 0 and np.abs(own[[0, 2, 3]]).min() > 1e-3  # client 2 has no examples
    np.testing.assert_allclose(shapley(value, 4).score, own, atol=1e-6)
    np.testing.assert_allclose(leave_one_out(value, 4), own, atol=1e-6)


def test_a_coalition_is_worth_what_a_round_of_it_alone_gives(round_shown):
    """With a mean by examples and momentum at the server, the models are those of a round in plain loops."""
    _, _, visits = round_shown
    task = fc.models.logistic(features=3, classes=2)
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1), optax.sgd(1.0, momentum=0.9)))
    loops = fc.Loops(composed, clients(), batch_size=9, epochs=1)
    before = loops.init(jax.random.key(0))
    value = of_round(composed, before, visits, lambda params: params["w"][0, 0])
    coalitions = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]], bool)
    cohorts = [[5, 3, 0], [], [2], [5, 2]]
    expected = [
        float(loops.run(before, np.array(cohort, np.int32))[0].params["w"][0, 0]) for cohort in cohorts
    ]
    np.testing.assert_allclose(value(coalitions), expected, atol=1e-5)


def test_a_round_that_shows_no_single_report_or_needs_more_of_it_is_refused(round_shown):
    composed, before, visits = round_shown
    with pytest.raises(
        ValueError, match=r'visits lack updates or weights: inspect\(state, cohort, \("update", "weight"\)\)'
    ):
        of_round(composed, before, visits._replace(weight=None), lambda params: 0.0)
    mime = fc.compose(fc.algorithms.mime(fc.models.logistic(features=3, classes=2), optax.sgd(0.1)))
    with pytest.raises(ValueError, match="mime has several exchanges"):
        of_round(mime, before, visits, lambda params: 0.0)
