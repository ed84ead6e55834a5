"""DP-SGD at clients: each example's gradient is clipped by itself, whatever the memory, and noise is over the
batch that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import keys, privacy, tree
from fedjax_core.algorithms import gradient
from tests.zoo import Normalised, flax_task, task

KEY = jax.random.key(0)


def batch(n=8, seen=8, scale=1.0):
    rng = np.random.default_rng(0)
    x, y = (scale * rng.normal(size=(n, 3))).astype(np.float32), rng.integers(0, 3, n).astype(np.int32)
    return fc.Batch({"x": jnp.asarray(x), "y": jnp.asarray(y)}, (jnp.arange(n) < seen).astype(jnp.float32))


def one_by_one(params, of, clip):
    """The sum of clipped gradients, by a loop."""
    total = tree.zeros_like(params)
    for i in np.flatnonzero(of.mask):
        alone = fc.Batch({name: x[i : i + 1] for name, x in of.columns.items()}, jnp.ones(1))
        grads, _ = gradient(task(), params, alone, KEY)
        total = tree.add(total, tree.scale(min(1.0, clip / float(tree.norm(grads))), grads))
    return total


@pytest.mark.parametrize("microbatch", [None, 2])
def test_it_is_the_sum_of_clipped_gradients_of_single_examples(microbatch):
    params, of = task().init(KEY), batch(seen=6, scale=3.0)
    got, seen = jax.jit(lambda p, b: privacy.noisy_gradient(0.5, 0.0, 10, microbatch)(task(), p, b, KEY))(
        params, of
    )
    expected = tree.scale(0.1, one_by_one(params, of, 0.5))
    assert seen == {} and all(
        np.allclose(x, y, atol=1e-6) for x, y in zip(*map(jax.tree.leaves, (got, expected)), strict=True)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_one_example_moves_the_gradient_by_no_more_than_twice_the_clip_whatever_it_is(value):
    params, of, step = task().init(KEY), batch(), privacy.noisy_gradient(0.5, 0.0, 1)
    bad = fc.Batch({**of.columns, "x": of["x"].at[3].set(value)}, of.mask)
    with pytest.raises(ValueError, match="batches have 8 examples, and the account is of at most 1"):
        step(task(), params, of, KEY)
    step = privacy.noisy_gradient(0.5, 0.0, 8)
    apart = tree.sub(step(task(), params, of, KEY)[0], step(task(), params, bad, KEY)[0])
    assert 8 * float(tree.norm(apart)) <= 1.0 * (1 + 1e-5)


def test_a_clipped_sum_is_that_of_rows_clipped_one_by_one_and_none_adds_more_than_the_clip():
    rng = np.random.default_rng(0)
    rows = {
        "w": jnp.asarray(rng.normal(size=(5, 4, 3)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=5), jnp.float32),
    }
    got = privacy.clipping.clipped_sum(rows, jnp.array([1.0, 1, 0, 1, 1]), 0.7)
    each = [privacy.clip_by_norm(tree.take(rows, i), 0.7) for i in (0, 1, 3, 4)]
    jax.tree.map(lambda x, *y: np.testing.assert_allclose(x, sum(y), atol=1e-6), got, *each)
    for value, norm in ((np.nan, 0.0), (np.inf, 0.0), (3e38, 0.0), (1e18, 0.7), (0.0, 0.0), (0.1, 0.2)):
        one = {"w": jnp.full((1, 4), value, jnp.float32)}
        assert float(tree.norm(privacy.clipping.clipped_sum(one, jnp.ones(1), 0.7))) == pytest.approx(
            norm, rel=1e-6
        )


def test_the_noise_is_of_the_size_that_is_said_and_of_its_step():
    wide = fc.models.linear(features=20_000)
    rows = fc.Batch({"x": jnp.zeros((4, 20_000)), "y": jnp.zeros(4)}, jnp.ones(4))
    params = wide.init(KEY)
    first, other = (
        privacy.noisy_gradient(2.0, 1.5, 4)(wide, params, rows, jax.random.key(k))[0] for k in (0, 1)
    )
    x, y = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (first, other))
    assert x.std() == pytest.approx(2 * 1.5 / 4, rel=0.02) and abs(np.corrcoef(x, y)[0, 1]) < 0.03


def test_what_a_pass_tells_is_a_gaussian_mechanism_between_examples_one_of_which_is_another():
    made = privacy.example_level(clip=1.0, noise=6.0, batch_size=10, rounds=4, epochs=2, delta=1e-5)
    assert made.epsilon() == pytest.approx(privacy.epsilon(3.0, rounds=8, delta=1e-5, sampling="everyone"))
    assert made.epsilon(rounds=1) < made.epsilon(rounds=2)
    found = privacy.example_level(clip=1.0, epsilon=2.0, batch_size=10, rounds=4, epochs=2, delta=1e-5)
    assert 2 - 1e-3 <= found.epsilon() <= 2


def test_examples_that_meet_are_refused():
    module = flax_task(Normalised(), statistics="shared")
    step = privacy.noisy_gradient(1.0, 1.0, 4)
    with pytest.raises(ValueError, match="BatchNorm has examples meet"):
        step(module, module.init(KEY), batch(4), KEY)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epsilon": 1.0}, "give epsilon="),
        ({"microbatch": 3}, "microbatch=3 does not divide batch_size=4"),
        ({"clip": -1.0}, "clip= must be above 0"),
        ({"noise": -1.0}, "noise must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense(settings, said):
    with pytest.raises(ValueError, match=said):
        privacy.example_level(**{"clip": 1.0, "noise": 1.0, "batch_size": 4, "rounds": 1, **settings})


SIZES = (40, 15, 60)


def sampled(**settings):
    of = {
        "clip": 1.0,
        "noise": 1.0,
        "batch_size": 10,
        "rounds": 3,
        "steps": 4,
        "sampling": "poisson",
        "sizes": SIZES,
        "delta": 1e-4,
    }
    return privacy.example_level(**{**of, **settings})


def test_poisson_batches_have_one_shape_and_each_example_by_itself():
    """Over 4,000 batches: shares and pairs of examples as of independent draws; others in other rounds, the
    same when asked again."""
    order = sampled(steps=4000).plan["order"]
    for client, n in enumerate(SIZES):
        found = order(0, client)
        assert found.shape == (4000, order.cap) and found.min() == -1 and found.max() == n - 1
        here = np.zeros((4000, n))
        for row, into in zip(found, here, strict=True):
            into[row[row >= 0]] += 1
        assert here.max() == 1  # none twice
        q = 10 / n
        assert np.allclose(here.mean(axis=0), q, atol=5 * np.sqrt(q * (1 - q) / 4000))
        assert abs(np.cov(here[:, 0], here[:, 1])[0, 1]) < 5 * q * (1 - q) / np.sqrt(4000)
    assert (
        (order(1, 0) == order(1, 0)).all()
        and (order(1, 0) != order(2, 0)).any()
        and (order(1, 0)[:, :15] != order(1, 1)[:, :15]).any()
    )


def test_the_epsilon_of_poisson_batches_is_that_of_their_rate_for_each_client_by_itself():
    made = sampled()
    for n in SIZES:
        assert made.epsilon(examples=n) == pytest.approx(privacy.epsilon(1.0, 10 / n, 12, 1e-4), abs=1e-6)
    assert made.epsilon() == made.epsilon(examples=15) > made.epsilon(rounds=1)
    found = sampled(noise=None, epsilon=2.0)
    assert 2 - 1e-3 <= found.epsilon() <= 2 and found.epsilon(examples=60) < 1


def test_lanes_take_the_batches_that_are_counted_empty_ones_too():
    """A round by plain steps: the noise alone where nobody was drawn."""
    made = privacy.example_level(
        clip=1.0, noise=0.5, batch_size=1, rounds=1, steps=8, sampling="poisson", sizes=(6, 3), delta=1e-3
    )
    order = made.plan["order"]
    empty = (order(0, 0) < 0).all(axis=1)
    assert 0 < empty.sum() < 8
    rng = np.random.default_rng(1)
    clients = fc.Clients.from_list(
        [
            {"x": rng.normal(size=(n, 3)).astype(np.float32), "y": np.arange(n, dtype=np.int32) % 3}
            for n in (6, 3)
        ]
    )
    algorithm = fc.algorithms.fedavg(task(), optax.sgd(0.1), gradient=made.gradient)
    simulator = fc.Simulator(fc.compose(algorithm), clients, lanes=1, **made.plan)
    start = simulator.init(KEY)
    key = keys.client(start.key, 0, clients.addresses[0])
    params = start.params
    for t, row in enumerate(order(0, 0)):
        at = np.where(row >= 0, row, 0)
        of = fc.Batch(
            {name: jnp.asarray(x[at]) for name, x in clients[0].items()},
            jnp.asarray((row >= 0).astype(np.float32)),
        )
        grads, _ = made.gradient(task(), params, of, keys.step(key, 0, t))
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    found = simulator.run(start, [0])[0].params
    assert all(
        np.allclose(x, y, atol=1e-6) for x, y in zip(*map(jax.tree.leaves, (found, params)), strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": None}, "draws each batch anew, so a round has steps="),
        ({"sizes": ()}, "needs sizes=, the numbers of examples of all clients"),
        ({"sampling": "passes"}, "steps= and sizes= are of"),
        ({"sampling": "fixed"}, 'sampling must be "passes" or "poisson"'),
    ],
)
def test_settings_of_poisson_batches_that_make_no_sense(settings, said):
    with pytest.raises(ValueError, match=said):
        sampled(**settings)
