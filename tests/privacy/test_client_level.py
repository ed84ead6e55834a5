"""One object says who takes part, what is clipped, the noise, and what that tells; and a round that breaks
its promise is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedjax_core as fc
from fedjax_core import privacy, tree
from fedjax_core.privacy import clipping
from fedjax_core.privacy.sampling import capped, headroom, turns
from tests.contracts import row
from tests.zoo import Normalised, flax_task

TASK = fc.models.linear(features=2)


def private(**settings):
    return privacy.client_level(
        **{"population": 12, "cohort": 4, "rounds": 10, "clip": 1.0, "noise": 0.5, "delta": 1e-3, **settings}
    )


def composed(of, algorithm=None):
    algorithm = fc.algorithms.fedavg(TASK, optax.sgd(0.1)) if algorithm is None else algorithm
    return fc.compose(algorithm, uplink=of.uplink, aggregator=of.aggregator)


def clients(n=12):
    rng = np.random.default_rng(0)
    return fc.Clients.from_list(
        [
            {
                "x": rng.normal(size=(k % 3 + 1, 2)).astype(np.float32),
                "y": rng.normal(size=k % 3 + 1).astype(np.float32),
            }
            for k in range(n)
        ]
    )


def simulator(of, **settings):
    return fc.Simulator(composed(of), clients(of.population), **{"batch_size": 4, "lanes": 2, **settings})


def test_the_noise_is_that_of_the_epsilon_and_the_epsilon_that_of_the_sampler():
    made = privacy.client_level(population=1000, cohort=50, rounds=20, clip=1.0, epsilon=2.0, delta=1e-6)
    assert 2 - 1e-3 <= made.epsilon() <= 2 and made.epsilon(rounds=5) < made.epsilon(
        rounds=20
    ) < made.epsilon(rounds=21)
    assert made.noise == pytest.approx(privacy.noise_for(2.0, 0.05, 20, 1e-6), rel=1e-4)
    assert made.cohorts == capped(1000, 0.05, made.cap) and made.cap >= 50 + 5 * np.sqrt(50)
    assert made.uplink.promises.noise == made.noise and made.uplink.promises.bound == 1.0
    fixed = private(sampling="fixed")
    assert fixed.cohorts == fc.cohorts.uniform(12, 4)
    assert fixed.epsilon() == privacy.epsilon(
        0.5, rounds=10, delta=1e-3, sampling="fixed", population=12, cohort=4
    )


def test_what_is_told_of_every_round_is_never_too_little_and_at_the_end_right():
    made = privacy.client_level(population=1000, cohort=10, rounds=60, clip=1.0, noise=1.0, delta=1e-5)
    for rounds in (1, 2, 31, 59):
        assert made.epsilon(rounds) <= made.told(rounds) <= made.epsilon(min(rounds + 3, 60)) + 1e-12
    assert made.told(60) == made.epsilon(60) and made.told(0) == 0


def test_a_small_cap_has_its_price():
    wide, narrow = (
        privacy.client_level(population=100, cohort=20, rounds=3, clip=1.0, noise=1.0, delta=1e-3, cap=cap)
        for cap in (50, 22)
    )
    assert narrow.epsilon() > 1.2 * wide.epsilon()
    # not Poisson's
    assert narrow.epsilon() == privacy.epsilon(
        1.0, rounds=3, delta=1e-3, sampling="truncated", population=100, cohort=20, cap=22
    )


@pytest.mark.parametrize(("population", "rate", "cap"), [(200, 0.1, 22), (200, 0.1, 200)])
def test_capped_cohorts_are_binomial_up_to_the_cap_and_of_anybody_alike(population, rate, cap):
    drawn = [capped(population, rate, cap, seed=3)(round) for round in range(2000)]
    sizes = np.array([len(cohort) for cohort in drawn])
    assert sizes.max() <= cap
    for size in (14, 17, 20, 21):
        assert np.mean(sizes <= size) == pytest.approx(stats.binom.cdf(size, population, rate), abs=0.04)
    each = np.bincount(np.concatenate(drawn), minlength=population)
    assert stats.chisquare(each).pvalue > 1e-3


def test_clients_take_turns():
    sampler = turns(50, rate=0.5, cap=12, bands=4, seed=1)
    last = np.full(50, -100)
    for round in range(200):
        cohort = sampler(round)
        assert len(cohort) <= 12 and (round - last[cohort] >= 4).all() and (cohort % 4 == round % 4).all()
        last[cohort] = round
    assert headroom(1000, 0.05) >= 50 + 5 * np.sqrt(50)


NASTY = [np.nan, np.inf, -np.inf, 1e38, -3e38, 1e-38, 0.0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_clipped_update_is_never_longer_whatever_is_in_it(dtype):
    rng = np.random.default_rng(0)
    clip = jax.jit(lambda update: clipping.clip_by_norm(update, 1.5))
    for first in [*NASTY, 1.0]:
        for second in (0.3, 1e38, first):
            update = {
                "a": jnp.asarray(rng.normal(size=1000), dtype) * jnp.asarray(second, dtype),
                "b": jnp.asarray([first], dtype),
            }
            got = jax.tree.map(lambda x: np.asarray(x, np.float64), clip(update))
            assert np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(got))) <= 1.5 * (1 + 1e-6)


def test_what_is_shorter_keeps_its_bits_and_what_is_longer_its_direction():
    short = {"a": jnp.array([0.3, -0.4]), "b": jnp.float32(1e-20)}
    assert jax.tree.all(jax.tree.map(np.array_equal, clipping.clip_by_norm(short, 0.51), short))
    assert np.allclose(clipping.clip_by_norm(jnp.array([3e37, 4e37]), 1.0), [0.6, 0.8])
    many = jnp.asarray(np.random.default_rng(0).normal(size=1_000_000), jnp.float32)
    assert np.linalg.norm(np.asarray(clipping.clip_by_norm(many, 1.0), np.float64)) <= 1 + 1e-6


def test_groups_of_leaves_have_bounds_of_their_own():
    update = {"a": {"w": jnp.array([3.0, 4.0])}, "b": jnp.array([30.0, 40.0])}
    stage = privacy.gaussian({"a": 1.0, "b": 2.0}, noise=1.0, cohort=1)
    got = fc.uplink.roundtrip(stage, update, jax.random.key(0))
    assert np.allclose(got["a"]["w"], [0.6, 0.8]) and np.allclose(got["b"], [1.2, 1.6])
    assert stage.promises.bound == pytest.approx(np.sqrt(5))
    for groups, said in (({"a": 1.0}, "leaf 'b' is under 0"), ({"a": 1.0, "b": 1.0, "c": 1.0}, "no leaf is under it"),
                         ({"a": 1.0, "a/w": 1.0, "b": 1.0}, "under 2")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            fc.uplink.roundtrip(privacy.gaussian(groups, 1.0, 1), update, jax.random.key(0))


def sum_of(stage, updates, secret=0, weights=None):
    """What the server makes of these reports."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates)
    sender = fc.uplink.base.alone(jax.random.key(9))

    def send(update, weight):
        message, _ = stage.encode(stage.init(shapes), (), update, sender._replace(weight=jnp.float32(weight)))
        return stage.expand(stage.init(shapes), message, shapes)

    number = len(jax.tree.leaves(updates)[0])
    sent = [send(row(updates, i), weight) for i, weight in enumerate(weights or [1.0] * number)]
    total = fc.aggregators.apply(fc.aggregators.total(), jax.tree.map(lambda *x: jnp.stack(x), *sent))
    here = jnp.ones(1, bool)
    info = fc.uplink.Info(
        jnp.float32(1), jnp.float32(1), jax.random.key(3), jax.random.key(secret), here, here
    )
    return stage.finish(stage.init(shapes), total, info, jax.random.key(4))


