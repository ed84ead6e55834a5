"""Lossy stages against what their papers say they lose, on average and at most; and the bytes that they put
on the wire."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats

from fedjax_core import Simulator, algorithms, compose, tree, uplink
from fedjax_core.uplink.base import alone
from fedjax_core.uplink.eden import LEVELS
from fedjax_core.uplink.packed import pack, unpack
from fedjax_core.uplink.rotation import back, hadamard, to_rows, turn
from tests.quadratic import CLIENTS, TASK

X = np.arange(1.0, 1025.0)
DRAWS = 4000


def draws(stage, x, number, seed=0):
    """What the server reads of one vector sent so often: [number, d] float64."""
    sent = jax.jit(jax.vmap(lambda x, key: uplink.roundtrip(stage, x, key), in_axes=(None, 0)))
    return np.asarray(
        sent(jnp.asarray(x, jnp.float32), jax.random.split(jax.random.key(seed), number)), np.float64
    )


def error(came, x):
    """The mean over draws of |came - x|^2 / |x|^2."""
    return float(((came - x) ** 2).sum(1).mean() / (x**2).sum())


def two_neighbours(x, width, low=0.0):
    """Of rounding by lot to multiples of `width` above `low`: each number's exact variance."""
    p = np.mod((x - low) / width, 1)
    return width**2 * p * (1 - p)


NORM, RANGE = np.linalg.norm(X), X.max() - X.min()
# (stage, the exact variance of each of 1, 2, ..., 1024, their sum by |x|^2 as a published number)
UNBIASED = {
    "qsgd 1": (uplink.qsgd(1), two_neighbours(X, NORM), 26.7196),
    "qsgd 4": (uplink.qsgd(4), two_neighbours(X, NORM / 4), 5.92989),
    "qsgd 16": (uplink.qsgd(16), two_neighbours(X, NORM / 16), 0.732473),
    "terngrad": (uplink.terngrad(), X * (X.max() - X), 0.499268),
    "k-level 2": (uplink.k_level(2), two_neighbours(X, RANGE, 1), 0.497807),
    "k-level 4": (uplink.k_level(4), two_neighbours(X, RANGE / 3, 1), 0.0553114),
    "k-level 16": (uplink.k_level(16), two_neighbours(X, RANGE / 15, 1), 0.00221246),
    "k-level 256": (uplink.k_level(256), two_neighbours(X, RANGE / 255, 1), 7.65556e-6),
    "randk": (uplink.randk(0.25), 3 * X**2, 3.0),
}


@pytest.mark.proves("qsgd", "terngrad", "k_level", "randk", by="closed form: the exact variance, and no bias")
@pytest.mark.parametrize("name", UNBIASED)
def test_the_error_is_exactly_what_it_should_be_and_the_mean_is_right(name):
    stage, variance, known = UNBIASED[name]
    exact = float(variance.sum() / (X**2).sum())
    assert exact == pytest.approx(known, rel=1e-4)
    came = draws(stage, X, DRAWS)
    assert error(came, X) == pytest.approx(exact, rel=0.02)
    off = (came.mean(0) - X) / np.maximum(np.sqrt(variance / DRAWS), 1e-6 * X.max())  # in standard errors
    assert abs(off.sum()) / np.sqrt(len(X)) < 4
    # whose smallest numbers come through once in many draws, and then far off
    if name not in (
        "qsgd 1",
        "qsgd 4",
    ):
        assert np.abs(off).max() < 5


@pytest.mark.proves("topk", by="published numbers, and the bound where it is reached")
def test_topk_keeps_the_largest_of_each_leaf():
    assert error(draws(uplink.topk(102 / 1024), X, 1), X) == pytest.approx(0.730068, rel=1e-5)
    normal = np.random.default_rng(0).normal(size=200_000)
    for share, known in ((0.01, 0.9155), (0.1, 0.5607), (0.25, 0.2764)):
        assert error(draws(uplink.topk(share), normal, 1), normal) == pytest.approx(known, rel=0.02)
    same = np.where(np.arange(50) % 2, 3.0, -3.0)
    # the bound, where all are of one size
    assert error(draws(uplink.topk(0.3), same, 1), same) == pytest.approx(1 - 15 / 50)


