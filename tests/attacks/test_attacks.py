"""Attacks as their papers write them, on the matrix of reports, in a round, and end to end against rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import fedjax_core as fc
from fedjax_core import attacks
from fedjax_core.aggregators.robust import distances
from fedjax_core.attacks.alie import deviations

N, F, P = 12, 3, 5
ROWS = np.random.default_rng(0).normal(size=(N, P)).astype(np.float32) + 1
LIARS = np.isin(np.arange(N), [1, 4, 7])
HERE = np.arange(N) != 9
HONEST = ROWS[HERE & ~LIARS].astype(np.float64)


def lie(attack):
    """What one of the liars reports."""
    rows = jax.jit(attack.together)(
        jnp.asarray(ROWS), jnp.asarray(LIARS), jnp.asarray(HERE), jax.random.key(0)
    )
    return np.asarray(rows[4], np.float64)


def test_alie_moves_the_mean_by_what_the_numbers_allow():
    for n, f, known in (
        (10, 2, 0.0),
        (20, 4, 0.15731),
        (50, 10, 0.25335),
        (50, 12, 0.33604),
        (100, 20, 0.28584),
    ):
        assert float(deviations(n, f)) == pytest.approx(known, abs=2e-5)
    n, f = HERE.sum(), LIARS.sum()
    z = scipy.stats.norm.ppf((n - f - (n // 2 + 1 - f)) / (n - f))
    np.testing.assert_allclose(lie(attacks.alie()), HONEST.mean(0) + z * HONEST.std(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lie(attacks.alie(1.5)), HONEST.mean(0) + 1.5 * HONEST.std(0), rtol=1e-4)


def test_ipm_and_mimic():
    np.testing.assert_allclose(lie(attacks.ipm(0.5)), -0.5 * HONEST.mean(0), rtol=1e-5)
    np.testing.assert_allclose(lie(attacks.mimic()), ROWS[0], rtol=1e-6)


@pytest.mark.parametrize("direction", ["unit", "std", "sign"])
def test_min_max_and_min_sum_go_just_as_far_as_they_may(direction):
    apart = ((HONEST[:, None] - HONEST[None]) ** 2).sum(2)
    way = {"unit": -HONEST.mean(0), "std": -HONEST.std(0), "sign": -np.sign(HONEST.mean(0))}[direction]
    found, sums = lie(attacks.min_max(direction)), lie(attacks.min_sum(direction))
    assert ((found - HONEST) ** 2).sum(1).max() == pytest.approx(apart.max(), rel=1e-4)
    assert ((sums - HONEST) ** 2).sum() == pytest.approx(apart.sum(1).max(), rel=1e-4)
    for off in (found - HONEST.mean(0), sums - HONEST.mean(0)):
        np.testing.assert_allclose(off / np.linalg.norm(off), way / np.linalg.norm(way), atol=1e-3)


def test_poisoned_data_are_those_of_the_chosen_alone():
    x, y = np.zeros((9, 6, 6, 1), np.float32), np.arange(9, dtype=np.int32) % 3
    clients = fc.Clients.from_arrays({"x": x, "y": y}, offsets=[0, 3, 5, 9])
    flipped = attacks.label_flip(clients, [1], classes=3).columns["y"]
    assert (
        flipped[3:5].tolist() == (2 - y[3:5]).tolist()
        and (np.delete(flipped, [3, 4]) == np.delete(y, [3, 4])).all()
    )
    made = attacks.backdoor(clients, [0, 2], target=2, share=1.0, size=2, value=0.7).columns
    assert (made["y"][[0, 1, 2, 5, 6, 7, 8]] == 2).all() and (made["y"][3:5] == y[3:5]).all()
    assert (
        made["x"][0, 4:, 4:].min() == np.float32(0.7)
        and made["x"][0].sum() == pytest.approx(4 * 0.7)
        and not made["x"][3:5].any()
    )
    assert attacks.with_trigger(np.zeros((2, 5)), 2).tolist() == [[0, 0, 0, 1, 1]] * 2
    with pytest.raises(ValueError, match="0 < share <= 1, got 0"):
        attacks.backdoor(clients, [0], 1, share=0)
    with pytest.raises(ValueError, match="min_max goes along 'unit', 'std' or 'sign', got 'up'"):
        attacks.min_max("up")


CLIENTS, EVIL = 20, [0, 5, 10, 15]


def separable(seed=0):
    """Twenty clients with two classes that a plane parts, in unequal shares; and pooled test examples."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=8)

    def some(n, lean=0.0):
        x = rng.normal(size=(n, 8)) + lean * plane / np.linalg.norm(plane)
        x = x[np.abs(x @ plane) > 0.4]
        return {"x": x.astype(np.float32), "y": (x @ plane > 0).astype(np.int32)}

    return fc.Clients.from_list(
        [some(60, lean) for lean in rng.normal(size=CLIENTS) * 0.5]
    ), fc.Clients.from_list([some(4000)])