def test_one_client_moves_the_sum_by_no_more_than_the_clip_whatever_its_weight():
    stage, updates = (
        privacy.gaussian(2.0, noise=0.0, cohort=1),
        jnp.asarray(np.random.default_rng(0).normal(size=(5, 40)) * 100, jnp.float32),
    )
    for weights in ([1.0] * 5, [1e6, 1.0, 1.0, 1.0, 1.0]):
        whole, without = (
            sum_of(stage, updates, weights=weights)[0],
            sum_of(stage, updates[1:], weights=weights[1:])[0],
        )
        assert float(tree.norm(whole - without)) <= 2 * (1 + 1e-6)
    counting = privacy.gaussian(2.0, noise=0.0, cohort=1, weight_cap=10.0)
    for weight, share in ((1e9, 1.0), (10.0, 1.0), (5.0, 0.5)):
        got, _ = sum_of(counting, updates[:1], weights=[weight])
        assert float(tree.norm(got)) == pytest.approx(2 * share, rel=1e-5)


def test_the_noise_is_normal_and_of_the_size_that_is_said():
    value = jnp.zeros((1, 1_000_000))
    stage = privacy.gaussian(2.0, noise=1.5, cohort=10)
    got = np.asarray(sum_of(stage, value)[0])
    assert got.std() == pytest.approx(2 * 1.5 / 10, rel=0.005) and abs(got.mean()) < 0.002
    assert stats.kstest(got[:100_000] / 0.3, "norm").pvalue > 1e-3
    assert np.array_equal(got, sum_of(stage, value)[0])
    other = np.asarray(sum_of(stage, value, secret=1)[0])
    assert abs(np.corrcoef(got, other)[0, 1]) < 0.005