@pytest.mark.proves("eden", by="closed form: D / (1 - D) of Lloyd and Max's levels")
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_eden_loses_what_its_levels_do_of_normal_numbers(bits):
    known = {1: 0.5708, 2: 0.1331, 3: 0.03578, 4: 0.00959}[bits]
    levels = np.array([*(-np.array(LEVELS[bits])[::-1]), *LEVELS[bits]])
    edges = np.array([-np.inf, *(levels[1:] + levels[:-1]) / 2, np.inf])
    distortion = 0.0
    for low, high, level in zip(edges[:-1], edges[1:], levels, strict=True):
        mass = scipy.stats.norm.cdf(high) - scipy.stats.norm.cdf(low)
        centre = (scipy.stats.norm.pdf(low) - scipy.stats.norm.pdf(high)) / mass
        # Lloyd and Max: each level is the mean of what is nearest to it
        assert level == pytest.approx(centre, abs=2e-4)
        distortion += scipy.integrate.quad(
            lambda z, level=level: (z - level) ** 2 * scipy.stats.norm.pdf(z), low, high
        )[0]
    assert distortion / (1 - distortion) == pytest.approx(known, rel=2e-3)
    for x in (
        np.arange(1.0, 16385.0),
        np.exp(2 * np.random.default_rng(1).normal(size=16384)),
        np.eye(1, 16384)[0],
    ):
        assert error(draws(uplink.eden(bits), x, 8), x) == pytest.approx(known, rel=0.02)
    assert uplink.bits(uplink.eden(bits), jnp.zeros(16384)) == 16384 * bits + 2 * 32 + 32


@pytest.mark.parametrize(("bits", "known"), [(1, 0.0112), (2, 0.00266), (4, 0.00019)])
def test_the_mean_of_many_clients_divides_edens_error(bits, known):
    x = np.random.default_rng(2).normal(size=4096)
    came = draws(uplink.eden(bits), x, 20 * 50).reshape(20, 50, -1).mean(1)
    assert error(came, x) == pytest.approx(known, rel=0.05)


@pytest.mark.proves("drive", by="closed form: pi / 2 - 1, and 1 - 2 / pi biased")
def test_drive_by_both_scales():
    x = np.random.default_rng(3).exponential(size=16384)
    assert error(draws(uplink.drive(), x, 20), x) == pytest.approx(np.pi / 2 - 1, rel=0.02)
    assert error(draws(uplink.drive(unbiased=False), x, 20), x) == pytest.approx(1 - 2 / np.pi, rel=0.02)
    came = draws(uplink.drive(), X, 500)
    off = np.abs(came.mean(0) - X) / (came.std(0) / np.sqrt(500))
    assert (off > 4).mean() < 3e-3 and off.max() < 5.5


def test_parity_with_fedjax():
    constant = jnp.full(5, 2.5)
    assert uplink.roundtrip(uplink.k_level(2), constant, jax.random.key(0)).tolist() == [2.5] * 5
    came = uplink.roundtrip(uplink.drive(rotate=False), jnp.array([1.0, -2.0, 3.0]), jax.random.key(0))
    np.testing.assert_allclose(came, np.array([7, -7, 7]) / 3, rtol=1e-6)
    three = jnp.zeros(3)  # of three weights: a byte of signs, and two numbers of 4 bytes
    assert uplink.bits(uplink.drive(), three) == 8 + 2 * 32
    assert uplink.bits(uplink.rotated(uplink.k_level(2)), three) == 8 + 3 * 32


@pytest.mark.proves("sign", by="closed form: its error on any vector")
def test_scaled_sign_loses_what_its_formula_says():
    for x in (X, np.random.default_rng(4).normal(size=500)):
        lost = 1 - np.abs(x).sum() ** 2 / (len(x) * (x**2).sum())
        assert error(draws(uplink.sign(), x, 1), x) == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize("size", [1, 3, 64, 1000, 20_000])
def test_a_rotation_keeps_norms_and_is_undone(size):
    rows = to_rows(jnp.asarray(np.random.default_rng(size).normal(size=size), jnp.float32))
    assert rows.size < size + min(8192, size) + 1
    np.testing.assert_allclose(hadamard(hadamard(rows)), rows, atol=1e-5)
    turned = turn(rows, jnp.uint32(7))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5)
    np.testing.assert_allclose(back(turned, jnp.uint32(7)), rows, atol=1e-5)


def test_hadamard_is_scipys():
    expected = scipy.linalg.hadamard(16) / 4
    np.testing.assert_allclose(hadamard(jnp.eye(16)), expected, atol=1e-6)


