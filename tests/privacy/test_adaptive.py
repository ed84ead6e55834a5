"""An adaptive clip follows the clients as published, and its counting shares the noise of the updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core import privacy
from fedjax_core.privacy.adaptive import adaptive_gaussian
from fedjax_core.uplink.base import alone


def run(norms, noise, rounds, clip):
    """(the clips of all rounds, of the last round the share of these norms that is no longer than it)."""
    shape, here, rng = jax.ShapeDtypeStruct((3,), jnp.float32), jnp.ones(1, bool), np.random.default_rng(0)
    stage = adaptive_gaussian(clip, noise, cohort=len(norms))
    rows = rng.normal(size=(len(norms), 3))
    rows = jnp.asarray(norms[:, None] * rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)

    @jax.jit
    def one(state, secret):
        def send(row):
            return stage.expand(state, stage.encode(state, (), row, alone(jax.random.key(0)))[0], shape)

        total = jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(send)(rows))
        info = fc.uplink.Info(jnp.float32(0), jnp.float32(0), jax.random.key(1), secret, here, here)
        return stage.finish(state, total, info, jax.random.key(2))[1]

    clips = [stage.init(shape)]
    for secret in jax.random.split(jax.random.key(3), rounds):
        clips.append(one(clips[-1], secret))
    return np.asarray(clips, np.float64), float(np.mean(norms <= clips[-1]))


def test_counting_takes_a_little_of_the_noise_and_too_few_clients_cannot_count():
    assert privacy.adaptive(0.1).noise_of_updates(1.0, cohort=100) == pytest.approx(1.005038, abs=1e-6)
    with pytest.raises(ValueError, match="take a cohort of more than 10 clients"):
        privacy.adaptive(0.1).noise_of_updates(1.0, cohort=10)
    with pytest.raises(ValueError, match="too much for counting"):
        made = privacy.client_level(
            population=100, cohort=10, rounds=1, clip=privacy.adaptive(0.1), noise=1.0, delta=1e-3
        )
        made.uplink  # noqa: B018


def test_it_shrinks_by_a_tenth_where_all_are_within_it():
    clips, _ = run(np.full(100, 1e-9), 0.0, 10, privacy.adaptive(0.1, counting=1e-9))
    assert clips == pytest.approx(0.1 * np.exp(-0.1 * np.arange(11)), rel=1e-5)


@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_at_rest_the_share_within_it_is_the_quantile(quantile):
    norms = np.random.default_rng(1).lognormal(size=2000)
    _, within = run(norms, 1.0, 120, privacy.adaptive(0.1, quantile=quantile))
    assert within == pytest.approx(quantile, abs=0.03)
