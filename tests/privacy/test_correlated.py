"""Noise that rounds share is C^-1 z to the last digits, as small in sums as published, and counted as what it
tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core import privacy
from fedjax_core.privacy import correlated
from tests.contracts import assert_equal
from tests.privacy.test_client_level import clients, composed, private


@pytest.mark.parametrize(
    ("rounds", "expected"), [(64, 2.388848), (256, 2.831050), (1024, 3.272554), (2048, 3.493229)]
)
def test_the_square_root_of_prefix_sums(rounds, expected):
    c = correlated.square_root(rounds)
    assert c @ c == pytest.approx(expected, abs=1e-6) == correlated.sensitivity(c, rounds) ** 2
    # 10.70961 of 1024 rounds
    assert correlated.errors(c, rounds)[-1] * (c @ c) == pytest.approx(expected**2, rel=1e-6)
    matrix = np.tril(c[np.subtract.outer(np.arange(rounds), np.arange(rounds)).clip(0)])[:40, :40]
    assert np.allclose(matrix @ matrix, np.tril(np.ones((40, 40))))


@pytest.mark.parametrize(("bands", "expected"), [(1, 512.5), (4, 133.71), (16, 40.231), (64, 16.532)])
def test_the_best_bands(bands, expected):
    c = correlated.band(bands, 1024)
    assert correlated.errors(c, 1024).mean() * np.dot(c, c) == pytest.approx(expected, rel=1e-4) and np.dot(
        c, c
    ) == pytest.approx(1)


# What jax-privacy 2.0 finds for 1024 rounds, to six digits: (weights, decays, loss).
BUFFERS = [
    ((0.146771,), (0.993611,), 14.9374),
    ((0.0666384, 0.319272), (0.998112, 0.908825), 11.0875),
    ((0.0444411, 0.120545, 0.311390), (0.998973, 0.978560, 0.743283), 10.7427),
    ((0.0371570, 0.0689733, 0.160051, 0.230559), (0.999229, 0.988901, 0.921833, 0.562788), 10.7122),
]


@pytest.mark.parametrize(("weights", "decays", "expected"), BUFFERS)
def test_buffers_lose_little(weights, decays, expected):
    c = correlated.buffered(weights, decays, 1024)
    assert correlated.errors(c, 1024)[-1] * (c @ c) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_library_finds_these_buffers(number):
    pytest.importorskip("jax_privacy")
    weights, decays, sensitivity = correlated.buffers_for(1024, number)
    c = correlated.buffered(weights, decays, 1024)
    assert correlated.errors(c, 1024)[-1] * sensitivity**2 == pytest.approx(BUFFERS[number - 1][2], rel=1e-4)


def streamed(stage, rounds, shape=(5,)):
    """[rounds, ...] what the stage adds in each round, and the fresh noise of it."""
    zeros, state = jnp.zeros(shape), stage.init(jax.ShapeDtypeStruct(shape, jnp.float32))
    here, key = jnp.ones(1, bool), jax.random.key(0)

    @jax.jit
    def one(state, secret):
        return stage.finish(
            state, zeros, fc.uplink.Info(jnp.float32(0), jnp.float32(0), key, secret, here, here), key
        )

    added = []
    for secret in jax.random.split(jax.random.key(1), rounds):
        value, state = one(state, secret)
        added.append(np.asarray(value, np.float64))
    plain = privacy.gaussian(1.0, 1.0, 1)
    fresh = [
        plain.finish((), zeros, fc.uplink.Info(jnp.float32(0), jnp.float32(0), key, secret, here, here), key)[
            0
        ]
        for secret in jax.random.split(jax.random.key(1), rounds)
    ]
    return np.stack(added), np.asarray(np.stack(fresh), np.float64)


@pytest.mark.parametrize("name", ["bands", "buffers"])
def test_streamed_noise_is_that_of_the_dense_matrix(name):
    rounds, (weights, decays, _) = 30, BUFFERS[1]
    if name == "bands":
        stage, c = correlated.banded_gaussian(1.0, 1.0, 1, bands=4, rounds=rounds), correlated.band(4, rounds)
    else:
        stage, c = (
            correlated.buffered_gaussian(1.0, 1.0, 1, weights, decays),
            correlated.buffered(weights, decays, rounds),
        )
    row = np.zeros(rounds)
    row[: len(c)] = c
    dense = np.tril(row[np.subtract.outer(np.arange(rounds), np.arange(rounds)).clip(0)])
    added, fresh = streamed(stage, rounds)
    assert np.allclose(dense @ added, fresh, atol=1e-5) and np.allclose(
        added, np.linalg.solve(dense, fresh), atol=1e-5
    )


def test_the_model_has_less_noise_for_the_same_noise_in_a_round():
    shared, fresh = streamed(correlated.banded_gaussian(1.0, 1.0, 1, bands=8, rounds=64), 64, shape=(4000,))
    assert shared.sum(axis=0).std() < 0.5 * fresh.sum(axis=0).std()
    assert shared.sum(axis=0).var() == pytest.approx(
        correlated.errors(correlated.band(8, 64), 64)[-1], rel=0.1
    )


def test_a_clients_rounds_are_counted_where_it_has_its_turn():
    made = privacy.client_level(
        population=1000, cohort=10, rounds=1024, clip=1.0, noise=1.0, delta=1e-6, bands=4
    )
    assert made.epsilon() == pytest.approx(4.87724, abs=1e-3) and made.rate == 0.04
    assert (
        made.epsilon(rounds=4) == pytest.approx(made.epsilon(rounds=1))
        and made.epsilon(rounds=5) > made.epsilon(rounds=4) + 0.1
    )


def test_a_client_that_comes_again_is_counted_by_how_often():
    c = correlated.square_root(16)
    whole = np.tril(c[np.subtract.outer(np.arange(16), np.arange(16)).clip(0)])
    for apart in (16, 5, 2):
        longest = max(np.linalg.norm(whole[:, start::apart].sum(axis=1)) for start in range(apart))
        assert correlated.sensitivity(c, 16, apart) == pytest.approx(longest)


def test_a_run_that_goes_on_has_the_noise_of_one_that_was_not_interrupted(tmp_path):
    made = private(cohort=3, bands=2, rounds=4)
    sim = fc.Simulator(composed(made), clients(), batch_size=4, lanes=2)
    whole = fc.fit(sim, 4, made.cohorts)
    fc.fit(sim, 2, made.cohorts, tmp_path)
    assert_equal(fc.fit(sim, 4, made.cohorts, tmp_path).state, whole.state)


def test_what_the_server_keeps_of_the_noise_is_shown_to_no_site():
    from fedjax_core.sites.study import Study

    with pytest.raises(ValueError, match="keeps at the server what tells the noise"):
        Study(composed(private(cohort=3, bands=2)), 4)


@pytest.mark.parametrize(
    ("weights", "decays"), [((), ()), ((0.1,), (1.0,)), ((-0.1,), (0.5,)), ((0.1, 0.1), (0.5,))]
)
def test_buffers_that_make_no_sense(weights, decays):
    with pytest.raises(ValueError, match="buffers have a weight"):
        correlated.buffered_gaussian(1.0, 1.0, 1, weights, decays)