def test_rotated_two_levels_lose_no_more_than_their_bound():
    spiky = np.zeros(1024)
    spiky[:3] = [100, -50, 20]
    assert error(draws(uplink.rotated(uplink.k_level(2)), spiky, 200), spiky) <= 2 * np.log(1024) + 2
    assert error(draws(uplink.rotated(uplink.k_level(16)), X, 200), X) <= (2 * np.log(1024) + 2) / 15**2
    came = draws(uplink.rotated(uplink.k_level(4)), spiky, 500)
    assert np.abs(came.mean(0) - spiky).max() < 6 * came.std(0).max() / np.sqrt(500)


@pytest.mark.parametrize("values", [2, 3, 4, 5, 8, 9, 16, 17, 255, 256, 1000, 2**13, 2**20])
def test_packed_numbers_come_back_and_take_few_bytes(values):
    levels = np.random.default_rng(values).integers(0, values, 1001).astype(np.uint32)
    words = pack(jnp.asarray(levels), values)
    np.testing.assert_array_equal(unpack(words, values, len(levels)), levels)
    assert 8 * words.nbytes <= 1.17 * np.log2(values) * len(levels) + 8 * max(4, np.log2(values))


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (uplink.k_level(16), 35 * 4 + 4 + 4 * 32),  # of 5 numbers of 4 bits, half a byte is empty
        (uplink.qsgd(1), (2 + 1) * 32 + 2 * 32),  # 30 and 5 numbers of three values, 20 in a word
        (uplink.sign(), 32 + 8 + 2 * 32),
        # 3 of 30 with places of 5 bits in a multiple of 8 numbers, 1 of 5
        (
            uplink.topk(0.1),
            3 * 32 + 16 + 1 * 32 + 8,
        ),
        (uplink.randk(0.1), 3 * 32 + 1 * 32 + 2 * 32),
        (uplink.powersgd(1), 32 * (10 + 3) + 5 * 32),
        (uplink.count_sketch(2, 7), 14 * 32 + 32),
        (uplink.half(), 35 * 16),
        (uplink.chain(), 35 * 32),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_bits_are_those_of_the_message(stage, expected):
    update = {"w": jnp.ones((10, 3)), "b": jnp.ones(5)}
    sent, _ = stage.encode(stage.init(update), stage.init_client(update), update, alone(jax.random.key(0)))
    assert uplink.bits(stage, update) == 8 * tree.nbytes(sent)
    if stage.name != "topk":
        assert uplink.bits(stage, update) == expected


@pytest.mark.proves("powersgd", "low_rank", by="identity: exact up to the rank; the best of it by NumPy")
def test_low_rank_is_exact_up_to_its_rank():
    rng = np.random.default_rng(0)
    two = {
        "w": rng.normal(size=(12, 2)) @ rng.normal(size=(2, 20)),
        "c": rng.normal(size=(3, 3, 4, 1)) * rng.normal(size=(1, 1, 1, 40)),
    }
    two = {**two, "b": rng.normal(size=7)}
    two = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), two)
    for stage in (uplink.powersgd(2), uplink.low_rank(2)):
        came = uplink.roundtrip(stage, two, jax.random.key(0))
        for name in two:
            np.testing.assert_allclose(
                came[name], two[name], atol=2e-5 * float(jnp.abs(two[name]).max()) + 1e-5
            )
    best = uplink.roundtrip(uplink.low_rank(1), two["w"], jax.random.key(0))
    sizes = np.linalg.svd(np.asarray(two["w"], np.float64))[1]
    assert float(tree.norm(tree.sub(two["w"], best))) == pytest.approx(sizes[1], rel=1e-4)
    stage, own = uplink.powersgd(1), uplink.powersgd(1).init_client(two["w"])
    for _ in range(30):  # the power method ends at the best of that rank
        sent, own = stage.encode((), own, two["w"], alone(jax.random.key(0)))
    assert float(tree.norm(tree.sub(two["w"], stage.expand((), sent, two["w"])))) == pytest.approx(
        sizes[1], rel=1e-3
    )