def test_rounds_add_noise_of_their_own_and_the_same_on_any_number_of_lanes():
    made = private(noise=2.0)
    one, many = (simulator(made, lanes=lanes) for lanes in (1, 4))
    first, _ = one.run(one.init(jax.random.key(1)), made.cohorts(0))
    again, _ = many.run(many.init(jax.random.key(1)), made.cohorts(0))
    for x, y in zip(jax.tree.leaves(first.params), jax.tree.leaves(again.params), strict=True):
        assert np.allclose(x, y, atol=1e-6)
    empty = one.init(jax.random.key(1))
    moved = []
    for _ in range(3):  # rounds of nobody
        after, seen = one.run(empty, [])
        moved.append(
            np.concatenate(
                [
                    np.ravel(x - y)
                    for x, y in zip(*map(jax.tree.leaves, (after.params, empty.params)), strict=True)
                ]
            )
        )
        empty = after
    assert float(seen["clients"]) == 0
    assert all(np.abs(a - b).min() > 1e-4 for a, b in itertools.pairwise(moved))
    assert 0.2 < np.std(np.concatenate(moved)) < 4  # noise * clip / cohort is 0.5


def test_metrics_of_training_are_withheld():
    made = private()
    sim = simulator(made)
    assert sorted(sim.run(sim.init(jax.random.key(1)), made.cohorts(0))[1]) == [
        "bits_up",
        "clients",
        "examples",
        "refused",
    ]
    seen = private(open_metrics=True)
    sim = simulator(seen)
    assert "loss" in sim.run(sim.init(jax.random.key(1)), seen.cohorts(0))[1]


def moved(task, local):
    """FedAvg that tells how far each client moved."""
    algorithm = fc.algorithms.fedavg(task, local)
    (exchange,) = algorithm.exchanges

    def finish(message, carry, seen):
        report = exchange.client.finish(message, carry, seen)
        return report._replace(metrics={"moved": fc.metrics.Sum(tree.norm(report.update))})

    return algorithm._replace(exchanges=(exchange._replace(client=exchange.client._replace(finish=finish)),))


SGD = optax.sgd(0.1)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda p: fc.compose(fc.algorithms.fedavg(TASK, SGD), uplink=p.uplink), r"mean\(\) makes of reports what a client's weight"),
        (lambda p: fc.compose(fc.algorithms.fedavg(TASK, SGD), p.uplink, fc.aggregators.median()), r"median\(\) makes of reports"),
        (lambda p: composed(p, fc.algorithms.scaffold(TASK, 0.1, 12)), "scaffold goes by the number of clients"),
        (lambda p: composed(p, fc.algorithms.fednova(TASK, 0.1)), "fednova reports the stats steps"),
        (lambda p: composed(p, moved(TASK, SGD)), "reports the metrics moved, which leave without the noise"),
        (lambda p: composed(p, fc.algorithms.mime(TASK, SGD)), "mime sends 2 reports a round"),
        (lambda p: composed(p, fc.algorithms.fedavg(flax_task(Normalised(), statistics="shared"), SGD)), "running statistics of BatchNorm"),
        (lambda p: fc.uplink.chain(p.uplink, p.uplink), "add noise, and an account is kept of one"),
        (lambda p: fc.uplink.chain(p.uplink, fc.uplink.secure(1.0)), "'secure' changes the sum of reports before 'client level'"),
    ],
)  # fmt: skip
def test_what_would_break_the_promise_is_refused_by_name(build, said):
    with pytest.raises(ValueError, match=said):
        build(private())


def test_what_keeps_it_composes():
    assert composed(private(), fc.algorithms.fedavg(TASK, SGD, fc.algorithms.fedopt.adam(0.1)))
    chained = fc.uplink.chain(private().uplink, fc.uplink.quantize(8))
    assert chained.promises == private().uplink.promises and chained.promises.noise == 0.5
    assert fc.compose(fc.algorithms.fedavg(TASK, SGD), chained, fc.aggregators.total())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epsilon": 1.0}, "give epsilon=, for which the noise is found, or noise= itself"),
        ({"noise": None}, "give epsilon="),
        ({"cohort": 13}, "is more than population=12"),
        ({"clip": 0.0}, "clip= must be above 0"),
        ({"clip": np.nan}, "clip= must be above 0"),
        ({"noise": -1.0}, "noise= must be 0 or more"),
        ({"sampling": "shuffled"}, "sampling must be"),
        ({"cap": 3}, "cap=3 is the most clients of a round"),
        ({"rounds": 0}, "rounds"),
        ({"delta": 0.0}, "delta must be between"),
        ({"bands": 4}, "is more than population=12"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        private(**settings).uplink  # noqa: B018


def test_of_four_hospitals_it_is_refused():
    with pytest.raises(
        ValueError,
        match='client level with 4 clients is meaningless: "with or without one of them" drowns all that 4',
    ):
        private(population=4, cohort=4)
