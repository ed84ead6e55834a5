"""A federation is the simulator with its clients elsewhere: the same numbers, for all that the zoo has, and after any interruption."""

import jax
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.metrics import summary
from tests.sites.federations import federation, simulator, whole
from tests.test_contracts import assert_close
from tests.zoo import ZOO

COHORTS = [[0, 1, 2, 3], [3, 0, 1], [2, 1, 0, 3], [0, 2], [1, 3, 2, 0]]
ZOO_HERE = [
    name for name in ZOO if name not in ("logistic", "fedyogi", "clip", "quantize", "linen dropout", "linear")
]  # others have it all


@pytest.mark.parametrize("name", ZOO_HERE)
def test_sites_end_where_the_simulator_ends(name):
    entry = ZOO[name]
    composed = entry.build()
    sim = simulator(composed, entry.data)
    expected = sim.init(jax.random.key(1))
    with federation(composed, entry.data) as (fed, sites, _):
        state = fed.init(jax.random.key(1))
        for cohort in COHORTS:
            state, got = fed.run(state, cohort)
            expected, seen = sim.run(expected, cohort)
        assert_close(whole(fed, sites, state), expected)
        numbers = summary(got)
        assert numbers == pytest.approx({**summary(seen), "missing": 0.0}, rel=1e-5)
        at_sites, at_hand = fed.evaluate(state), sim.evaluate(expected)
    assert at_sites.pooled == pytest.approx(at_hand.pooled, rel=1e-5)
    for metric, values in at_hand.clients.items():
        np.testing.assert_allclose(at_sites.clients[metric], values, rtol=1e-5)


def fit(fed, rounds, run_dir):
    return fc.fit(
        fed,
        rounds,
        cohorts=lambda r: COHORTS[r],
        run_dir=run_dir,
        key=jax.random.key(1),
        checkpoint_every=2,
        evaluate_every=2,
        progress=False,
    )
