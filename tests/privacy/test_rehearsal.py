"""A rehearsed round has the signal to noise of the large one, and says nowhere that it keeps a promise."""

import logging

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import privacy

EARNEST = privacy.client_level(population=100_000, cohort=1000, rounds=10, clip=1.0, noise=1.5, delta=1e-6)


def test_the_noise_is_found_for_the_large_cohort_and_scaled_by_the_share(caplog):
    caplog.set_level(logging.WARNING)
    small = privacy.rehearsal(EARNEST, cohort=50)
    assert (
        small.noise == pytest.approx(1.5 * 0.05)
        and EARNEST.rate == 1000 / 100_000
        and small.cohorts.rate == 50 / 100_000
    )
    assert "not a guarantee" in caplog.text and "not a guarantee" in small.uplink.name
    assert small.uplink.promises.account is None and not hasattr(small, "epsilon")
    in_mean = small.noise / small.cohort
    assert in_mean == pytest.approx(EARNEST.noise / EARNEST.cohort)  # of what the server adds to the model


def test_fit_says_no_epsilon_of_it():
    earnest = privacy.client_level(population=12, cohort=8, rounds=4, clip=1.0, noise=0.5, delta=1e-3)
    small = privacy.rehearsal(earnest, cohort=4)
    composed = fc.compose(
        fc.algorithms.fedavg(fc.models.linear(features=2), optax.sgd(0.1)),
        uplink=small.uplink,
        aggregator=small.aggregator,
    )
    rows = [{"x": np.ones((2, 2), np.float32), "y": np.ones(2, np.float32)}] * 12
    history = fc.fit(
        fc.Loops(composed, fc.Clients.from_list(rows), batch_size=2), 1, small.cohorts, key=jax.random.key(0)
    )
    assert "epsilon" not in history.records[0]


def test_what_cannot_be_rehearsed():
    with pytest.raises(ValueError, match="at most the cohort in earnest, 1000"):
        privacy.rehearsal(EARNEST, cohort=1001)
    with pytest.raises(ValueError, match="rehearse without"):
        privacy.rehearsal(
            privacy.client_level(
                population=100, cohort=5, rounds=9, clip=1.0, noise=1.0, delta=1e-3, bands=2
            ),
            cohort=2,
        )