@pytest.mark.proves("count_sketch", by="closed form: no bias, and the variance of a row")
def test_a_sketch_is_right_on_average_within_its_variance_and_adds_up():
    x = np.random.default_rng(5).normal(size=300)
    came = draws(uplink.count_sketch(1, 50, "mean"), x, 2000)
    assert came.var(axis=0).max() <= 1.15 * (x**2).sum() / 50
    assert (np.abs(came.mean(0) - x) / (came.std(0) / np.sqrt(2000))).max() < 5
    stage, sender = uplink.count_sketch(3, 20), alone(jax.random.key(1))
    one, other = (jnp.asarray(np.random.default_rng(i).normal(size=40), jnp.float32) for i in (6, 7))
    tables = [stage.encode((), (), x, sender)[0].table for x in (one, other, one + other)]
    np.testing.assert_allclose(tables[0] + tables[1], tables[2], atol=1e-5)


def optimise(stage, rounds=300, lr=0.3):
    """How far from the optimum gradient descent ends on three clients' quadratics, their gradients sent
    through `stage`."""
    rng = np.random.default_rng(0)
    targets = jnp.asarray(rng.normal(size=(3, 20)) * 3, jnp.float32)
    state, own = (
        stage.init(targets[0]),
        jax.tree.map(lambda x: jnp.stack([x] * 3), stage.init_client(targets[0])),
    )
    one = jnp.float32(3)

    @jax.jit
    def step(x, state, own):
        grads = x[None] - targets
        sent, own = jax.vmap(lambda o, g: stage.encode(state, o, g, alone(jax.random.key(0))))(own, grads)
        mean = jnp.mean(jax.vmap(lambda m: stage.expand(state, m, grads[0]))(sent), axis=0)
        key, here = jax.random.key(0), jnp.ones(3, bool)
        value, state = stage.finish(state, mean, uplink.Info(one, one, key, key, here, here), key)
        return x - lr * value, state, own

    x = jnp.zeros(20)
    for _ in range(rounds):
        x, state, own = step(x, state, own)
    return float(jnp.linalg.norm(x - targets.mean(0)))


@pytest.mark.proves("ef21", by="closed form: the optimum of a quadratic where top-k stalls")
def test_ef21_reaches_the_optimum_where_top_k_alone_stalls():
    assert optimise(uplink.topk(0.05)) > 0.1
    assert optimise(uplink.ef21(uplink.topk(0.05)), rounds=600, lr=0.05) < 1e-4
    assert optimise(uplink.ef21(uplink.topk(0.05), population=3), rounds=600, lr=0.05) < 1e-4


def test_what_ef21_believes_nears_the_truth_by_its_rate():
    """At a fixed point of a model |g - u|^2 shrinks by 1 - k / d a step at least."""
    stage, u = (
        uplink.ef21(uplink.topk(0.1)),
        jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.float32),
    )
    own, apart = stage.init_client(u), [float(jnp.sum(u**2))]
    for _ in range(8):
        _, own = stage.encode(stage.init(u), own, u, alone(jax.random.key(0)))
        apart.append(float(jnp.sum((own.believed - u) ** 2)))
    assert all(after <= (1 - 5 / 50) * before * (1 + 1e-6) for before, after in pairwise(apart))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uplink.k_level(1), "2 <= levels <= 65536, got 1"),
        (lambda: uplink.qsgd(0), "1 <= levels <= 32767, got 0"),
        (lambda: uplink.eden(5), "1, 2, 3 or 4 bits, got 5"),
        (lambda: uplink.topk(0), "topk needs a fraction .* got 0"),
        (lambda: uplink.randk(1.5), "randk needs a fraction .* got 1.5"),
        (lambda: uplink.powersgd(0), "powersgd needs a rank >= 1"),
        (lambda: uplink.count_sketch(0, 5), "rows >= 1 and width >= 1"),
        (lambda: uplink.ef21(uplink.secure(1.0)), r"ef21\(\) keeps what the server reads"),
        (lambda: uplink.ef21(uplink.topk(0.1), population=0), "ef21 needs the population"),
    ],
)
def test_settings_of_lossy_stages_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_round_tells_the_bits_of_those_who_report():
    stage, algorithm = uplink.k_level(4), algorithms.fedavg(TASK, optax.sgd(0.1))
    sim = Simulator(compose(algorithm, uplink=stage, downlink=uplink.half()), CLIENTS, batch_size=3, epochs=1)
    _, seen = sim.run(sim.init(jax.random.key(0)), [0, 2])
    assert float(seen["bits_up"]) == 2 * uplink.bits(stage, jnp.zeros(1)) == 2 * (8 + 64)
    assert float(seen["bits_down"]) == 2 * 16