def accuracy(aggregator=None, attack=None, rounds=15, data=None, uplink=None):
    """On clean examples, after some rounds of all clients."""
    clients, test = separable() if data is None else data
    task = fc.models.logistic(features=8, classes=2)
    algorithm = fc.algorithms.fedavg(task, optax.sgd(0.3), weighting=fc.algorithms.uniform)
    composed = fc.compose(algorithm, aggregator=aggregator, uplink=uplink)
    if attack is not None:
        composed, clients = attacks.attacked(composed, attack), attacks.mark(clients, EVIL)
    sim = fc.Simulator(composed, clients, batch_size=20, epochs=1, lanes=4)
    state, _ = sim.run_many(sim.init(jax.random.key(0)), [list(range(CLIENTS))] * rounds)
    return fc.evaluate(task, state.params, test).pooled["accuracy"]


def test_the_mean_falls_to_chance_and_mixing_with_a_trimmed_mean_stays_near_clean():
    clean = accuracy()
    assert clean > 0.95
    assert accuracy(attack=attacks.scaling(-10.0)) < 0.55
    robust = fc.aggregators.nnm(4, fc.aggregators.trimmed_mean(f=4))
    assert accuracy(robust, attacks.scaling(-10.0)) > clean - 0.02
    assert accuracy(robust) > clean - 0.02


def reports(attack, uplink=None):
    """The mean of a round in which the chosen lie: the model's change."""
    clients, _ = separable()
    task = fc.models.logistic(features=8, classes=2)
    algorithm = fc.algorithms.fedavg(task, optax.sgd(0.3), weighting=fc.algorithms.uniform)
    composed = attacks.attacked(fc.compose(algorithm, uplink=uplink), attack)
    loops = fc.Loops(composed, attacks.mark(clients, EVIL), batch_size=100, epochs=1)
    visits = []
    before = loops.init(jax.random.key(0))
    after, _ = loops.run(before, [0, 1, 2, 5], each=visits.append)
    return [visit.update for visit in visits], fc.tree.sub(after.params, before.params)


def test_liars_lie_before_the_uplink_and_know_it_where_they_act_together():
    sent, change = reports(attacks.scaling(-10.0), uplink=fc.uplink.clip(0.1))
    assert [float(one.liar) for one in sent] == [1, 0, 0, 1]
    # a clip holds a liar who acts alone
    assert all(float(fc.tree.norm(one.update)) <= 0.1001 for one in sent)
    sent, change = reports(attacks.ipm(3.0))
    honest = jax.tree.map(lambda a, b: (a + b) / 2, sent[1].update, sent[2].update)
    expected = fc.tree.scale((2 - 2 * 3.0) / 4, honest)
    assert all(
        np.allclose(x, y, atol=1e-6)
        for x, y in zip(jax.tree.leaves(change), jax.tree.leaves(expected), strict=True)
    )


def test_where_reports_lie_close_krum_takes_a_liars_and_the_mean_is_nearer():
    """Robust rules lose to the mean under a small inner product: a fact about them, not a fault."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(20, 30)).astype(np.float32) + 0.15
    liars, here = np.arange(20) < 4, np.ones(20, bool)
    rows = np.where(liars[:, None], attacks.ipm(0.5).together(jnp.asarray(rows), liars, here, None), rows)
    rule, honest = fc.aggregators.krum(4), rows[4:].mean(0)
    off = {name: np.linalg.norm(fc.aggregators.apply(one, jnp.asarray(rows)) - honest) for name, one in (
        ("krum", rule), ("mean", fc.aggregators.mean()), ("trimmed", fc.aggregators.trimmed_mean(f=4)))}  # fmt: skip
    assert np.asarray(distances(jnp.asarray(rows), jnp.asarray(here)))[0, 1] == 0
    assert np.abs(np.asarray(fc.aggregators.apply(rule, jnp.asarray(rows))) - rows[0]).max() == 0  # a liar's
    assert off["mean"] < off["krum"] and off["mean"] < 1
