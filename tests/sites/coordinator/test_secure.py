"""Secure aggregation at real sites: the sum is that of lanes to the last bit, and the coordinator is sent nothing else."""

import jax
import numpy as np
import pytest

import fedjax_core as fc
from tests.sites.federations import NAMES, federation, simulator
from tests.zoo import fedavg

RING = fc.uplink.secure(bound=0.5, bits=12, weights=2**8)
SECURE = fedavg(uplink=fc.uplink.chain(fc.uplink.clip(0.5), RING), aggregator=fc.aggregators.total())
COHORTS = [[0, 1, 2, 3], [3, 0, 1], [2, 1, 0, 3]]


def test_sites_end_bit_for_bit_where_lanes_end(tmp_path):
    sim = simulator(SECURE)
    expected = sim.init(jax.random.key(1))
    with federation(SECURE, folder=tmp_path) as (fed, sites, transport):
        state = fed.init(jax.random.key(1))
        for cohort in COHORTS:
            state, got = fed.run(state, cohort)
            expected, seen = sim.run(expected, cohort)
            print(got, seen)
    got, expected = (jax.tree.map(np.asarray, x) for x in (state.params, expected.params))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
