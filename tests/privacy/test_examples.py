"""DP-SGD at clients: each example's gradient is clipped by itself, whatever the memory, and noise is over the batch that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core import privacy, tree
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
    got, seen = jax.jit(lambda p, b: privacy.noisy_gradient(0.5, 0.0, 10, microbatch)(task(), p, b, KEY))(params, of)
    expected = tree.scale(0.1, one_by_one(params, of, 0.5))
    assert seen == {} and all(np.allclose(x, y, atol=1e-6) for x, y in zip(*map(jax.tree.leaves, (got, expected)), strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_one_example_moves_the_gradient_by_no_more_than_twice_the_clip_whatever_it_is(value):
    params, of, step = task().init(KEY), batch(), privacy.noisy_gradient(0.5, 0.0, 1)
    bad = fc.Batch({**of.columns, "x": of["x"].at[3].set(value)}, of.mask)
    with pytest.raises(ValueError, match="batches have 8 examples"):
        step(task(), params, of, KEY)
    step = privacy.noisy_gradient(0.5, 0.0, 8)
    apart = tree.sub(step(task(), params, of, KEY)[0], step(task(), params, bad, KEY)[0])
    assert 8 * float(tree.norm(apart)) <= 1.0 * (1 + 1e-5)


def test_the_noise_is_of_the_size_that_is_said_and_of_its_step():
    wide = fc.models.linear(features=20_000)
    rows = fc.Batch({"x": jnp.zeros((4, 20_000)), "y": jnp.zeros(4)}, jnp.ones(4))
    params = wide.init(KEY)
    first, other = (privacy.noisy_gradient(2.0, 1.5, 4)(wide, params, rows, jax.random.key(k))[0] for k in (0, 1))
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
