"""The noise of differential privacy: the cipher's published answers, the normal distribution out to its tails,
and the same numbers in any number of lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_core.privacy import normal

KEY = jax.random.key(7)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_cipher_gives_the_answers_of_random123(key, counter, expected):
    words = normal.threefry2x32(*(jnp.uint32(x) for x in (*key, *counter)))
    assert tuple(int(x) for x in words) == expected


def test_each_number_is_that_of_its_counter_by_the_textbook_formula():
    """Against jax.random's own threefry (`fold_in` by d is its word for the counter (0, d)) and Box-Muller in
    float64."""
    folded = jax.random.key_data(jax.random.fold_in(KEY, 12345))
    key = [jnp.uint32(x) for x in jax.random.key_data(KEY)]
    assert tuple(folded) == normal.threefry2x32(*key, jnp.uint32(0), jnp.uint32(12345))

    first, second = normal.normals(KEY, [(3, 600), (5,)])
    rows = np.repeat([1, 2, 3, 4], [600, 600, 600, 5]).astype(np.uint32)
    columns = np.concatenate([np.tile(np.arange(600), 3), np.arange(5)]).astype(np.uint32)
    a, b = (np.float64(x) for x in normal.threefry2x32(*key, jnp.asarray(rows), jnp.asarray(columns)))
    radius = np.sqrt(-2 * np.log((a + 0.5) * 2.0**-32))
    # The angle: two bits for the quarter, and 30 for a signed place in it.
    quarter, place = np.divmod(b, 2.0**30)
    turn = (place - np.where(place >= 2.0**29, 2.0**30, 0)) * 2.0**-30 * np.pi / 2
    expected = radius * np.where(quarter % 2 == 1, np.sin(turn), np.cos(turn)) * np.where(quarter >= 2, -1, 1)
    np.testing.assert_allclose(np.concatenate([np.ravel(first), second]), expected, atol=2e-6)


@pytest.fixture(scope="module")
def sample():
    return np.asarray(jax.jit(lambda key: normal.normals(key, [(2000, 1000)])[0])(KEY))


def test_a_sample_is_normal(sample):
    x = sample.ravel()[:1_000_000].astype(np.float64)
    assert x.std() == pytest.approx(1, abs=0.005) and stats.kstest(x, "norm").pvalue > 1e-3
    assert np.mean(x**4) == pytest.approx(3, abs=5 * np.sqrt(96 / len(x)))
    for bound in (2, 3, 4):
        expected = len(x) * 2 * stats.norm.sf(bound)
        assert np.sum(np.abs(x) > bound) == pytest.approx(expected, abs=5 * np.sqrt(expected))


def test_the_tails_end_where_the_words_do():
    """The smallest word gives 6.76 deviations; and with the first word near it, numbers are those of the
    tail, none of which is missing."""
    a, b = jnp.zeros(4, jnp.uint32), jnp.asarray(np.arange(4) << 30, jnp.uint32)
    np.testing.assert_allclose(
        normal.box_muller(a, b), np.array([1, 0, -1, 0]) * np.sqrt(2 * 33 * np.log(2)), atol=1e-6
    )
    words = jnp.arange(200_000, dtype=jnp.uint32)
    radii = np.asarray(normal.box_muller(words, jnp.zeros_like(words)), np.float64)
    np.testing.assert_allclose(np.exp(-(radii**2) / 2), (np.arange(200_000) + 0.5) * 2.0**-32, rtol=2e-5)
    ends = normal.box_muller(jnp.full(4, 2**32 - 1, jnp.uint32), b)
    assert np.isfinite(ends).all() and np.abs(ends).max() < 1e-3


def test_neighbours_leaves_and_keys_do_not_go_together(sample):
    other = np.asarray(normal.normals(jax.random.fold_in(KEY, 1), [(2000, 1000)])[0])
    pairs = {
        "columns": (sample[:, 1:], sample[:, :-1]),
        "rows": (sample[1:], sample[:-1]),
        "keys": (sample, other),
        "leaves": normal.normals(KEY, [(500, 1000), (500, 1000)]),
    }
    for name, (x, y) in pairs.items():
        assert abs(np.corrcoef(np.ravel(x), np.ravel(y))[0, 1]) < 0.005, name
        assert abs(np.corrcoef(np.ravel(x) ** 2, np.ravel(y) ** 2)[0, 1]) < 0.005, name


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_equal_keys_give_equal_noise_in_any_number_of_lanes(lanes):
    shapes = [(), (3,), (17, 5), (4, 3, 70), (5000,)]
    keys = jax.random.split(KEY, lanes)
    together = jax.jit(jax.vmap(lambda key: normal.normals(key, shapes)))(keys)
    for lane, key in enumerate(keys):
        for x, y in zip(normal.normals(key, shapes), together, strict=True):
            assert x.dtype == jnp.float32
            np.testing.assert_allclose(x, y[lane], atol=1e-6)


def test_long_vectors_and_odd_shapes_have_a_counter_for_each_number():
    for shape in ((5000,), (3, 4097), (70, 3, 11), (1,), (0,)):
        x = np.asarray(normal.normals(KEY, [shape])[0])
        # Two in 10,000 may be equal by chance, as float32 goes.
        assert x.shape == shape and len(np.unique(x)) >= 0.999 * x.size


def test_keys_of_another_generator_draw_too():
    x = np.asarray(normal.normals(jax.random.key(0, impl="rbg"), [(300, 300)])[0])
    assert x.std() == pytest.approx(1, abs=0.02)
