"""Attacks that succeed on what leaves undefended, and fail under noise: an input from a gradient, and who was
trained on from losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import privacy, tree
from fedjax_core.algorithms import gradient
from fedjax_core.privacy import audit

FEATURES, CLASSES = 64, 10
TASK = fc.models.logistic(FEATURES, CLASSES)


def person(seed):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.uniform(size=(1, FEATURES)).astype(np.float32),
        "y": rng.integers(0, CLASSES, 1).astype(np.int32),
    }


def gradient_of(columns):
    params = TASK.init(jax.random.key(0))
    return gradient(
        TASK,
        params,
        fc.Batch(jax.tree.map(jnp.asarray, columns), jnp.ones(len(columns["y"]))),
        jax.random.key(0),
    )[0]


def inverted(grads):
    """The input of a linear layer with a bias: a row of the weights' gradient over that of the bias (Geiping
    et al., NeurIPS 2020)."""
    weights, bias = np.asarray(grads["w"], np.float64), np.asarray(grads["b"], np.float64)
    row = np.argmax(np.abs(bias))
    return weights[:, row] / bias[row]


def psnr(got, meant):
    """Of numbers from 0 to 1, in decibels."""
    return -10 * np.log10(np.mean((np.clip(got, 0, 1) - meant) ** 2))


def test_one_example_can_be_read_off_its_gradient():
    one = person(0)
    got = inverted(gradient_of(one))
    assert (
        np.linalg.norm(got - one["x"][0]) <= 1e-5 * np.linalg.norm(one["x"]) and psnr(got, one["x"][0]) > 80
    )


def test_it_cannot_under_noise():
    found = []
    for seed in range(10):
        one = person(seed)
        grads = privacy.clip_by_norm(gradient_of(one), 1.0)
        noisy = fc.uplink.roundtrip(privacy.local_gaussian(1.0, 1.0), grads, jax.random.key(seed))
        found.append(psnr(inverted(noisy), one["x"][0]))
    assert np.mean(found) < 10


def test_a_sum_of_three_does_not_hide_them_by_itself():
    """Less exact than of one, but who alone has a class is mostly what its row of the weights is made of:
    sums promise little."""
    for seed in (0, 1, 2):
        people = [person(3 * seed + i) for i in range(3)]
        total = gradient_of(people[0])
        for one in people[1:]:
            total = tree.add(total, gradient_of(one))
        found = [psnr(inverted(total), one["x"][0]) for one in people]
        assert 20 < max(found) < 25 and np.median(found) < 10


def test_a_sum_of_three_batches_of_eight_tells_an_input_no_better_than_a_guess():
    """By each row of the weights, the nearest one to an input. A guess of one half for every number has 11 to
    12 dB."""
    found, guessed = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, y = (
            rng.uniform(size=(3, 8, FEATURES)).astype(np.float32),
            rng.integers(0, CLASSES, (3, 8)).astype(np.int32),
        )
        grads = [gradient_of({"x": x[k], "y": y[k]}) for k in range(3)]
        total = jax.tree.map(lambda *each: np.sum(np.stack(each), axis=0, dtype=np.float64), *grads)
        rows = (total["w"] / total["b"]).T
        found.append(max(psnr(row, one) for row in rows for one in x.reshape(24, FEATURES)))
        guessed.append(max(psnr(np.full(FEATURES, 0.5), one) for one in x.reshape(24, FEATURES)))
    assert np.mean(found) < np.mean(guessed) + 1 < 14


def test_a_sum_of_three_with_noise_of_the_size_of_the_clip_hides_all():
    found = []
    for seed in range(10):
        people = [person(3 * seed + i) for i in range(3)]
        clipped = [privacy.clip_by_norm(gradient_of(one), 1.0) for one in people]
        total = privacy.clipping.add_normal(
            jax.tree.map(lambda *x: sum(x), *clipped), 1.0, jax.random.key(seed)
        )
        found += [psnr(inverted(total), one["x"][0]) for one in people]
    assert max(found) < 10


def shadow(noise, members=16, seed=0):
    """(losses of those trained on, of others) after many steps on random labels, which can only be learnt by
    heart."""
    rng = np.random.default_rng(seed)
    x, y = (
        rng.normal(size=(2, members, FEATURES)).astype(np.float32),
        rng.integers(0, 2, (2, members)).astype(np.int32),
    )
    task = fc.models.logistic(FEATURES, 2)
    made = privacy.noisy_gradient(1.0, noise, members) if noise else gradient
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.5), gradient=made))
    sim = fc.Loops(composed, fc.Clients.from_list([{"x": x[0], "y": y[0]}]), batch_size=members, epochs=30)
    state, _ = sim.run(sim.init(jax.random.key(seed)), [0])
    return [
        np.asarray(task.loss(state.params, fc.Batch({"x": a, "y": b}, jnp.ones(members)), jax.random.key(0)))
        for a, b in zip(x, y, strict=True)
    ]


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 0.9, 1.0), (20.0, 0.3, 0.7)])
def test_who_was_trained_on_shows_in_losses_unless_gradients_have_noise(noise, low, high):
    members, others = zip(*(shadow(noise, seed=seed) for seed in range(3)), strict=True)
    assert low <= audit.auc(-np.concatenate(members), -np.concatenate(others)) <= high
